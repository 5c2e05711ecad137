//! HTTP as every role serves it: a client that is slow or silent costs the others nothing, and a stop comes to an end.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::lifecycle::Shutdown;

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 10_000;
/// How long a client may take for a request's head, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long requests in hand may take at a stop before their connections are cut.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// After the system refused a connection, for instance as there are no more file descriptors.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Serves until a stop is requested; requests in hand are then answered, for 10 s at most.
pub async fn serve(listener: TcpListener, app: Router, shutdown: Shutdown) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let (stream, place) = tokio::select! {
            () = shutdown.requested() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = accept(&listener, &room) => match accepted {
                Some(accepted) => accepted,
                None => continue,
            },
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let served = graceful.watch(served);
        connections.spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    if timeout(STOP_DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections are cut, their requests were not finished in time");
    }
    connections.shutdown().await;
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "connection not accepted");
            sleep(ACCEPT_DELAY).await;
            None
        }
    }
}
