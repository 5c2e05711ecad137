//! Clients watch orders by server-sent events.

use std::time::{Duration, Instant};

use chrono::Utc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sqlx::Row as _;
use stocklock::{
    domain::{OrderId, OrderStatus, ReportedStatus},
    store::NewOrder,
};
use tokio::time::timeout;

use crate::harness::{
    Api, Database, PATIENCE, Raw, Role, Server, Strategy, World, http_client, lines, new_order,
    on_each_database, wait_until_within,
};

const LEASE: Duration = Duration::from_secs(60);

on_each_database!(
    a_client_sees_each_state_of_an_order_once,
    a_client_that_comes_back_is_told_only_what_is_new,
    a_client_sees_what_another_replica_has_done,
);

/// A stream of events, as a client reads it.
struct Events {
    response: Response,
    unread: String,
}

/// One event.
#[derive(Debug, PartialEq)]
struct Event {
    id: String,
    data: Value,
}

/// Begins to watch an order. `last`: the id of the last event that the client has.
async fn ask(client: &Client, ingest: &Role, id: &str, last: Option<&str>) -> Response {
    let mut request = client.get(format!("{}/v1/orders/{id}/events", ingest.http));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    request.send().await.expect("an answer")
}

impl Events {
    async fn of(ingest: &Role, id: &str, last: Option<&str>) -> Self {
        Self::by(&http_client(), ingest, id, last).await
    }

    /// The same by a client that the caller shares.
    async fn by(client: &Client, ingest: &Role, id: &str, last: Option<&str>) -> Self {
        let response = ask(client, ingest, id, last).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, unread: String::new() }
    }

    /// The next event. `None` if the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.unread.find("\n\n") {
                let block: String = self.unread.drain(..end + 2).collect();
                match parse(block.trim_end()) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("an event");
            let chunk = chunk.expect("no reset")?;
            self.unread += std::str::from_utf8(&chunk).expect("text");
        }
    }

    /// The id of the next event.
    async fn next_id(&mut self) -> Option<String> {
        self.next().await.map(|event| event.id)
    }
}

/// `None` for a comment.
fn parse(block: &str) -> Option<Event> {
    let field =
        |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    if block.lines().all(|line| line.starts_with(':')) {
        return None;
    }
    assert_eq!(field("event"), Some("status"), "{block}");
    let data = serde_json::from_str(field("data").expect("data")).expect("JSON");
    Some(Event { id: field("id").expect("an id").to_owned(), data })
}

/// Places an order of one unit of `a` that is held. Returns its id.
async fn place_held(api: &Api) -> String {
    let mut order = lines(&[("a", 1)]);
    order["hold_seconds"] = json!(600);
    order["reference"] = json!("cart");
    api.place(&order).await.is(202).order_id().to_owned()
}

async fn a_client_sees_each_state_of_an_order_once(world: World) {
    world.import(&[("a", 2)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let (kept, given_up) = (place_held(&api).await, place_held(&api).await);
    let refused = api.place(&lines(&[("a", 3)])).await.is(202).order_id().to_owned();
    let mut of_kept = Events::of(&ingest, &kept, None).await;
    let mut of_given_up = Events::of(&ingest, &given_up, None).await;
    let mut of_refused = Events::of(&ingest, &refused, None).await;
    let event = |id: &str, status: &str| {
        let data = json!({"order_id": id, "status": status, "reference": "cart"});
        Event { id: status.to_owned(), data }
    };

    let first = of_kept.next().await.expect("an event");
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let reserved = of_kept.next().await.expect("an event");
    let shown = api.get(&format!("/v1/orders/{kept}")).await.is(200).body;
    api.request(&kept, "confirm").await.is(200);
    let (last, end) = (of_kept.next().await, of_kept.next().await);
    let before = [of_given_up.next_id().await, of_given_up.next_id().await];
    api.request(&given_up, "cancel").await.is(200);
    let cancelled = [of_given_up.next().await, of_given_up.next().await];
    let failed = [of_refused.next_id().await, of_refused.next_id().await];

    assert_eq!(first, event(&kept, "PENDING"));
    assert_eq!((reserved.id.as_str(), &reserved.data["status"]), ("RESERVED", &json!("RESERVED")));
    assert_eq!(reserved.data["expires_at"], shown["expires_at"]);
    assert_eq!((last, end), (Some(event(&kept, "COMPLETED")), None));
    assert_eq!(before, ["PENDING", "RESERVED"].map(|id| Some(id.to_owned())));
    assert_eq!(cancelled, [Some(event(&given_up, "CANCELLED")), None]);
    assert_eq!(failed, ["PENDING", "FAILED"].map(|id| Some(id.to_owned())));
}

async fn a_client_that_comes_back_is_told_only_what_is_new(world: World) {
    world.import(&[("a", 1)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let id = place_held(&api).await;
    api.becomes(&id, "RESERVED").await;

    let stale = Events::of(&all, &id, Some("PENDING")).await.next_id().await;
    let unknown = Events::of(&all, &id, Some("nonsense")).await.next_id().await;
    let mut knows = Events::of(&all, &id, Some("RESERVED")).await;
    api.request(&id, "confirm").await.is(200);
    let new = [knows.next_id().await, knows.next_id().await];
    let mut late = Events::of(&all, &id, Some("RESERVED")).await;
    let late = [late.next_id().await, late.next_id().await];
    let mut first = Events::of(&all, &id, None).await;
    let first = [first.next_id().await, first.next_id().await];
    let over = ask(&http_client(), &all, &id, Some("COMPLETED")).await;

    assert_eq!((stale.as_deref(), unknown.as_deref()), (Some("RESERVED"), Some("RESERVED")));
    let completed = [Some("COMPLETED".to_owned()), None];
    assert_eq!([new, late, first], [completed.clone(), completed.clone(), completed]);
    assert_eq!(over.status(), 204);
    assert_eq!(over.text().await.expect("a body"), "");
    for unknown in [&OrderId::generate().to_string(), "1", "%FF"] {
        api.get(&format!("/v1/orders/{unknown}/events")).await.problem(404);
    }
}

async fn a_client_sees_what_another_replica_has_done(world: World) {
    world.import(&[("a", 1)]);
    let (one, other) = (world.start("ingest").await, world.start("ingest").await);
    let id = place_held(&Api::of(&one)).await;
    let mut events = Events::of(&one, &id, Some("PENDING")).await;

    Api::of(&other).request(&id, "cancel").await.is(200);

    let (begun, seen) = (Instant::now(), events.next_id().await);
    assert_eq!(seen.as_deref(), Some("CANCELLED"));
    assert!(begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
}

async fn on_mysql() -> World {
    World::new(Database::MySql, Strategy::Row).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_the_streams() {
    let world = on_mysql().await;
    world.import(&[("a", 1)]);
    let ingest = world.start("ingest").await;
    let id = place_held(&Api::of(&ingest)).await;
    let mut events = Events::of(&ingest, &id, None).await;
    assert_eq!(events.next_id().await.as_deref(), Some("PENDING"));

    ingest.terminate();
    let end = events.next().await;

    assert_eq!(end, None);
    let log = ingest.ended(0).await;
    assert!(!log.contains("unfinished"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_stream_has_comments() {
    let world = on_mysql().await;
    world.import(&[("a", 1)]);
    let ingest = world.start("ingest").await;
    let id = place_held(&Api::of(&ingest)).await;
    let mut events = Events::of(&ingest, &id, Some("PENDING")).await;

    let chunk = timeout(PATIENCE, events.response.chunk()).await.expect("a comment");

    assert_eq!(chunk.expect("no reset").as_deref(), Some(b":\n\n".as_slice()));
}

/// Saves pending orders. Returns their ids.
async fn save(world: &World, count: usize) -> Vec<OrderId> {
    let orders: Vec<NewOrder> = (0..count).map(|_| new_order()).collect();
    world.order_store().place(&orders, LEASE).await.expect("placed");
    orders.iter().map(|order| order.order_id).collect()
}

/// Completes orders, as a worker reports it.
async fn complete(world: &World, ids: &[OrderId]) {
    let now = Utc::now();
    let completed = |order_id: &OrderId| OrderStatus {
        order_id: *order_id,
        status: ReportedStatus::Completed,
        source: "worker".to_owned(),
        occurred_at: now,
        reference: None,
    };
    let statuses: Vec<_> = ids.iter().map(completed).collect();
    let horizon = world.config.retention.horizon;
    world.order_store().apply(&statuses, now, horizon, LEASE).await.expect("applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_watching_clients_share_one_query() {
    const CLIENTS: usize = 2_000;
    const QUIET: Duration = Duration::from_secs(4);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit");
    let server = Server::start(Database::MySql, &[]).await;
    let world = World::on(&server.url(), Strategy::Row).await;
    world.cli(&["setup"]).succeeds();
    let ingest = world.start("ingest").await;
    let ids = save(&world, CLIENTS / 2).await;
    let (client, mut clients) = (http_client(), Vec::new());
    for chunk in [ids.clone(), ids.clone()].concat().chunks(50) {
        let watching = chunk.iter().map(async |id| {
            let mut events = Events::by(&client, &ingest, &id.to_string(), None).await;
            assert_eq!(events.next_id().await.as_deref(), Some("PENDING"));
            events
        });
        clients.extend(futures::future::join_all(watching).await);
    }
    let mut admin = server.admin().await;
    let mut selects = async || -> u64 {
        let sql = "SHOW GLOBAL STATUS LIKE 'Com_select'";
        let row = sqlx::raw_sql(sql).fetch_one(&mut admin).await.expect("the status");
        row.try_get::<String, _>("Value").expect("a value").parse().expect("a number")
    };

    let before = selects().await;
    // The time itself is tested: how many statements there are while nothing happens.
    tokio::time::sleep(QUIET).await;
    let asked = selects().await - before;
    complete(&world, &ids).await;
    let ends =
        clients.iter_mut().map(async |events| [events.next_id().await, events.next_id().await]);
    let ends = futures::future::join_all(ends).await;

    // 1,000 orders are two queries, four times a second. Ingest has some queries of its own.
    assert!((4..150).contains(&asked), "{asked} queries in {QUIET:?}");
    assert_eq!(ends.len(), CLIENTS);
    assert!(ends.iter().all(|end| *end == [Some("COMPLETED".to_owned()), None]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_clients_take_half_of_the_connections_at_most() {
    // 160 files are reserved and 16 are for the databases, so 64 are left for connections.
    const FILES: u32 = 240;
    const CLIENTS: usize = 32;
    let world = on_mysql().await;
    world.import(&[("a", 9)]);
    let ingest = Role::spawn_with_files(&world.env, "ingest", FILES);
    ingest.ready().await;
    let api = Api::of(&ingest);
    let id = place_held(&api).await;
    let request = format!("GET /v1/orders/{id}/events HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Raw::connect(&ingest.http).await;
        client.send(request.as_bytes()).await;
        clients.push(client);
    }
    let path = format!("/v1/orders/{id}/events");
    ingest
        .shows("stocklock_http_requests_total", r#"{id}/events",status="200""#, |n| n == 32.0)
        .await;

    // The clients read nothing, and hold up nobody.
    let refused = api.get(&path).await.problem(503);
    api.place(&lines(&[("a", 1)])).await.is(202);
    clients.pop();
    let client = http_client();

    assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{refused:?}");
    let is_admitted = async || ask(&client, &ingest, &id, None).await.status() == 200;
    let soon = Duration::from_secs(10);
    wait_until_within(soon, "the place of a client that has gone is free", is_admitted).await;
}
