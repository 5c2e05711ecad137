use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use super::{Health, Metrics};
use crate::{http, lifecycle::Shutdown};

/// Connections at once: probes and scrapes are few. Their file descriptors are reserved.
const MAX_CONNECTIONS: usize = 64;

/// Serves `/livez`, `/readyz` and `/metrics` until the process stops.
pub(crate) async fn serve_admin(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let app = Router::new()
        .route(
            "/livez",
            get(|State((health, _)): State<(Health, Metrics)>| async move {
                verdict(&health.stuck(Instant::now()))
            }),
        )
        .route(
            "/readyz",
            get(|State((health, _)): State<(Health, Metrics)>| async move {
                verdict(&health.not_ready())
            }),
        )
        .route("/metrics", get(exposition))
        .with_state((health, metrics));
    http::serve(listener, app, MAX_CONNECTIONS, Arc::new(|_| ()), shutdown).await;
}

fn verdict(complaints: &[String]) -> (StatusCode, String) {
    if complaints.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, complaints.join("\n") + "\n")
    }
}

async fn exposition(State((_, metrics)): State<(Health, Metrics)>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics.exposition())
}
