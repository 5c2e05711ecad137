use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Cut,
    Hung,
}

/// A way to a server that can be cut, or hang.
pub(crate) struct Proxy {
    way: watch::Sender<Way>,
    server: Arc<Mutex<String>>,
}

impl Proxy {
    /// A proxy before the server of a URL, and the URL that leads through it.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        Self::before_distant(url, Duration::ZERO).await
    }

    /// The same for a server to which the way takes so long.
    pub(crate) async fn before_distant(url: &str, delay: Duration) -> (Self, String) {
        let authority = url
            .split_once("://")
            .and_then(|(_, rest)| rest.split(['/', '?']).next())
            .expect("scheme://…");
        let server = authority.rsplit('@').next().expect("host:port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (way, watching) = watch::channel(Way::Open);
        let leads_to = Arc::new(Mutex::new(server.to_owned()));
        tokio::spawn(accept(listener, Arc::clone(&leads_to), delay, watching));
        (Self { way, server: leads_to }, url.replacen(server, &address, 1))
    }

    /// Lets new connections go to another server; those that are open stay where they are.
    pub(crate) fn lead_to(&self, server: &str) {
        server.clone_into(&mut self.server.lock().expect("no panic"));
    }

    /// Ends all connections, and every new one at once, as a server does that is shut down.
    pub(crate) fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Accepts connections and lets nothing through any more. A stopped server does that, and so
    /// does a firewall that forgets its connections.
    pub(crate) fn hang(&self) {
        self.way.send_replace(Way::Hung);
    }

    /// Lets new connections through. Those that hung are ended.
    pub(crate) fn mend(&self) {
        self.way.send_replace(Way::Open);
    }
}

async fn accept(
    listener: TcpListener,
    server: Arc<Mutex<String>>,
    delay: Duration,
    way: watch::Receiver<Way>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let server = server.lock().expect("no panic").clone();
        tokio::spawn(carry(client, server, delay, way.clone()));
    }
}

async fn carry(
    mut client: TcpStream,
    server: String,
    delay: Duration,
    mut way: watch::Receiver<Way>,
) {
    let found = *way.borrow_and_update();
    if found == Way::Open {
        let Ok(mut server) = TcpStream::connect(server).await else { return };
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        tokio::select! {
            _closed = copy_late(&mut from_client, &mut to_server, delay) => {}
            _closed = copy(&mut from_server, &mut to_client) => {}
            _fault = way.wait_for(|way| *way != Way::Open) => {}
        }
    }
    let _over = way.wait_for(|way| *way != Way::Hung).await;
}

async fn copy_late(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    delay: Duration,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        to.write_all(&bytes[..read]).await?;
    }
}
