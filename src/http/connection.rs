use std::{
    io::{self, Read as _},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::Version;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Sleep, sleep, timeout},
};

use super::memory::{Held, Memory};

/// How long a client may take nothing of an answer before its connection is cut.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request is in flight before the server asks whether its client is still there.
const ASK_AFTER: Duration = Duration::from_millis(500);
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Asks a client of HTTP/1.1 that has finished sending whether it still reads: every such client
/// passes over interim answers (RFC 9110, section 15.2), and a closed socket refuses the bytes.
const ARE_YOU_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// What is read on of a connection that ends, so that the client sees the answer.
const LINGER_BYTES: usize = 1 << 20;
const LINGER_TIME: Duration = Duration::from_secs(1);
/// The same for a connection that has no place.
const REFUSED_READS: usize = 16;
const READ_BYTES: usize = 4096;
/// The part of a head that every connection may have without asking.
const FREE_HEAD_BYTES: usize = 4 << 10;
/// For [`Inner::idle_since`]: the server works.
const WORKING: u64 = u64::MAX;
const EMPTY: &[u8] = b"content-length: 0\r\n";
const NO_PLACE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
    retry-after: 1\r\nconnection: close\r\ncontent-length: 116\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"too many connections; nothing was saved\"}";

/// Counts by its status what is answered to a request that reaches no route.
pub(crate) type CountRefusal = Arc<dyn Fn(&str) + Send + Sync>;

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A client's connection, as the server's parts share it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

/// A connection that this does not keep open.
pub(super) struct WeakConnection(Weak<Inner>);

struct Inner {
    stream: TcpStream,
    memory: Memory,
    count_refusal: CountRefusal,
    /// Milliseconds since [`BEGUN`] from which on the server waits for the client.
    idle_since: AtomicU64,
    /// What the client sends belongs to a head, not to a body.
    is_head: AtomicBool,
    head: Mutex<Head>,
    /// Bytes of an answer may still be in the server's buffer.
    is_unflushed: AtomicBool,
    cut: Notify,
}

/// The bytes of a request's head, and the memory that they hold until the answer.
#[derive(Default)]
struct Head {
    bytes: usize,
    held: Held,
}

/// The client has closed its connection, and its request was given up.
#[derive(Debug, thiserror::Error)]
#[error("the client has closed its connection")]
pub(super) struct Gone;

impl Connection {
    pub(super) fn new(stream: TcpStream, memory: Memory, count_refusal: CountRefusal) -> Self {
        Self(Arc::new(Inner {
            stream,
            memory,
            count_refusal,
            idle_since: AtomicU64::new(now()),
            is_head: AtomicBool::new(true),
            head: Mutex::default(),
            is_unflushed: AtomicBool::new(false),
            cut: Notify::new(),
        }))
    }

    /// The memory that bodies are held in.
    pub(crate) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// The request was read, and the server works on it: the connection keeps its place.
    pub(crate) fn request_read(&self) {
        self.0.idle_since.store(WORKING, Ordering::Relaxed);
    }

    /// Since when the server waits for the client; none while it works.
    pub(super) fn idle_since(&self) -> Option<u64> {
        Some(self.0.idle_since.load(Ordering::Relaxed)).filter(|since| *since != WORKING)
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.0))
    }

    pub(super) fn head_read(&self, has_body: bool) {
        if has_body {
            self.0.is_head.store(false, Ordering::Relaxed);
            self.wait_for_client();
        } else {
            self.request_read();
        }
    }

    /// A client that sends its body waits for less long than one that is silent.
    pub(super) fn body_grew(&self) {
        if self.idle_since().is_some() {
            self.wait_for_client();
        }
    }

    pub(super) fn body_ended(&self) {
        self.0.is_head.store(true, Ordering::Relaxed);
    }

    fn wait_for_client(&self) {
        self.0.idle_since.store(now(), Ordering::Relaxed);
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the server needs the connection's place for another.
    pub(super) async fn cut(&self) {
        self.0.cut.notified().await;
    }

    pub(super) fn request_cut(&self) {
        self.0.cut.notify_one();
    }

    /// Answers 503 as far as the socket takes it at once, and ends the connection.
    pub(super) fn refuse(&self) {
        (self.0.count_refusal)("503");
        self.send_now(NO_PLACE);
        let socket = SockRef::from(&self.0.stream);
        let _sent = socket.shutdown(Shutdown::Write);
        let mut bytes = [0; READ_BYTES];
        for _ in 0..REFUSED_READS {
            // Bytes that are left unread reset the connection.
            if !(&*socket).read(&mut bytes).is_ok_and(|read| read > 0) {
                return;
            }
        }
    }

    /// Sends what the socket takes at once. Tokio does not know yet that a new socket takes bytes.
    fn send_now(&self, bytes: &[u8]) {
        let _taken = SockRef::from(&self.0.stream).send(bytes);
    }

    /// Gives a request up once its client has gone.
    pub(super) async fn answer<T, E>(
        &self,
        version: Version,
        answering: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Gone> {
        let answered = tokio::select! {
            biased;
            answered = answering => answered.map_err(|_| Gone),
            () = self.closed(version) => Err(Gone),
        };
        self.wait_for_client();
        *self.head() = Head::default();
        answered
    }

    /// Returns once the client has closed its connection. A client that has only finished sending
    /// is still there.
    async fn closed(&self, version: Version) {
        let stream = &self.0.stream;
        sleep(ASK_AFTER).await;
        loop {
            match stream.peek(&mut [0]).await {
                Ok(0) => break,
                Err(_) => return,
                // Bytes of the next request hide what follows them.
                Ok(_) => match stream.ready(Interest::READABLE).await {
                    Ok(ready) if ready.is_read_closed() => break,
                    _ => sleep(ASK_AGAIN_AFTER).await,
                },
            }
        }
        let may_ask = version >= Version::HTTP_11 && !self.0.is_unflushed.load(Ordering::Relaxed);
        if may_ask && stream.try_write(ARE_YOU_THERE).ok() != Some(ARE_YOU_THERE.len()) {
            return;
        }
        let _reset = stream.ready(Interest::ERROR).await;
    }

    /// Whether the client may have sent more than was read when its connection ended. An idle
    /// connection that timed out is closed at once: what came now would be lost.
    pub(super) fn is_answer_at_risk(&self, served: &hyper::Result<()>) -> bool {
        match served {
            Ok(()) => !self.0.is_head.load(Ordering::Relaxed),
            Err(error) => !error.is_timeout(),
        }
    }

    /// Ends what is sent, and reads on for a moment: a socket that is closed with bytes unread
    /// resets the connection, and the client would not see its answer.
    pub(super) async fn linger(&self) {
        self.wait_for_client();
        let _sent = SockRef::from(&self.0.stream).shutdown(Shutdown::Write);
        let discarding = async {
            let (mut bytes, mut discarded) = (vec![0; READ_BYTES], 0);
            while discarded < LINGER_BYTES && self.0.stream.readable().await.is_ok() {
                match self.0.stream.try_read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                    Ok(read) => discarded += read,
                }
            }
        };
        let _too_long = timeout(LINGER_TIME, discarding).await;
    }
}

impl WeakConnection {
    pub(super) fn upgrade(&self) -> Option<Connection> {
        self.0.upgrade().map(Connection)
    }
}

fn now() -> u64 {
    u64::try_from(BEGUN.elapsed().as_millis()).unwrap_or(WORKING - 1)
}

/// A connection as hyper reads and writes it.
pub(super) struct Io {
    connection: Connection,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Io {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, stalled: None }
    }

    /// A large head holds memory until its answer. Bytes of a body are counted elsewhere.
    fn count_head(&self, bytes: usize) -> io::Result<()> {
        if !self.connection.0.is_head.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut head = self.connection.head();
        head.bytes += bytes;
        let beyond = head.bytes.min(super::MAX_HEAD_BYTES).saturating_sub(FREE_HEAD_BYTES);
        if beyond == 0 || self.connection.0.memory.hold_head(&mut head.held, beyond) {
            return Ok(());
        }
        drop(head);
        self.connection.refuse();
        Err(io::Error::other("the heads of all requests are too large together"))
    }

    /// Writes as soon as the client takes something. Fails where it takes nothing for too long.
    fn poll_writing(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let inner = &self.connection.0;
        inner.is_unflushed.store(true, Ordering::Relaxed);
        loop {
            match inner.stream.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => match write(&inner.stream) {
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

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.connection.0.stream.poll_read_ready(cx))?;
            match self.connection.0.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(bytes) => return Poll::Ready(self.count_head(bytes)),
            }
        }
    }
}

/// What hyper answers by itself has no body: answers its status, and the response with a problem
/// document (RFC 9457) to send instead, which ends the connection as well.
fn problem_instead_of(bytes: &[u8]) -> Option<(&str, String)> {
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
    let is_empty = bytes.windows(EMPTY.len()).any(|window| window.eq_ignore_ascii_case(EMPTY));
    let body = format!(
        r#"{{"type":"about:blank","title":"{title}","status":{status},"detail":"{detail}"}}"#
    );
    let head = format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    is_empty.then_some((status, head + &body))
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some((status, problem)) = problem_instead_of(bytes) {
            (self.connection.0.count_refusal)(status);
            // The socket's buffer has room, unless the client reads none of its answers.
            self.connection.send_now(problem.as_bytes());
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_writing(cx, |stream| stream.try_write(bytes))
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
        self.poll_writing(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Called once the server's buffer is empty.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.0.is_unflushed.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    /// The socket is closed when the connection is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
