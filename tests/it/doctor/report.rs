//! What the doctor prints, how it ends, and how long it takes.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Diagnosis, fault, shell};
use crate::harness::{Database, Proxy, Registry, Strategy, World, on_each_database};

on_each_database!(healthy_servers_have_nothing_wrong,);

async fn healthy_servers_have_nothing_wrong(mut world: World) {
    world.env.insert("STOCKLOCK__LOCK__STRATEGY".to_owned(), "redlock".to_owned());

    let well = Diagnosis::with_status(&world, &[], 0);

    assert_eq!((well.count("wrong"), well.count("unreachable")), (0, 0));
    for dependency in ["process", "order_store", "stock_store", "kafka", "redis"] {
        let is_of = |finding: &&Value| finding["dependency"] == dependency;
        let found: Vec<_> = well.findings().iter().filter(is_of).collect();
        assert!(!found.is_empty(), "nothing of {dependency}");
        for finding in found {
            let is_fine = finding["verdict"] == "ok";
            assert_eq!(finding["remedy"].is_null(), is_fine, "{finding}");
            assert!(is_fine || finding["remedy"]["kind"].is_string(), "{finding}");
        }
    }
    let text = world.cli(&["doctor", "--all"]).succeeds().stdout();
    assert!(text.contains("0 wrong, 0 unreachable"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("ok ")), "{text}");
    assert!(!text.contains("stocklock:stocklock@"), "a password is shown: {text}");
    // The masters keep no append-only file, which is a warning.
    world.cli(&["doctor", "--strict"]).exits(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_asked_for_what_it_needs_alone() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;

    let compensator = Diagnosis::with_status(&world, &["--role", "compensator"], 0);
    let worker = Diagnosis::with_status(&world, &["--role", "worker"], 0);

    let has = |diagnosis: &Diagnosis, dependency: &str| {
        diagnosis.findings().iter().any(|finding| finding["dependency"] == dependency)
    };
    let of = |diagnosis: &Diagnosis| {
        ["order_store", "stock_store", "redis"].map(|name| has(diagnosis, name))
    };
    // Retention's lease.
    assert_eq!(of(&compensator), [true, false, true]);
    assert_eq!(of(&worker), [false, true, true]);
    world.cli(&["doctor", "--role", "cook"]).exits(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependencies_that_are_away_or_hang_hide_no_other_one() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    let key = "STOCKLOCK__STOCK_STORE__URL";
    let (proxy, hanging) = Proxy::before(&world.env[key]).await;
    proxy.hang();
    world.env.insert(key.to_owned(), hanging);
    world.env.insert("STOCKLOCK__KAFKA__BROKERS".to_owned(), "127.0.0.1:9".to_owned());
    let begun = Instant::now();

    let ill = Diagnosis::with_status(&world, &[], 2);

    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    let unreachable = ill.faults("reachable");
    let of: Vec<_> = unreachable.iter().map(|finding| &finding["dependency"]).collect();
    assert!(of.contains(&&json!("stock_store")) && of.contains(&&json!("kafka")), "{of:?}");
    assert!(
        unreachable.iter().any(|one| one["text"].to_string().contains("no answer within 5 s")),
        "{unreachable:?}"
    );
    assert!(ill.faults("privileges").is_empty(), "the order store is looked at");
    assert!(
        ill.findings().iter().any(|finding| {
            finding["dependency"] == "order_store" && finding["check"] == "privileges"
        }),
        "the order store is looked at"
    );
    drop(world);
}

/// Runs the doctor behind a line of the shell.
fn doctor_behind(world: &World, line: &str) -> Output {
    let binary = env!("CARGO_BIN_EXE_stocklock");
    let script = format!("{line}\nexec {binary} --output json doctor --role ingest");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).envs(&world.env);
    command.output().expect("sh runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_open_files_are_named_and_mended() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let open_files = |output: &Output| {
        let report = serde_json::from_slice(&output.stdout).expect("JSON");
        Diagnosis { report }.lines_if_any(&fault("open_files", "wrong", "too few for the pools"))
    };

    let ill = doctor_behind(&world, "ulimit -n 185");

    assert_eq!(ill.status.code(), Some(1));
    let lines = open_files(&ill);
    assert_eq!(lines.len(), 1, "{}", String::from_utf8_lossy(&ill.stdout));
    let line = lines.first().expect("a line");
    let wanted = line.strip_prefix("LimitNOFILE=").and_then(|rest| rest.split(' ').next());
    let limit = format!("ulimit -n {}", wanted.expect(line));
    assert!(open_files(&doctor_behind(&world, &limit)).is_empty(), "not mended by {line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_without_schemas_or_rules_is_named_and_mended() {
    let registry = Registry::shared().await;
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.env.insert("STOCKLOCK__SCHEMA_REGISTRY__URL".to_owned(), registry.url());
    let (missing, lax) = (
        fault("subjects", "wrong", "lacks the schema"),
        fault("compatibility", "warning", "has the compatibility NONE"),
    );

    let lines = Diagnosis::with_status(&world, &["--role", "compensator"], 1).lines(&missing);
    assert_eq!(lines.first().map(String::as_str), Some("stocklock setup"));
    world.cli(&["setup"]).succeeds();
    let subject = format!("{}-value", world.config.topics.orders);
    shell(&format!(
        "curl -sf -X PUT -H 'Content-Type: application/json' \
         -d '{{\"compatibility\": \"NONE\"}}' {}/config/{subject}",
        registry.url()
    ));
    let ill = Diagnosis::with_status(&world, &["--role", "compensator"], 0);
    ill.is_free_of(&[missing]);
    for line in ill.lines(&lax) {
        shell(&line);
    }

    Diagnosis::with_status(&world, &["--role", "compensator"], 0).is_free_of(&[missing, lax]);
}
