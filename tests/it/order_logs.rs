//! One order, followed through the logs of all roles.

use serde_json::{Value, json};

use crate::harness::{Api, Role, World, lines, on_each_database, wait_until};

const JSON: [(&str, &str); 1] = [("STOCKLOCK__LOG__FORMAT", "json")];
const ORDER_LINES: &str = "info,stocklock::order=debug";

on_each_database!(
    the_lines_of_an_order_show_its_way_through_all_roles,
    a_hold_and_a_refusal_are_followed_too,
);

/// Three roles, each with its log in JSON.
struct Roles {
    ingest: Role,
    worker: Role,
    compensator: Role,
}

impl Roles {
    async fn start(world: &World) -> Self {
        Self {
            ingest: world.start_with("ingest", &JSON).await,
            worker: world.start_with("worker", &JSON).await,
            compensator: world.start_with("compensator", &JSON).await,
        }
    }

    fn all(&self) -> [&Role; 3] {
        [&self.ingest, &self.worker, &self.compensator]
    }

    fn change_filters(&self, world: &World, args: &[&str]) {
        for role in self.all() {
            let admin = role.admin.replace("http://", "admin.listen=");
            let mut all = vec!["log-filter", "--timeout", "30s", "--set", &admin];
            all.extend(args);
            world.cli(&all).succeeds();
        }
    }
}

/// The lines of an order in the log of a role.
fn lines_of(role: &Role, order_id: &str) -> Vec<Value> {
    let log = role.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines
        .filter(|line| line["target"] == "stocklock::order" && line["order_id"] == order_id)
        .collect()
}

/// What a line says, without its time and its place.
fn step(line: &Value) -> Value {
    let keys = ["message", "what", "outcome", "reason", "effect", "state"];
    let found = keys.iter().filter(|key| line[**key].is_string());
    Value::Array(found.map(|key| line[*key].clone()).collect())
}

fn steps(lines: &[Value]) -> Vec<Value> {
    lines.iter().map(step).collect()
}

/// Whether a step begins with these words: more may follow.
fn begins_with(step: &Value, expected: &Value) -> bool {
    let words = |value: &Value| value.as_array().cloned().unwrap_or_default();
    words(step).starts_with(&words(expected))
}

/// Waits until the log of a role has this line of an order.
async fn has_step(role: &Role, order_id: &str, expected: Value) {
    wait_until(&format!("{expected} is logged"), async || {
        let steps = steps(&lines_of(role, order_id));
        steps.iter().any(|step| begins_with(step, &expected))
    })
    .await;
}

/// The place of a message, as the line of a role has it.
fn place(lines: &[Value], number: usize) -> [&Value; 3] {
    ["topic", "partition", "offset"].map(|key| &lines[number][key])
}

async fn the_lines_of_an_order_show_its_way_through_all_roles(world: World) {
    world.import(&[("a", 10)]);
    let roles = Roles::start(&world).await;
    let api = Api::of(&roles.ingest);
    let unseen = api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    roles.change_filters(&world, &[ORDER_LINES]);

    let order = api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned();
    has_step(&roles.compensator, &order, json!(["change applied", "moved", "COMPLETED"])).await;
    has_step(&roles.worker, &order, json!(["message published"])).await;
    has_step(&roles.ingest, &order, json!(["message published"])).await;
    let [ingest, worker, compensator] = roles.all().map(|role| lines_of(role, &order));
    api.request(&order, "cancel").await.is(200);
    has_step(&roles.compensator, &order, json!(["change applied", "release done"])).await;
    roles.change_filters(&world, &["--reset"]);
    let unseen_too = api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    world.settled().await;

    assert_eq!(
        steps(&ingest),
        [json!(["order accepted"]), json!(["order saved"]), json!(["message published"])]
    );
    assert_eq!(
        steps(&worker),
        [
            json!(["message received", "PLACED"]),
            json!(["order decided", "COMPLETED"]),
            json!(["message published"]),
        ]
    );
    assert_eq!(
        steps(&compensator),
        [json!(["message received", "COMPLETED"]), json!(["change applied", "moved", "COMPLETED"]),]
    );
    assert_eq!(place(&ingest, 2), place(&worker, 0), "the event has one place on its topic");
    assert_eq!(place(&worker, 2), place(&compensator, 0), "and so has the status");
    assert_eq!(worker[0]["topic"], world.config.topics.orders);
    assert_eq!(ingest[0]["lines"], 1);
    assert_eq!(ingest[0]["level"], "DEBUG");
    let cancelled = steps(&lines_of(&roles.ingest, &order));
    assert!(cancelled.contains(&json!(["change applied", "moved", "CANCELLED"])), "{cancelled:?}");
    let released = steps(&lines_of(&roles.worker, &order));
    assert!(released.contains(&json!(["message received", "RELEASE"])), "{released:?}");
    assert!(released.contains(&json!(["order decided", "RELEASED"])), "{released:?}");
    for silent in [unseen.order_id(), unseen_too.order_id()] {
        for role in roles.all() {
            assert_eq!(lines_of(role, silent), [] as [Value; 0], "the lines are off");
        }
    }
    world.verify();
}

async fn a_hold_and_a_refusal_are_followed_too(world: World) {
    world.import(&[("a", 1)]);
    let roles = Roles::start(&world).await;
    let api = Api::of(&roles.ingest);
    roles.change_filters(&world, &[ORDER_LINES, "--for", "10m"]);
    let mut held = lines(&[("a", 1)]);
    held["hold_seconds"] = 1.into();

    let held = api.place_and_wait(&held, 30).await.is(201).order_id().to_owned();
    let refused = api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(409).order_id().to_owned();

    let refusal = json!(["order decided", "FAILED", "INSUFFICIENT_STOCK"]);
    has_step(&roles.worker, &refused, refusal).await;
    has_step(&roles.compensator, &refused, json!(["change applied", "moved", "FAILED"])).await;
    has_step(&roles.worker, &held, json!(["order decided", "RESERVED"])).await;
    has_step(&roles.compensator, &held, json!(["change applied", "moved", "RESERVED"])).await;
    has_step(&roles.compensator, &held, json!(["change applied", "expired", "CANCELLED"])).await;
    has_step(&roles.compensator, &held, json!(["change applied", "release done"])).await;
    world.settled().await;
    world.verify();
}
