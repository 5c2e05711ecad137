//! Connections that others could read or divert are warned of once, by the role or command that
//! uses them.

use std::collections::BTreeMap;

use crate::harness::{Cli, Database, Role, Strategy, World};

const ORDERS: &str = "order_store.url";
const STOCK: &str = "stock_store.url";
const REDIS: &str = "redis.urls";
/// In the order in which they are warned of.
const ALL: [&str; 3] = [ORDERS, STOCK, REDIS];

/// The settings of a world whose databases have an address that is no loopback, and leads here all
/// the same. No master has the name that the settings have.
fn exposed(world: &World) -> BTreeMap<String, String> {
    let mut env = world.env.clone();
    for store in ["ORDER_STORE", "STOCK_STORE"] {
        let url = env[&format!("STOCKLOCK__{store}__URL")].replace("127.0.0.1", "0.0.0.0");
        env.insert(format!("STOCKLOCK__{store}__URL"), url);
    }
    let masters = ["a", "b", "c"].map(|name| format!("redis://u:p@{name}.invalid:6379"));
    env.insert("STOCKLOCK__REDIS__URLS".to_owned(), masters.join(","));
    env
}

/// The same with the warnings silenced.
fn silenced(mut env: BTreeMap<String, String>) -> BTreeMap<String, String> {
    for section in ["ORDER_STORE", "STOCK_STORE", "REDIS"] {
        env.insert(format!("STOCKLOCK__{section}__INSECURE_TLS"), "true".to_owned());
    }
    env
}

/// The keys that the warnings in a text name, line by line. Fails the test unless each warning
/// names the remedy and what silences it.
#[track_caller]
fn warned_of(text: &str, mark: &str) -> Vec<&'static str> {
    let warnings = text.lines().filter(|line| line.contains(mark) && line.contains("insecure_tls"));
    let keys = warnings.map(|line| {
        let remedy = ["ssl-mode=VERIFY_IDENTITY&ssl-ca=", "rediss://"];
        assert!(remedy.iter().any(|remedy| line.contains(remedy)), "no remedy: {line}");
        let key = ALL.into_iter().find(|key| line.contains(key));
        key.unwrap_or_else(|| panic!("no key: {line}"))
    });
    keys.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_warns_once_of_the_insecure_connections_it_uses() {
    let world = World::without_setup(Database::MySql, Strategy::Redlock).await;
    let exposed = exposed(&world);

    for (role, keys) in [
        ("ingest", &[ORDERS, STOCK][..]),
        ("worker", &[STOCK, REDIS]),
        ("compensator", &[ORDERS, REDIS]),
        ("all", &ALL),
    ] {
        let running = Role::spawn(&exposed, role, &[]);
        running.listening().await;
        assert_eq!(warned_of(&running.log(), "WARN"), keys, "{role}");
        running.stop();
    }

    for quiet in [silenced(exposed), world.env.clone()] {
        let running = Role::spawn(&quiet, "all", &[]);
        running.listening().await;
        assert!(!running.log().contains("insecure"), "{}", running.log());
        running.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_warn_of_insecure_connections_and_do_their_work() {
    let world = World::without_setup(Database::MySql, Strategy::Redlock).await;
    let (exposed, quiet) = (exposed(&world), silenced(exposed(&world)));

    let checked = Cli::run(&exposed, &["config", "--check"]).succeeds();
    assert_eq!(warned_of(&checked.stderr(), "WARNING"), ALL);
    let checked = Cli::run(&exposed, &["--output", "json", "config", "--check"]).succeeds();
    assert_eq!(checked.json()["warnings"].as_array().expect("warnings").len(), ALL.len());
    let set_up = Cli::run(&exposed, &["setup"]).succeeds();
    assert_eq!(warned_of(&set_up.stderr(), "WARNING"), [ORDERS, STOCK]);
    let found = Cli::run(&exposed, &["doctor"]).stdout();
    let lines = found.replace("\n            mend:", " mend:");
    assert_eq!(warned_of(&lines, "encryption"), ALL);

    for env in [&quiet, &world.env] {
        assert!(Cli::run(env, &["config", "--check"]).succeeds().stderr().is_empty());
        let found = Cli::run(env, &["doctor"]).stdout();
        assert!(warned_of(&found, "encryption").is_empty(), "{found}");
    }
}
