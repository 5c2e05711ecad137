//! A connection as hyper reads and writes it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

use super::{MAX_HEAD_BYTES, connection::Connection};

/// How long a client may take nothing of an answer before its connection is cut.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The header of a response without a body.
const EMPTY_BODY: &[u8] = b"content-length: 0\r\n";

/// The bytes of a socket, as they are or under TLS.
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// The socket of a connection. It bounds the time of writes, and the memory of handshakes of TLS.
pub(super) struct Socket {
    connection: Connection,
    /// The timer that runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The bytes of the handshake so far. `None` unless one is being made.
    handshake_bytes: Option<usize>,
}

impl Socket {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, stalled: None, handshake_bytes: None }
    }

    /// A socket on which a handshake of TLS is made. Its bytes hold memory as those of a head.
    pub(super) fn in_handshake(connection: Connection) -> Self {
        Self { handshake_bytes: Some(0), ..Self::new(connection) }
    }

    pub(super) fn handshake_ended(&mut self) {
        self.handshake_bytes = None;
        self.connection.forget_head();
    }

    /// Fails if the handshake is larger than a head may be, or if there is no memory for it.
    fn count_handshake(&mut self, bytes: usize) -> io::Result<()> {
        let Some(so_far) = &mut self.handshake_bytes else { return Ok(()) };
        *so_far += bytes;
        if *so_far > MAX_HEAD_BYTES {
            return Err(io::Error::other("the handshake is too large"));
        }
        self.connection.hold_head(bytes)
    }

    /// Writes as soon as the client takes something. Fails with `TimedOut` if it takes nothing for
    /// [`WRITE_TIMEOUT`].
    fn poll_writing(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.connection.set_unflushed(true);
        let stream = self.connection.stream();
        loop {
            match stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => match write(stream) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => {
                        self.stalled = None;
                        return Poll::Ready(written);
                    }
                },
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let stalled =
                        self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
                    ready!(stalled.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.connection.stream();
        let read = loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => break read?,
            }
        };
        Poll::Ready(self.count_handshake(read))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the socket is closed when the connection is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection as hyper reads and writes it. It bounds the memory of heads. It also gives a body
/// to the responses that hyper writes by itself.
pub(super) struct ConnectionIo {
    connection: Connection,
    transport: Transport,
}

impl ConnectionIo {
    pub(super) fn new(connection: Connection, transport: Transport) -> Self {
        Self { connection, transport }
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        })?;
        Poll::Ready(self.connection.count_head(buffer.filled().len() - before))
    }
}

/// A response that is sent instead of one of hyper's own.
struct ProblemResponse<'b> {
    status: &'b str,
    text: String,
}

/// The problem document (RFC 9457) that replaces a response without a body that hyper writes by
/// itself. Like hyper's response, it ends the connection. `None` for every other response.
fn problem_instead_of(bytes: &[u8]) -> Option<ProblemResponse<'_>> {
    let status = std::str::from_utf8(bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?;
    let (title, detail) = match status {
        "400" => ("Bad Request", "the request is no HTTP/1.1"),
        "414" => ("URI Too Long", "the address is too long"),
        "431" => (
            "Request Header Fields Too Large",
            "a head has less than 16384 bytes and 100 fields at most",
        ),
        _ => return None,
    };
    let mut windows = bytes.windows(EMPTY_BODY.len());
    let is_empty = windows.any(|window| window.eq_ignore_ascii_case(EMPTY_BODY));
    is_empty.then(|| ProblemResponse { status, text: problem(status, title, "", detail) })
}

/// A response with a problem document, which ends the connection. `more`: further header lines.
pub(super) fn problem(status: &str, title: &str, more: &str, detail: &str) -> String {
    let body = format!(
        r#"{{"type":"about:blank","title":"{title}","status":{status},"detail":"{detail}"}}"#
    );
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n{more}\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

impl ConnectionIo {
    /// Sends a problem as a whole. The socket's buffer has room, unless the client reads none of
    /// its answers.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        problem: &ProblemResponse<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(_) => self.connection.send_now(problem.text.as_bytes()),
            // The buffer of TLS is larger than a problem.
            Transport::Tls(stream) => {
                ready!(Pin::new(stream).poll_write(cx, problem.text.as_bytes()))?;
            }
        }
        self.connection.count_refusal(problem.status);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConnectionIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(problem) = problem_instead_of(bytes) {
            ready!(self.poll_send(cx, &problem))?;
            return Poll::Ready(Ok(bytes.len()));
        }
        match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [head] = slices
            && head.starts_with(b"HTTP/1.1 4")
        {
            return self.poll_write(cx, head);
        }
        match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(socket) => socket.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    /// hyper calls this once its buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        })?;
        self.connection.set_unflushed(false);
        Poll::Ready(Ok(()))
    }

    /// Over TLS, says that no more bytes follow.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;
    use crate::http::memory::{HeldMemory, MemoryBudget};

    /// A connection that finds no memory for heads, its client, and how often it was refused.
    async fn without_memory(is_encrypted: bool) -> (Connection, TcpStream, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (memory, mut held) = (MemoryBudget::default(), HeldMemory::default());
        assert!(memory.hold_head(&mut held, 16 << 20));
        std::mem::forget(held);
        let refusals = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&refusals);
        let count = Arc::new(move |_: crate::http::Refused<'_>| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (Connection::new(stream, memory, count, is_encrypted), client, refusals)
    }

    #[tokio::test]
    async fn a_head_without_memory_is_answered_with_its_cause() {
        let (connection, mut client, refusals) = without_memory(false).await;

        assert!(connection.count_head(4 << 10).is_ok());
        assert!(connection.count_head(1).is_err());

        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.contains("the heads of all requests are too large together"), "{body}");
        assert_eq!(refusals.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_handshake_without_memory_is_not_counted_as_a_request() {
        let (connection, _client, refusals) = without_memory(true).await;
        let mut socket = Socket::in_handshake(connection);

        assert!(socket.count_handshake((4 << 10) + 1).is_err());

        assert_eq!(refusals.load(Ordering::Relaxed), 0, "its caller counts a failed handshake");
    }
}
