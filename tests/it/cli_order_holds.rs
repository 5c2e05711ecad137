//! `stocklock order`: holds, changes, repetitions and watches, against the running roles.

use std::{
    io::{BufRead as _, BufReader, Lines, Read as _},
    path::Path,
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use stocklock_servers::stocklock_command;

use crate::harness::{Cli, Database, Proxy, Strategy, World};

/// A world whose commands reach its roles.
async fn world() -> (World, crate::harness::Role) {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let all = world.start("all").await;
    world.env.insert("STOCKLOCK__CLIENT__URL".to_owned(), all.http.clone());
    (world, all)
}

fn order(world: &World, args: &[&str]) -> Cli {
    world.cli(&[&["--output", "json", "order"], args].concat())
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name}: {value}")).to_owned()
}

/// Places an order for two units of the product that holds them for a time. Returns its id.
fn hold(world: &World, hold: &str) -> String {
    let placed = order(world, &["place", "a=2", "--hold", hold, "--wait", "30s"]).succeeds().json();
    assert_eq!(text(&placed, "status"), "RESERVED", "{placed}");
    assert_eq!(world.available("a"), 3);
    text(&placed, "order_id")
}

/// A running `stocklock order watch`. It is killed when it is dropped.
struct Watcher {
    child: Child,
    printed: Lines<BufReader<ChildStdout>>,
}

impl Watcher {
    fn of(world: &World, args: &[&str]) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_stocklock"));
        let mut child = stocklock_command(binary, &world.env)
            .args(["--output", "json", "order", "watch"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let printed = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, printed }
    }

    /// The next change: its status and its reason.
    fn next(&mut self) -> Option<(String, String)> {
        let line = self.printed.next()?.expect("a line");
        let change: Value = serde_json::from_str(&line).expect("JSON");
        Some((text(&change, "status"), change["reason"].as_str().unwrap_or_default().to_owned()))
    }

    /// Fails the test unless it prints these statuses next, ends, and has this exit status. Returns
    /// what it printed on standard error.
    fn ends(mut self, statuses: &[&str], exit_status: i32) -> String {
        for status in statuses {
            assert_eq!(self.next().expect("a change").0, *status);
        }
        assert_eq!(self.next(), None);
        let mut complaints = String::new();
        let mut stderr = self.child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut complaints).expect("a text");
        assert_eq!(self.child.wait().expect("it ends").code(), Some(exit_status), "{complaints}");
        complaints
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _has_ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_held_extended_confirmed_and_watched() {
    let (world, _all) = world().await;
    let id = hold(&world, "15m");
    let mut watcher = Watcher::of(&world, &[&id, "--exit-status"]);
    assert_eq!(watcher.next().expect("a change").0, "RESERVED");
    let before = text(&order(&world, &["show", &id]).succeeds().json(), "expires_at");

    let extended = order(&world, &["extend", &id, "1h"]).succeeds().json();
    let confirmed = order(&world, &["confirm", &id]).succeeds().json();

    assert!(text(&extended, "expires_at") > before, "{extended} after {before}");
    assert_eq!(text(&confirmed, "status"), "COMPLETED");
    watcher.ends(&["COMPLETED"], 0);
    order(&world, &["confirm", &id]).succeeds();
    let refused = order(&world, &["extend", &id, "1h"]).exits(1).json();
    assert_eq!(text(&refused, "order_status"), "COMPLETED");
    assert_eq!(world.available("a"), 3);
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_nobody_confirms_expires_before_the_watcher() {
    let (world, _all) = world().await;
    let (begun, id) = (Instant::now(), hold(&world, "2s"));
    let mut watcher = Watcher::of(&world, &[&id, "--exit-status"]);

    let changes = [watcher.next(), watcher.next()].map(|change| change.expect("a change"));

    assert!(begun.elapsed() >= Duration::from_secs(2));
    let owned = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    assert_eq!(changes, [owned("RESERVED", ""), owned("CANCELLED", "EXPIRED")]);
    watcher.ends(&[], 1);
    let refused = order(&world, &["confirm", &id]).exits(1).json();
    assert_eq!(
        (text(&refused, "order_status"), text(&refused, "reason")),
        owned("CANCELLED", "EXPIRED")
    );
    world.verify();
    assert_eq!(world.available("a"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_order_returns_its_stock_and_an_unknown_one_is_no() {
    let (world, _all) = world().await;
    let id = hold(&world, "15m");
    let unknown = uuid::Uuid::now_v7().to_string();

    let cancelled = order(&world, &["cancel", &id]).succeeds().json();

    assert_eq!(text(&cancelled, "status"), "CANCELLED");
    order(&world, &["cancel", &id]).succeeds();
    order(&world, &["confirm", &id]).exits(1);
    Watcher::of(&world, &[&id]).ends(&["CANCELLED"], 0);
    for args in [&["cancel", &unknown][..], &["confirm", &unknown], &["extend", &unknown, "1s"]] {
        order(&world, args).exits(1);
    }
    order(&world, &["watch", &unknown]).exits(1);
    order(&world, &["extend", &id, "1000d"]).exits(1);
    world.verify();
    assert_eq!(world.available("a"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_run_twice_with_one_key_or_id_makes_one_order() {
    let (world, _all) = world().await;
    let own_id = uuid::Uuid::now_v7().to_string();

    for name in [["--idempotency-key", "k"], ["--id", &own_id]] {
        let place =
            |units| [&["place", units, "--wait", "30s", "--customer", "c"], &name[..]].concat();
        let first = order(&world, &place("a=2")).succeeds().json();
        let second = order(&world, &place("a=2")).succeeds().json();
        order(&world, &place("a=1")).exits(1);

        assert_eq!(first["order_id"], second["order_id"]);
        assert_eq!((&first["replayed"], &second["replayed"]), (&Value::Null, &Value::Bool(true)));
        let shown = order(&world, &["show", &text(&first, "order_id")]).succeeds().json();
        assert_eq!(text(&shown, "customer_id"), "c");
    }

    assert_eq!(world.count_orders("COMPLETED").await, 2);
    assert_eq!(world.available("a"), 1);
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_survives_a_killed_ingest() {
    let (mut world, _all) = world().await;
    let id = hold(&world, "15m");
    let first = world.start("ingest").await;
    let (proxy, url) = Proxy::before(&first.http).await;
    let direct = world.env.insert("STOCKLOCK__CLIENT__URL".to_owned(), url).expect("the other one");
    let mut watcher = Watcher::of(&world, &[&id]);
    assert_eq!(watcher.next().expect("a change").0, "RESERVED");

    first.kill();
    world.env.insert("STOCKLOCK__CLIENT__URL".to_owned(), direct);
    order(&world, &["confirm", &id]).succeeds();
    let second = world.start("ingest").await;
    proxy.lead_to(second.http.trim_start_matches("http://"));

    let complaints = watcher.ends(&["COMPLETED"], 0);
    assert!(complaints.contains("connection lost"), "it lost no connection: {complaints}");
}
