use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Up,
    /// Connections are refused, and those that were open are broken.
    Cut,
    /// Connections are taken, and nothing comes through.
    Hung,
}

/// A line to a server that can fail.
pub struct Proxy {
    pub address: SocketAddr,
    line: watch::Sender<Line>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Stands before the server of a URL. Answers the URL that leads through it, too.
    pub async fn before(url: &str) -> (Self, String) {
        let (_, rest) = url.split_once("://").expect("a URL");
        let server = rest.rsplit('@').next().expect("a host").split(['/', '?']).next().expect("a host").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (line, state) = watch::channel(Line::Up);
        let through = url.replace(&server, &address.to_string());
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                tokio::spawn(carry(client, server.clone(), state.clone()));
            }
        });
        (Self { address, line, task }, through)
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, server: String, mut line: watch::Receiver<Line>) {
    // A connection that was once hung never comes to life again: it ends with the fault.
    let is_up = *line.borrow_and_update() == Line::Up;
    if is_up {
        let Ok(mut server) = TcpStream::connect(&server).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => {}
            _ = line.wait_for(|line| *line != Line::Up) => {}
        }
        let _over = line.wait_for(|line| *line != Line::Hung).await;
        return;
    }
    let _over = line.wait_for(|line| *line != Line::Hung).await;
}
