use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A way to a server that can be cut.
pub struct Proxy {
    open: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy before the server of a URL, and the URL that leads through it.
    pub async fn before(url: &str) -> (Self, String) {
        let server = url.rsplit_once('@').and_then(|(_, rest)| rest.split('/').next()).expect("user@host:port/…");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (open, watching) = watch::channel(true);
        tokio::spawn(accept(listener, server.to_owned(), watching));
        (Self { open }, url.replacen(server, &address, 1))
    }

    /// Ends all connections, and every new one at once, as a server does that is shut down.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn accept(listener: TcpListener, server: String, open: watch::Receiver<bool>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (server, mut open) = (server.clone(), open.clone());
        if !*open.borrow_and_update() {
            continue;
        }
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(server).await else { return };
            tokio::select! {
                _closed = copy_bidirectional(&mut client, &mut server) => {}
                _cut = open.wait_for(|open| !open) => {}
            }
        });
    }
}
