//! HTTP/1.1 as every role serves it, with bounds on what clients can hold.
//!
//! | bound | file |
//! | --- | --- |
//! | connections | [`slots`]: a full listener cuts idle connections, or answers 503 |
//! | open files | [`open_files`]: how many connections the process can afford |
//! | memory of heads, bodies and handshakes | [`memory`], [`io`] |
//! | time: a client that is silent, has gone, or reads nothing | [`connection`], [`io`] |
//! | unread bodies | [`body`] |
//! | what one client holds | [`share`] |
//! | encryption, and the time of a handshake | [`tls`] |

mod body;
mod connection;
mod io;
mod memory;
mod open_files;
mod share;
mod slots;
mod tls;

use std::{
    io::ErrorKind,
    pin::pin,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use axum::Router;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

pub(crate) use connection::{Connection, CountRefusal, NoMemory, Refused, Streaming};
pub(crate) use memory::HeldMemory;
pub(crate) use open_files::{OpenFiles, connections_beside};
pub(crate) use share::{HeldShare, Holding, Share};
pub(crate) use tls::{ListenerTls, listener_files};

use crate::{lifecycle::Shutdown, log_limiter::LogLimiter};
use body::RequestBody;
use io::{ConnectionIo, Socket, Transport};
use memory::MemoryBudget;
use slots::{Slot, Slots};

/// A request whose head has this size or more is answered with 431.
pub(crate) const MAX_HEAD_BYTES: usize = 16 << 10;
/// How much the server reads ahead, and how much of its answers waits for the client.
const MAX_BUFFER_BYTES: usize = 16 << 10;
/// How long a client may take for a request's head, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a client may take for the handshake of TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in flight may take at a stop before their connections are cut.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// The pause after the system refused a connection, for instance for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How a listener serves its connections.
pub(crate) struct ServeTerms {
    pub(crate) max_connections: usize,
    pub(crate) count_refusal: CountRefusal,
    /// `None`: no TLS.
    pub(crate) tls: Option<Arc<ListenerTls>>,
}

static HANDSHAKE_LOG: LazyLock<LogLimiter> = LazyLock::new(LogLimiter::default);

/// Serves `app` until a stop is requested. Then finishes the requests in flight, within 10 s.
///
/// A connection above `max_connections` gets the slot of an idle connection, the longest idle
/// first. It is answered with 503 if no connection is idle; over TLS it is closed.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    terms: ServeTerms,
    shutdown: Shutdown,
) {
    let ServeTerms { max_connections, count_refusal, tls } = terms;
    let (slots, memory) = (Arc::new(Slots::new(max_connections)), MemoryBudget::default());
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.requested() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = accept(&listener) => match accepted {
                Some(stream) => stream,
                None => continue,
            },
        };
        let count_refusal = Arc::clone(&count_refusal);
        let connection = Connection::new(stream, memory.clone(), count_refusal, tls.is_some());
        let Some(slot) = slots.admit(&connection).await else {
            connection.refuse();
            continue;
        };
        let (watcher, app, tls) = (graceful.watcher(), app.clone(), tls.clone());
        let shutdown = shutdown.clone();
        connections.spawn(async move {
            let handshaking = transport(&connection, tls.as_deref());
            if let Some(transport) = handshake(handshaking, &connection, &shutdown).await {
                let served = watcher.watch(serve_connection(&connection, transport, app));
                serve_until_cut(&connection, served, &slot).await;
            }
            // The slot closes the socket, so no other clone of the connection may outlive it.
            drop(connection);
            drop(slot);
        });
    }
    drop(listener);
    if timeout(STOP_DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            deadline = ?STOP_DEADLINE,
            "requests are unfinished at the stop, cutting their connections"
        );
    }
    connections.shutdown().await;
}

/// The transport of a new connection. Fails if the client does not finish the handshake of TLS.
async fn transport(
    connection: &Connection,
    tls: Option<&ListenerTls>,
) -> std::io::Result<Transport> {
    let Some(tls) = tls else {
        return Ok(Transport::Plain(Socket::new(connection.clone())));
    };
    let socket = Socket::in_handshake(connection.clone());
    let accepted = timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(socket)).await;
    let mut stream = accepted.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))?;
    stream.get_mut().0.handshake_ended();
    Ok(Transport::Tls(Box::new(stream)))
}

/// Returns `None` if the handshake fails, if the connection is cut before its end, or at a stop.
async fn handshake(
    handshaking: impl Future<Output = std::io::Result<Transport>>,
    connection: &Connection,
    shutdown: &Shutdown,
) -> Option<Transport> {
    tokio::select! {
        biased;
        done = handshaking => match done {
            Ok(transport) => Some(transport),
            Err(error) => {
                if let Some(dropped) = HANDSHAKE_LOG.is_due(&error.to_string(), Instant::now()) {
                    tracing::info!(%error, dropped, "TLS handshake failed, connection closed");
                }
                connection.count_failed_handshake();
                None
            }
        },
        () = connection.cut_requested() => None,
        () = shutdown.requested() => None,
    }
}

/// Returns `None` if the system refused the connection, after a pause.
async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            tracing::warn!(%error, "connection not accepted");
            sleep(ACCEPT_RETRY_DELAY).await;
            None
        }
    }
}

/// Serves a connection to its end. Returns sooner if the connection is cut while it is idle.
async fn serve_until_cut(
    connection: &Connection,
    served: impl Future<Output = hyper::Result<()>>,
    slot: &Slot,
) {
    let serving = async {
        let served = served.await;
        if let Err(error) = &served {
            tracing::debug!(%error, "connection ended");
        }
        if connection.is_answer_at_risk(&served) {
            connection.linger().await;
        }
    };
    let mut serving = pin!(serving);
    loop {
        tokio::select! {
            biased;
            () = &mut serving => return,
            () = connection.cut_requested() => {
                if connection.idle_since_ms().is_some() {
                    tracing::debug!("idle connection cut, a new connection gets its slot");
                    return;
                }
                // A request arrived after the cut was requested, so the connection stays.
                slot.keep();
            }
        }
    }
}

type Served<S> = http1::Connection<TokioIo<ConnectionIo>, S>;

fn serve_connection(
    connection: &Connection,
    transport: Transport,
    app: Router,
) -> Served<
    impl hyper::service::Service<
        Request<Incoming>,
        Response = axum::response::Response,
        Error = connection::ClientGone,
        Future: Send,
    > + use<>,
> {
    let (app, connection) = (TowerToHyperService::new(app), connection.clone());
    let io = TokioIo::new(ConnectionIo::new(connection.clone(), transport));
    let service = service_fn(move |request: Request<Incoming>| {
        let (connection, version) = (connection.clone(), request.version());
        let (mut head, body) = request.into_parts();
        head.extensions.insert(connection.clone());
        let body = RequestBody::new(connection.clone(), &head.headers, body);
        let request = Request::from_parts(head, body);
        let answering = hyper::service::Service::call(&app, request);
        async move { connection.answer(version, answering).await }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        // A client may shut down its sending side and still read. `Connection` finds out whether
        // the client has gone altogether.
        .half_close(true)
        .serve_connection(io, service)
}
