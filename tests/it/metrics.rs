//! The metrics of each role, compared with the list that is promised to dashboards and alerts.

use std::time::{Duration, Instant};

use crate::harness::{Database, PATIENCE, Role, Strategy, World};

/// A metric, and the values of its label that a role knows from its start.
type Promise = (&'static str, &'static [&'static str]);

const OF_EVERY_ROLE: &[Promise] = &[
    ("stocklock_build_info", &["version"]),
    ("stocklock_dependency_up", &["dependency=\"kafka\""]),
    ("stocklock_ready", &[]),
    ("process_cpu_seconds_total", &[]),
    ("process_resident_memory_bytes", &[]),
];

const OF_INGEST: &[Promise] = &[
    (
        "stocklock_orders_ingested_total",
        &[
            "result=\"accepted\"",
            "result=\"replayed\"",
            "result=\"invalid\"",
            "result=\"rejected\"",
            "result=\"abandoned\"",
        ],
    ),
    ("stocklock_outbox_pending", &[]),
    ("stocklock_outbox_max", &[]),
    ("stocklock_outbox_oldest_seconds", &[]),
    ("stocklock_pending_oldest_seconds", &[]),
    ("stocklock_pending_orders_total", &["result=\"produced\"", "result=\"expired\""]),
    ("stocklock_releases_owed", &[]),
    ("stocklock_releases_owed_oldest_seconds", &[]),
    ("stocklock_owed_releases_total", &["result=\"produced\"", "result=\"expired\""]),
    ("stocklock_dependency_up", &["dependency=\"order_store\"", "dependency=\"stock_store\""]),
    ("stocklock_retries_total", &["dependency=\"order_store\"", "dependency=\"kafka\""]),
    (
        "stocklock_pool_connections",
        &[
            "state=\"idle\",store=\"order_store\"",
            "state=\"used\",store=\"order_store\"",
            "state=\"idle\",store=\"stock_store\"",
            "state=\"used\",store=\"stock_store\"",
        ],
    ),
    (
        "stocklock_http_requests_total",
        &[
            "route=\"/v1/orders\",status=\"202\"",
            "route=\"/v1/orders\",status=\"409\"",
            "route=\"/v1/orders/{id}\",status=\"404\"",
        ],
    ),
    ("stocklock_http_request_seconds_count", &["route=\"/v1/orders\""]),
    ("stocklock_http_refusals_total", &["reason=\"no_token\"", "reason=\"tls_handshake\""]),
];

const OF_WORKER: &[Promise] = &[
    (
        "stocklock_orders_decided_total",
        &[
            "outcome=\"COMPLETED\",strategy=\"redlock\"",
            "outcome=\"FAILED\",strategy=\"redlock\"",
            "outcome=\"RELEASED\",strategy=\"redlock\"",
        ],
    ),
    ("stocklock_order_latency_seconds_count", &[]),
    ("stocklock_batch_orders_count", &[]),
    (
        "stocklock_batch_seconds_count",
        &["stage=\"lock\"", "stage=\"transaction\"", "stage=\"unlock\"", "stage=\"publish\""],
    ),
    ("stocklock_lock_wait_seconds_count", &["strategy=\"redlock\""]),
    ("stocklock_lock_hold_seconds_count", &["strategy=\"redlock\""]),
    (
        "stocklock_lock_failures_total",
        &["cause=\"contended\"", "cause=\"unavailable\"", "cause=\"lost\""],
    ),
    ("stocklock_lock_fallback", &[]),
    ("stocklock_redis_master_up", &["master="]),
    ("stocklock_stale_writes_rejected_total", &[]),
    ("stocklock_levels_published_total", &[]),
    ("stocklock_level_notes", &[]),
    (
        "stocklock_retention_deleted_total",
        &["table=\"order_outcomes\"", "table=\"stock_movements\"", "table=\"adjustment_requests\""],
    ),
    (
        "stocklock_retention_passes_total",
        &[
            "result=\"complete\",store=\"stock_store\"",
            "result=\"partial\",store=\"stock_store\"",
            "result=\"failed\",store=\"stock_store\"",
        ],
    ),
    ("stocklock_dependency_up", &["dependency=\"stock_store\"", "dependency=\"redis\""]),
    (
        "stocklock_retries_total",
        &["dependency=\"stock_store\"", "dependency=\"kafka\"", "dependency=\"redis\""],
    ),
    (
        "stocklock_pool_connections",
        &["state=\"idle\",store=\"stock_store\"", "state=\"used\",store=\"stock_store\""],
    ),
    ("stocklock_consumer_recreations_total", &["topic=\"{orders}\""]),
    ("stocklock_poll_errors_total", &["topic=\"{orders}\""]),
    ("stocklock_lanes_stopped", &["topic=\"{orders}\""]),
    ("stocklock_consumer_lag", &["topic=\"{orders}\""]),
];

const OF_COMPENSATOR: &[Promise] = &[
    (
        "stocklock_compensations_total",
        &[
            "kind=\"completed\"",
            "kind=\"reserved\"",
            "kind=\"failed\"",
            "kind=\"cancelled\"",
            "kind=\"released\"",
            "kind=\"release_done\"",
            "kind=\"tombstone\"",
        ],
    ),
    (
        "stocklock_holds_closed_total",
        &["how=\"confirmed\"", "how=\"cancelled\"", "how=\"failed\"", "how=\"expired\""],
    ),
    ("stocklock_holds_open", &[]),
    ("stocklock_hold_expiry_lag_seconds", &[]),
    ("stocklock_confirmations_too_late_total", &[]),
    ("stocklock_retention_deleted_total", &["table=\"orders\"", "table=\"idempotency_keys\""]),
    (
        "stocklock_retention_passes_total",
        &[
            "result=\"complete\",store=\"order_store\"",
            "result=\"partial\",store=\"order_store\"",
            "result=\"failed\",store=\"order_store\"",
        ],
    ),
    ("stocklock_dependency_up", &["dependency=\"order_store\""]),
    ("stocklock_retries_total", &["dependency=\"order_store\"", "dependency=\"kafka\""]),
    (
        "stocklock_pool_connections",
        &["state=\"idle\",store=\"order_store\"", "state=\"used\",store=\"order_store\""],
    ),
    ("stocklock_consumer_recreations_total", &["topic=\"{order_status}\""]),
    ("stocklock_poll_errors_total", &["topic=\"{order_status}\""]),
    ("stocklock_lanes_stopped", &["topic=\"{order_status}\""]),
    ("stocklock_consumer_lag", &["topic=\"{order_status}\""]),
];

const OF_CONSUMERS: &[Promise] =
    &[("stocklock_rebalances_total", &["kind=\"assign\"", "kind=\"revoke\"", "kind=\"lost\""])];

const DEAD_LETTER_CLASSES: [&str; 10] = [
    "undecodable",
    "unknown_schema",
    "unregistered_schema",
    "invalid",
    "conflict",
    "unknown_order",
    "expired",
    "refused",
    "damaged",
    "too_large",
];

/// What has not happened in a role that has done nothing yet.
const BEGIN_AT_ZERO: [&str; 8] = [
    "stocklock_orders_ingested_total",
    "stocklock_orders_decided_total",
    "stocklock_compensations_total",
    "stocklock_pending_orders_total",
    "stocklock_owed_releases_total",
    "stocklock_http_refusals_total",
    "stocklock_lock_failures_total",
    "stocklock_stale_writes_rejected_total",
];

/// The promised series that a text of Prometheus lacks.
fn missing(world: &World, shown: &str, promises: &[Promise]) -> Vec<String> {
    let topics = &world.config.topics;
    let mut missing = Vec::new();
    for (name, labels) in promises {
        for labels in if labels.is_empty() { &[""] } else { *labels } {
            let labels = labels
                .replace("{orders}", &topics.orders)
                .replace("{order_status}", &topics.order_status);
            let is_series = |line: &&str| {
                line.strip_prefix(name).is_some_and(|rest| {
                    rest.starts_with(['{', ' '])
                        && rest.contains(&labels)
                        && (!BEGIN_AT_ZERO.contains(name) || rest.ends_with(" 0"))
                })
            };
            if !shown.lines().any(|line| is_series(&line)) {
                missing.push(format!("{name}{{{labels}}}"));
            }
        }
    }
    missing
}

/// Waits until a role that has done nothing yet shows all that is promised of it.
async fn shows(world: &World, role: &Role, name: &str, promises: &[&[Promise]]) {
    let begun = Instant::now();
    loop {
        let shown = role.metrics().await;
        let missing = missing(world, &shown, &promises.concat());
        if missing.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{name} lacks {missing:#?} in:\n{shown}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Fails the test unless a role counts the dead letters of a topic from 0, class by class.
async fn shows_dead_letters(role: &Role, topic: &str) {
    let shown = role.metrics().await;
    for class in DEAD_LETTER_CLASSES {
        let labels = format!("class=\"{class}\",topic=\"{topic}\"");
        let series = format!("stocklock_dead_letters_total{{{labels}}} 0");
        assert!(shown.contains(&series), "{series} is missing in:\n{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_known_series_is_there_before_anything_happens() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;

    let ingest = world.start("ingest").await;
    let worker = world.start("worker").await;
    let compensator = world.start("compensator").await;

    shows(&world, &ingest, "ingest", &[OF_EVERY_ROLE, OF_INGEST]).await;
    shows(&world, &worker, "worker", &[OF_EVERY_ROLE, OF_CONSUMERS, OF_WORKER]).await;
    shows_dead_letters(&worker, &world.config.topics.orders).await;
    let promises = [OF_EVERY_ROLE, OF_CONSUMERS, OF_COMPENSATOR];
    shows(&world, &compensator, "compensator", &promises).await;
    shows_dead_letters(&compensator, &world.config.topics.order_status).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingest_with_an_intake_shows_what_consumers_measure() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.configure(&[("INGEST__INTAKE", "true")]);

    let ingest = world.start("ingest").await;

    shows(&world, &ingest, "ingest", &[OF_EVERY_ROLE, OF_CONSUMERS, OF_INGEST]).await;
    let intake = world.config.topics.order_requests.as_ref().expect("the intake is on");
    shows_dead_letters(&ingest, &intake.requests).await;
}
