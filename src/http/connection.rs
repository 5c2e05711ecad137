//! A client's connection, as the server's parts share it. It knows whether the client is still
//! there, whether the server waits for it, and how the connection ends.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::Version;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};

use super::memory::{HeldMemory, MemoryBudget};

mod owner;
mod refusal;

pub(crate) use owner::NoMemory;
use owner::Owner;

/// How long a request is in flight before the server checks whether its client is still there.
const CHECK_CLIENT_AFTER: Duration = Duration::from_millis(500);
/// The pause between two checks.
const CHECK_CLIENT_EVERY: Duration = Duration::from_secs(1);
/// Sent to a client of HTTP/1.1 that has finished sending, to find out whether it still reads.
/// Every such client ignores interim responses (RFC 9110, section 15.2). A socket that the client
/// has closed answers the bytes with a reset.
const PROBE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How many bytes of a connection that ends are read and discarded, and for how long. The client
/// would not receive its answer otherwise.
const MAX_LINGER_BYTES: usize = 1 << 20;
const MAX_LINGER_TIME: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 4096;
/// The first bytes of a head, which every connection may send without holding memory.
const FREE_HEAD_BYTES: usize = 4 << 10;
/// The value of [`Inner::idle_since_ms`] while the server works.
const WORKING: u64 = u64::MAX;

/// What the server refuses before it reaches a route.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refused<'s> {
    /// A request, with this status.
    Request(&'s str),
    /// A connection whose handshake of TLS failed.
    Handshake,
}

/// Counts what is refused.
pub(crate) type CountRefusal = Arc<dyn Fn(Refused<'_>) + Send + Sync>;

/// The origin of [`Inner::idle_since_ms`].
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A client's connection, as the server's parts share it. Cheap to clone. The socket is closed with
/// the last clone.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

/// A connection that this reference does not keep open.
pub(super) struct WeakConnection(Weak<Inner>);

struct Inner {
    stream: TcpStream,
    /// The bytes of the socket are TLS: only [`super::io`] may write to it.
    is_encrypted: bool,
    memory: MemoryBudget,
    count_refusal: CountRefusal,
    /// Since when the server waits for the client, in ms since [`EPOCH`].
    idle_since_ms: AtomicU64,
    /// The next bytes of the client belong to a head, not to a body.
    is_head: AtomicBool,
    head: Mutex<HeadSize>,
    /// Bytes of an answer may still be in the server's buffer.
    is_unflushed: AtomicBool,
    cut: Notify,
    /// The client that sent the last request, if it is known.
    owner: Mutex<Option<Owner>>,
}

/// The size of a request's head, and the memory that it holds until the answer.
#[derive(Default)]
struct HeadSize {
    bytes: usize,
    held: HeldMemory,
}

/// An answer that is being streamed. Its connection is busy until this is dropped, unless
/// [`Self::set_idle`] says else.
pub(crate) struct Streaming(Connection);

impl Streaming {
    /// Marks the connection as idle while the server waits for more of the client's body, or as
    /// busy again.
    pub(crate) fn set_idle(&self, is_idle: bool) {
        match (is_idle, self.0.idle_since_ms()) {
            (true, None) => self.0.wait_for_client(),
            (false, Some(_)) => self.0.request_read(),
            (true, Some(_)) | (false, None) => {}
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.wait_for_client();
    }
}

/// The client has closed its connection, and its request was abandoned.
#[derive(Debug, thiserror::Error)]
#[error("the client has closed its connection")]
pub(super) struct ClientGone;

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        memory: MemoryBudget,
        count_refusal: CountRefusal,
        is_encrypted: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            stream,
            is_encrypted,
            memory,
            count_refusal,
            idle_since_ms: AtomicU64::new(now_ms()),
            is_head: AtomicBool::new(true),
            head: Mutex::default(),
            is_unflushed: AtomicBool::new(false),
            cut: Notify::new(),
            owner: Mutex::default(),
        }))
    }

    /// A connection to nobody.
    #[cfg(test)]
    pub(crate) async fn of_test() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        Self::new(stream, MemoryBudget::default(), Arc::new(|_| {}), false)
    }

    /// Marks the connection as busy: the whole request was read, and the server works on it. A busy
    /// connection keeps its slot.
    pub(crate) fn request_read(&self) {
        self.0.idle_since_ms.store(WORKING, Ordering::Relaxed);
    }

    /// Marks the connection as busy again after the head of its answer, while the body is streamed.
    pub(crate) fn streaming(&self) -> Streaming {
        self.request_read();
        Streaming(self.clone())
    }

    /// Since when the server waits for the client, in ms since the first connection. `None` while
    /// the server works on a request.
    pub(super) fn idle_since_ms(&self) -> Option<u64> {
        Some(self.0.idle_since_ms.load(Ordering::Relaxed)).filter(|since| *since != WORKING)
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.0.stream
    }

    /// Whether the client speaks TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.is_encrypted
    }

    /// Whether the client connects from `127.0.0.1` or `::1`. Other addresses of the loopback do
    /// not count: the proxies of some service meshes connect from one of them for a remote client.
    pub(crate) fn is_from_loopback(&self) -> bool {
        let localhost: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let peer = self.0.stream.peer_addr();
        peer.is_ok_and(|peer| localhost.contains(&peer.ip().to_canonical()))
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.0))
    }

    /// Called when the server has read a head.
    pub(super) fn head_read(&self, has_body: bool) {
        if has_body {
            self.0.is_head.store(false, Ordering::Relaxed);
            self.wait_for_client();
        } else {
            self.request_read();
        }
    }

    /// Called for each part of a body. The connection counts as idle since then, so a client that
    /// sends is cut later than a silent one.
    pub(super) fn body_grew(&self) {
        if self.idle_since_ms().is_some() {
            self.wait_for_client();
        }
    }

    /// Called when the server has read a body to its end.
    pub(super) fn body_ended(&self) {
        self.0.is_head.store(true, Ordering::Relaxed);
    }

    fn wait_for_client(&self) {
        self.0.idle_since_ms.store(now_ms(), Ordering::Relaxed);
    }

    fn head(&self) -> MutexGuard<'_, HeadSize> {
        self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that were read, if they belong to a head. A large head holds memory until its
    /// answer; bodies are counted where they are read.
    ///
    /// Fails if all heads together are too large. The client has been answered with 503 then.
    pub(super) fn count_head(&self, bytes: usize) -> io::Result<()> {
        if !self.0.is_head.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.hold_head(bytes).inspect_err(|_| self.refuse_head())
    }

    /// Counts bytes of a head, or of a handshake. Fails if all of them together are too large.
    pub(super) fn hold_head(&self, bytes: usize) -> io::Result<()> {
        let mut head = self.head();
        head.bytes += bytes;
        let beyond = head.bytes.min(super::MAX_HEAD_BYTES).saturating_sub(FREE_HEAD_BYTES);
        if beyond == 0 || self.0.memory.hold_head(&mut head.held, beyond) {
            return Ok(());
        }
        Err(io::Error::other("the heads of all requests are too large together"))
    }

    /// Whether bytes of an answer may be in the server's buffer.
    pub(super) fn set_unflushed(&self, is_unflushed: bool) {
        self.0.is_unflushed.store(is_unflushed, Ordering::Relaxed);
    }

    /// Returns once the server needs the connection's slot for another connection.
    pub(super) async fn cut_requested(&self) {
        self.0.cut.notified().await;
    }

    pub(super) fn request_cut(&self) {
        self.0.cut.notify_one();
    }

    /// Counts a response that the server sends without a handler.
    pub(super) fn count_refusal(&self, status: &str) {
        (self.0.count_refusal)(Refused::Request(status));
    }

    pub(super) fn count_failed_handshake(&self) {
        (self.0.count_refusal)(Refused::Handshake);
    }

    /// Sends what the socket takes at once. Not through Tokio: it does not know yet that a new
    /// socket can be written.
    /// Does nothing on an encrypted connection.
    pub(super) fn send_now(&self, bytes: &[u8]) {
        if self.0.is_encrypted {
            return;
        }
        let _taken = SockRef::from(&self.0.stream).send(bytes);
    }

    /// Awaits a request's answer. Fails with [`ClientGone`] if the client closes its connection
    /// first: the request is dropped then.
    pub(super) async fn answer<T, E>(
        &self,
        version: Version,
        answering: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ClientGone> {
        let answered = tokio::select! {
            biased;
            answered = answering => answered.map_err(|_| ClientGone),
            () = self.closed(version) => Err(ClientGone),
        };
        self.wait_for_client();
        self.forget_head();
        answered
    }

    /// Frees the memory of a head.
    pub(super) fn forget_head(&self) {
        *self.head() = HeadSize::default();
    }

    /// Returns once the client has closed its connection. A client that has only finished sending
    /// is still there, except over TLS, where clients do not do that.
    async fn closed(&self, version: Version) {
        let stream = &self.0.stream;
        sleep(CHECK_CLIENT_AFTER).await;
        self.sending_ended().await;
        if self.0.is_encrypted {
            return;
        }
        let may_probe = version >= Version::HTTP_11 && !self.0.is_unflushed.load(Ordering::Relaxed);
        if may_probe && stream.try_write(PROBE_RESPONSE).ok() != Some(PROBE_RESPONSE.len()) {
            return;
        }
        self.reset().await;
    }

    /// Returns once the client has finished sending. It may still read.
    pub(crate) async fn sending_ended(&self) {
        let stream = &self.0.stream;
        loop {
            match stream.peek(&mut [0]).await {
                Ok(0) | Err(_) => return,
                // Bytes of the next request hide the end of the stream behind them.
                Ok(_) => match stream.ready(Interest::READABLE).await {
                    Ok(ready) if ready.is_read_closed() => return,
                    _ => sleep(CHECK_CLIENT_EVERY).await,
                },
            }
        }
    }

    /// Returns once the client has answered bytes with a reset: it does not read any longer.
    pub(crate) async fn reset(&self) {
        let _reset = self.0.stream.ready(Interest::ERROR).await;
    }

    /// Whether the client may have sent more than was read when its connection ended.
    ///
    /// Not so for an idle connection that timed out: it is closed at once, as a request that comes
    /// now would be lost.
    pub(super) fn is_answer_at_risk(&self, served: &hyper::Result<()>) -> bool {
        match served {
            Ok(()) => !self.0.is_head.load(Ordering::Relaxed),
            Err(error) => !error.is_timeout(),
        }
    }

    /// Ends the sending side, then reads and discards for a moment. A socket that is closed with
    /// bytes unread resets the connection, and the client would lose its answer.
    pub(super) async fn linger(&self) {
        self.wait_for_client();
        let _sent = SockRef::from(&self.0.stream).shutdown(Shutdown::Write);
        let discarding = async {
            let (mut bytes, mut discarded) = (vec![0; READ_BYTES], 0);
            while discarded < MAX_LINGER_BYTES && self.0.stream.readable().await.is_ok() {
                match self.0.stream.try_read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                    Ok(read) => discarded += read,
                }
            }
        };
        let _too_long = timeout(MAX_LINGER_TIME, discarding).await;
    }
}

impl WeakConnection {
    /// Returns `None` if the connection is closed.
    pub(super) fn upgrade(&self) -> Option<Connection> {
        self.0.upgrade().map(Connection)
    }
}

fn now_ms() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(WORKING - 1)
}
