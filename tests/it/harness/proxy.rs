use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Cut,
    Hung,
}

/// A way to a server that can be cut, or hang.
pub struct Proxy {
    way: watch::Sender<Way>,
}

impl Proxy {
    /// A proxy before the server of a URL, and the URL that leads through it.
    pub async fn before(url: &str) -> (Self, String) {
        let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next()).expect("scheme://…");
        let server = authority.rsplit('@').next().expect("host:port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (way, watching) = watch::channel(Way::Open);
        tokio::spawn(accept(listener, server.to_owned(), watching));
        (Self { way }, url.replacen(server, &address, 1))
    }

    /// Ends all connections, and every new one at once, as a server does that is shut down.
    pub fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Takes connections and lets nothing through any more, as a server does that is stopped, or a firewall that forgets.
    pub fn hang(&self) {
        self.way.send_replace(Way::Hung);
    }

    /// Lets new connections through. Those that hung are ended.
    pub fn mend(&self) {
        self.way.send_replace(Way::Open);
    }
}

async fn accept(listener: TcpListener, server: String, way: watch::Receiver<Way>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, server.clone(), way.clone()));
    }
}

async fn carry(mut client: TcpStream, server: String, mut way: watch::Receiver<Way>) {
    let found = *way.borrow_and_update();
    if found == Way::Open {
        let Ok(mut server) = TcpStream::connect(server).await else { return };
        tokio::select! {
            _closed = copy_bidirectional(&mut client, &mut server) => {}
            _fault = way.wait_for(|way| *way != Way::Open) => {}
        }
    }
    let _over = way.wait_for(|way| *way != Way::Hung).await;
}
