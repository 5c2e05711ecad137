//! HTTP as every role serves it. What clients can hold is bounded: connections, memory and time.

mod body;
mod connection;
mod files;
mod memory;
mod room;

use std::{pin::pin, sync::Arc, time::Duration};

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

pub(crate) use connection::{Connection, CountRefusal};
pub(crate) use files::connections_beside;
pub(crate) use memory::{Held, Memory};

use crate::lifecycle::Shutdown;
use body::RequestBody;
use connection::Io;
use room::{Place, Room};

/// A head of this size or above is answered with 431.
pub(crate) const MAX_HEAD_BYTES: usize = 16 << 10;
/// How much the server reads ahead, and how much of its answers waits for the client.
const MAX_BUFFER_BYTES: usize = 16 << 10;
/// How long a client may take for a request's head, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long requests in flight may take at a stop before their connections are cut.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// After the system refused a connection, for instance as there are no more file descriptors.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Serves until a stop is requested. Requests in flight are then answered, for 10 s at most.
///
/// A connection above `max_connections` takes the place of the connection that waits longest for
/// its client. It is answered with 503 where the server works for every client.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    max_connections: usize,
    count_refusal: CountRefusal,
    shutdown: Shutdown,
) {
    let (room, memory) = (Arc::new(Room::new(max_connections)), Memory::default());
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
        let connection = Connection::new(stream, memory.clone(), Arc::clone(&count_refusal));
        let Some(place) = room.admit(&connection).await else {
            connection.refuse();
            continue;
        };
        let served = graceful.watch(serve_connection(&connection, app.clone()));
        connections.spawn(async move {
            serve_until_cut(&connection, served, &place).await;
            drop(connection);
            drop(place);
        });
    }
    drop(listener);
    if timeout(STOP_DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections are cut, their requests were not finished in time");
    }
    connections.shutdown().await;
}

async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            tracing::warn!(%error, "connection not accepted");
            sleep(ACCEPT_DELAY).await;
            None
        }
    }
}

/// Serves a connection to its end, or until others need its place while it waits for its client.
async fn serve_until_cut(
    connection: &Connection,
    served: impl Future<Output = hyper::Result<()>>,
    place: &Place,
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
            () = connection.cut() => {
                if connection.idle_since().is_some() {
                    tracing::debug!("connection cut, others need its place");
                    return;
                }
                // Its request has arrived in the meantime.
                place.keep();
            }
        }
    }
}

type Served<S> = http1::Connection<TokioIo<Io>, S>;

fn serve_connection(
    connection: &Connection,
    app: Router,
) -> Served<
    impl hyper::service::Service<
        Request<Incoming>,
        Response = axum::response::Response,
        Error = connection::Gone,
        Future: Send,
    > + use<>,
> {
    let (app, connection) = (TowerToHyperService::new(app), connection.clone());
    let io = TokioIo::new(Io::new(connection.clone()));
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
        // `Connection` tells a client that has gone from one that has only finished sending.
        .half_close(true)
        .serve_connection(io, service)
}
