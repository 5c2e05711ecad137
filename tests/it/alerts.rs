//! The alerts of the chart fire on real faults of running roles, and resolve after them.
//!
//! A real Prometheus scrapes the roles, and evaluates the rules of the chart with all times divided
//! by [`FASTER`]: windows, `for`, and the bounds of ages. Nothing else of the rules is changed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{Connection as _, MySqlConnection};
use stocklock::domain::OrderId;

use crate::{
    harness::{
        Api, BrokerProxy, Database, PATIENCE, Prometheus, Proxy, Role, Strategy, World, lines,
        proxies_of_masters, stays, wait_for_within,
    },
    watching::rules,
};

/// How much faster the rules are.
const FASTER: u64 = 30;
/// Its shortened rule fires without a fault: passes of retention come once a minute all the same.
const NOT_SHORTENED: &str = "StocklockRetentionStalled";
const STOCK_STORE: &str = "STOCKLOCK__STOCK_STORE__URL";

/// The seconds of a duration such as `5m`, which has one unit.
fn seconds(duration: &str) -> Option<u64> {
    let (number, unit) = duration.split_at_checked(duration.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * factor)
}

fn faster(seconds: u64) -> String {
    format!("{}ms", seconds * 1_000 / FASTER)
}

/// A rule file in which windows, `for` and the bounds of ages are shorter.
fn shortened(rules: &str) -> String {
    let mut text = String::new();
    for line in rules.lines() {
        let mut line = line.to_owned();
        if let Some((begin, duration)) = line.split_once("for: ") {
            let duration = seconds(duration).expect("a duration");
            line = format!("{begin}for: {}", faster(duration));
        } else if let Some((begin, rest)) = line.split_once('[')
            && let Some((window, end)) = rest.split_once(']')
            && let Some(window) = seconds(window)
        {
            line = format!("{begin}[{}]{end}", faster(window));
        } else if let Some((begin, bound)) = line.split_once("_seconds) > ") {
            let bound: u64 = bound.parse().expect("a bound in seconds");
            line = format!("{begin}_seconds) > {}", bound / FASTER);
        }
        text += &(line + "\n");
    }
    text
}

/// The alerts of a running Prometheus.
pub(crate) struct Alerts(Prometheus);

impl Alerts {
    pub(crate) async fn of(roles: &[(&str, &Role)]) -> Self {
        let rule_files: Vec<_> = rules().iter().map(|text| shortened(text)).collect();
        let alerts = Self(Prometheus::start(roles, &rule_files).await);
        alerts.0.has(&format!("sum(up) == {}", roles.len())).await;
        alerts
    }

    /// Waits until a query has a result.
    pub(crate) async fn see(&self, query: &str) {
        self.0.has(query).await;
    }

    /// The names of the alerts that fire.
    pub(crate) async fn firing(&self) -> BTreeSet<String> {
        let found = self.0.ask("alerts", &[]).await.expect("alerts");
        let alerts = found["alerts"].as_array().expect("a list");
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let names = firing.map(|alert| name_of(&alert["labels"]));
        names.filter(|name| name != NOT_SHORTENED).collect()
    }

    /// Waits until all of these alerts fire.
    pub(crate) async fn fire(&self, expected: &[&str]) {
        let begun = Instant::now();
        wait_for_within(2 * PATIENCE, async || {
            let firing = self.firing().await;
            let missing: Vec<_> = expected.iter().filter(|name| !firing.contains(**name)).collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("{missing:?} do not fire, only {firing:?}"))
            }
        })
        .await;
        println!("fire after {:?}: {expected:?}", begun.elapsed());
    }

    /// Waits until no alert fires, those of error budgets aside: they remember a fault for hours,
    /// which are minutes here.
    pub(crate) async fn resolve(&self) {
        self.resolve_but("no other").await;
    }

    /// Does the same, leaving out one more alert.
    async fn resolve_but(&self, other: &str) {
        let begun = Instant::now();
        wait_for_within(2 * PATIENCE, async || {
            let mut firing = self.firing().await;
            firing.retain(|name| !name.contains("Budget") && name != other);
            if firing.is_empty() { Ok(()) } else { Err(format!("{firing:?} still fire")) }
        })
        .await;
        println!("resolved after {:?}", begun.elapsed());
    }

    /// Fails the test if an alert fires while all is well.
    async fn are_silent(&self) {
        stays(Duration::from_secs(5), "no alert fires", async || self.firing().await.is_empty())
            .await;
    }
}

/// The name of an alert, with the value of the label that says what it is about.
fn name_of(labels: &Value) -> String {
    let name = labels["alertname"].as_str().expect("a name");
    let about = ["dependency", "role", "class"].iter().find_map(|label| labels[*label].as_str());
    about.map_or_else(|| name.to_owned(), |about| format!("{name} {about}"))
}

pub(crate) async fn roles(world: &World) -> (Role, Role, Role) {
    world.import(&[("a", 1_000_000)]);
    let (ingest, worker) = (world.start("ingest").await, world.start("worker").await);
    (ingest, worker, world.start("compensator").await)
}

pub(crate) async fn row_world() -> World {
    World::new(Database::MySql, Strategy::Row).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_raises_alerts_until_it_goes_on() {
    let world = row_world().await;
    let (ingest, worker, compensator) = roles(&world).await;
    let api = Api::of(&ingest);
    let completed = api.place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;
    alerts.are_silent().await;

    worker.freeze();
    api.place(&lines(&[("a", 1)])).await.is(202);
    world.cli(&["order", "fail", completed.order_id(), "--reason", "payment"]).succeeds();

    let expected = [
        "StocklockTargetDown",
        "StocklockRoleAbsent worker",
        "StocklockNoProgress",
        "StocklockLag",
        "StocklockLagHigh",
        "StocklockPendingOld",
        "StocklockReleasesOwed",
    ];
    alerts.fire(&expected).await;
    worker.thaw();
    alerts.resolve().await;
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_database_raises_alerts_until_it_answers() {
    let world = row_world().await;
    let (store, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    world.import(&[("a", 100)]);
    let ingest = world.start("ingest").await;
    let worker = world.start_with("worker", &[(STOCK_STORE, &url)]).await;
    let alerts = Alerts::of(&[("ingest", &ingest), ("worker", &worker)]).await;

    store.hang();
    let api = Api::of(&ingest);
    api.place(&lines(&[("a", 1)])).await.is(202);

    let expected = [
        "StocklockDependencyDown stock_store",
        "StocklockNotReady",
        "StocklockNoProgress",
        // Nobody started it.
        "StocklockRoleAbsent compensator",
    ];
    alerts.fire(&expected).await;
    store.mend();
    let compensator = world.start("compensator").await;
    // Prometheus does not know of the compensator.
    alerts.resolve_but("StocklockRoleAbsent compensator").await;
    world.settled().await;
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_that_are_away_raise_alerts_until_they_are_back() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let (proxies, urls) = proxies_of_masters(&world).await;
    world.import(&[("a", 1_000)]);
    let settings = [
        ("STOCKLOCK__REDIS__URLS", urls.join(",")),
        ("STOCKLOCK__LOCK__FALLBACK", "row".to_owned()),
    ];
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let (ingest, compensator) = (world.start("ingest").await, world.start("compensator").await);
    let worker = world.start_with("worker", &settings).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;
    let api = Api::of(&ingest);

    proxies[0].cut();
    alerts.fire(&["StocklockRedisMasterDown"]).await;
    proxies[1].cut();
    api.place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);

    alerts.fire(&["StocklockLockFallback", "StocklockDependencyDown redis"]).await;
    proxies.iter().for_each(Proxy::mend);
    // The worker leaves the fallback with a batch, once a majority answers.
    wait_for_within(PATIENCE, async || {
        api.place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);
        let lanes = worker.metric("stocklock_lock_fallback", "").await;
        if lanes == 0.0 { Ok(()) } else { Err(format!("{lanes} lanes are in the fallback")) }
    })
    .await;
    alerts.resolve().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_raises_alerts_until_it_is_back() {
    let world = row_world().await;
    let broker = BrokerProxy::before(&world.config.kafka.brokers).await;
    let (_, worker, compensator) = roles(&world).await;
    let settings =
        [("STOCKLOCK__KAFKA__BROKERS", &*broker.address), ("STOCKLOCK__INGEST__OUTBOX_MAX", "20")];
    let ingest = world.start_with("ingest", &settings).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;
    let api = Api::of(&ingest);

    broker.cut();
    wait_for_within(PATIENCE, async || {
        let answer = api.place(&lines(&[("a", 1)])).await;
        if answer.status == 503 { Ok(()) } else { Err("the outbox is not full") }
    })
    .await;
    for _ in 0..20 {
        api.place(&lines(&[("a", 1)])).await.is(503);
    }

    let expected = [
        "StocklockOutboxOld",
        "StocklockOutboxFull",
        "StocklockDependencyDown kafka",
        "StocklockIngestBudgetBurnFast",
    ];
    alerts.fire(&expected).await;
    broker.mend();
    world.settled().await;
    alerts.resolve().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_raise_alerts_until_their_lane_goes_on() {
    let world = row_world().await;
    let (ingest, worker, compensator) = roles(&world).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;
    let refuse = "CREATE TRIGGER refuses BEFORE INSERT ON order_outcomes FOR EACH ROW
                  SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not today'";
    let topic = &world.config.topics.orders;

    world.produce(topic, vec![(OrderId::generate(), b"poison".to_vec())]).await;
    alerts.fire(&["StocklockDeadLetters undecodable"]).await;
    alerts.resolve().await;
    world.tamper_with_stock(refuse).await;
    let api = Api::of(&ingest);
    let batch = format!("{}\n", json!({"lines": [{"product_id": "a", "quantity": 1}]}));
    api.place_batch(&batch.repeat(450)).await;

    alerts.fire(&["StocklockLaneHalted", "StocklockDeadLetters refused"]).await;
    world.tamper_with_stock("DROP TRIGGER refuses").await;
    // The orders that waited are decided late.
    alerts.fire(&["StocklockLatencyBudgetBurnSlow"]).await;
    // The dead-lettered orders stay pending until somebody replays them, as the run book says.
    world.cli(&["dlq", "replay", "--class", "refused"]).succeeds();
    alerts.resolve().await;
    assert_eq!(world.count_orders("PENDING").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_cannot_end_raises_an_alert_until_it_ends() {
    let world = row_world().await;
    let (ingest, worker, compensator) = roles(&world).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;
    let api = Api::of(&ingest);
    let mut order = lines(&[("a", 1)]);
    order["hold_seconds"] = json!(2);
    let held = api.place_and_wait(&order, 60).await.is(201);
    let mut rival =
        MySqlConnection::connect(world.config.order_store.url.expose()).await.expect("a store");

    // A session that someone has forgotten holds the order's row.
    sqlx::raw_sql("START TRANSACTION; SELECT order_id FROM orders FOR UPDATE")
        .execute(&mut rival)
        .await
        .expect("locked");
    alerts.fire(&["StocklockHoldsLate"]).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut rival).await.expect("rolled back");

    alerts.resolve().await;
    assert_eq!(api.becomes(held.order_id(), "CANCELLED").await["reason"], "EXPIRED");
}
