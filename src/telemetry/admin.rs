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
use crate::{
    http::{self, ServeTerms},
    lifecycle::Shutdown,
};

/// Most connections at a time. Probes and scrapes are few, and these file descriptors are reserved.
const MAX_CONNECTIONS: usize = 64;

/// Serves `/livez`, `/readyz` and `/metrics` until the process stops. `/livez` and `/readyz` answer
/// 200, or 503 with a line for each component that is stuck or not ready.
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
    let terms =
        ServeTerms { max_connections: MAX_CONNECTIONS, count_refusal: Arc::new(|_| ()), tls: None };
    http::serve(listener, app, terms, shutdown).await;
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
