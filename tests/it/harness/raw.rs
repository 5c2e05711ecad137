use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::world::PATIENCE;

/// A client that writes bytes instead of requests, and ends its connection as it likes.
pub(crate) struct Raw(TcpStream);

impl Raw {
    /// Connects to `http://ADDRESS`.
    pub(crate) async fn connect(base: &str) -> Self {
        let address: SocketAddr = base.trim_start_matches("http://").parse().expect("an address");
        Self(TcpStream::connect(address).await.expect("a connection"))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("sent");
    }

    /// Sends for as long as the server takes it, for a moment at most. Answers whether it took all.
    pub(crate) async fn send_for(&mut self, bytes: &[u8], moment: Duration) -> bool {
        matches!(timeout(moment, self.0.write_all(bytes)).await, Ok(Ok(())))
    }

    /// Sends an order, without waiting for the answer.
    pub(crate) async fn place(&mut self, order: &str, headers: &str) {
        let length = order.len();
        let head = format!(
            "POST /v1/orders HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n"
        );
        self.send((head + order).as_bytes()).await;
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub(crate) async fn finish_sending(&mut self) {
        self.0.shutdown().await.expect("half closed");
    }

    /// Reads until the server closes the connection.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut answer)).await.expect("an end");
        read.expect("no reset");
        String::from_utf8(answer).expect("text")
    }

    /// Whether the server has closed the connection, told by sending.
    pub(crate) async fn is_refused(&mut self) -> bool {
        matches!(timeout(Duration::from_millis(10), self.0.write(b"G")).await, Ok(Err(_)))
    }

    /// Waits until the server closes the connection, in whatever way.
    pub(crate) async fn is_closed(&mut self) {
        let mut bytes = vec![0; 1 << 16];
        let closing = async { while self.0.read(&mut bytes).await.is_ok_and(|read| read > 0) {} };
        timeout(PATIENCE, closing).await.expect("the connection is still open");
    }
}
