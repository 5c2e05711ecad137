//! `stocklock probe`: what an image's health check asks, and logs as machines read them.

use serde_json::Value;

use crate::harness::{Cli, Database, Role, Strategy, World};

fn probe(world: &World, role: &Role, what: &str) -> Cli {
    let port = role.admin.rsplit(':').next().expect("a port");
    // The role of an image listens on every address.
    let admin = format!("admin.listen=0.0.0.0:{port}");
    world.cli(&["probe", what, "--timeout", "30s", "--set", &admin])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_answers_what_the_admin_address_answers() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let ready = world.start("worker").await;
    assert_eq!(probe(&world, &ready, "ready").succeeds().stdout(), "ok\n");
    assert_eq!(probe(&world, &ready, "live").succeeds().stdout(), "ok\n");
    ready.stop();

    let nowhere =
        [("STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9"), ("STOCKLOCK__LOG__FORMAT", "json")];
    let waiting = Role::spawn(&world.env, "all", &nowhere);
    waiting.listening().await;
    assert_eq!(probe(&world, &waiting, "live").succeeds().stdout(), "ok\n");
    let complaint = probe(&world, &waiting, "ready").exits(1).stdout();
    assert!(!complaint.trim().is_empty(), "it says why");

    let log = waiting.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let started = lines.iter().find(|line| line["message"] == "started").expect("a line");
    assert_eq!(
        started["roles"],
        serde_json::json!(["Ingest", "Worker", "Compensator"]),
        "{started}"
    );
    assert!(started["timestamp"].is_string() && started["level"] == "INFO", "{started}");
}
