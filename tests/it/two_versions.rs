//! Processes of this version and of an earlier one, side by side on the same stores and topics.
//!
//! `STOCKLOCK_TEST_EARLIER` names a binary of an earlier version; `dev/earlier` builds one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::harness::{Api, Cli, Database, Role, Strategy, World, lines, wait_until};

const PRESENT: &str = env!("CARGO_BIN_EXE_stocklock");
const ROLES: [&str; 3] = ["ingest", "worker", "compensator"];
const SUPPLIED: i64 = 1_000_000;
/// The roles that change their version, one after the other. All mixes of the two versions come,
/// and in the end each role is of the earlier version again.
const CHANGES: [usize; 8] = [1, 2, 0, 2, 1, 2, 0, 2];

/// The three roles, and which of them are of the present version.
struct Fleet {
    world: World,
    earlier: PathBuf,
    /// The settings of the world that the earlier version knows.
    earlier_env: BTreeMap<String, String>,
    roles: [Role; 3],
    is_present: [bool; 3],
}

impl Fleet {
    /// Sets up the stores and the topics, and starts all roles, by the earlier version.
    async fn start(database: Database, earlier: PathBuf) -> Self {
        let world = World::without_setup(database, Strategy::Row).await;
        let earlier_env = known_settings(&earlier, &world.env);
        Cli::run_binary(&earlier, &earlier_env, &["setup"]).succeeds();
        world.import(&[("a", SUPPLIED), ("scarce", 1)]);
        let roles = ROLES.map(|role| Role::spawn_binary(&earlier, &earlier_env, role, &[]));
        for role in &roles {
            role.ready().await;
        }
        Self { world, earlier, earlier_env, roles, is_present: [false; 3] }
    }

    /// Replaces a role by its other version, as a rolling upgrade does: first the new process
    /// starts, then the old one stops.
    async fn change(&mut self, number: usize) {
        self.is_present[number] = !self.is_present[number];
        let (binary, env): (&Path, _) = if self.is_present[number] {
            (PRESENT.as_ref(), &self.world.env)
        } else {
            (&self.earlier, &self.earlier_env)
        };
        let next = Role::spawn_binary(binary, env, ROLES[number], &[]);
        next.ready().await;
        std::mem::replace(&mut self.roles[number], next).stop();
    }

    fn api(&self) -> Api {
        Api::of(&self.roles[0])
    }

    /// Fails the test unless orders are completed, refused, cancelled, held and confirmed.
    async fn check_orders(&self) {
        let (api, mix) = (self.api(), self.is_present);
        let order = api.place_and_wait(&lines(&[("a", 2)]), 60).await.is(201);
        api.place_and_wait(&lines(&[("scarce", 2)]), 60).await.is(409);
        api.request(order.order_id(), "cancel").await.is(200);
        let mut held = lines(&[("scarce", 1)]);
        held["hold_seconds"] = 600.into();
        held["reference"] = "r-1".into();
        let held = api.place_and_wait(&held, 60).await.is(201);
        assert_eq!(held.body["status"], "RESERVED", "{mix:?}");
        api.request(held.order_id(), "confirm").await.is(200);
        api.request(held.order_id(), "cancel").await.is(200);
        wait_until(&format!("the stock of cancelled orders is released: {mix:?}"), async || {
            self.world.available("scarce") == 1
        })
        .await;
    }
}

/// The settings that a binary knows. It refuses to start with others.
fn known_settings(binary: &Path, env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let listed = Cli::run_binary(binary, &BTreeMap::new(), &["--output", "json", "config"]);
    let listed = listed.succeeds().stdout();
    let names = listed.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let names: Vec<_> = names.map(|key| key["environment"].clone()).collect();
    let known = env.iter().filter(|(name, _)| names.contains(&Value::from(name.as_str())));
    known.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Places orders one after the other until it is told to stop. Answers how many.
fn keep_placing(api: Api, is_over: &Arc<AtomicBool>) -> JoinHandle<i64> {
    let is_over = Arc::clone(is_over);
    tokio::spawn(async move {
        let mut placed = 0;
        while !is_over.load(Ordering::Relaxed) {
            api.place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);
            placed += 1;
        }
        placed
    })
}

/// Upgrades role by role and rolls back, through all mixes, while orders arrive.
async fn upgrade_and_roll_back(database: Database) {
    let Some(earlier) = std::env::var_os("STOCKLOCK_TEST_EARLIER").filter(|path| !path.is_empty())
    else {
        eprintln!("NOT CHECKED: STOCKLOCK_TEST_EARLIER names no binary; dev/earlier builds one");
        return;
    };
    let mut fleet = Fleet::start(database, earlier.into()).await;
    fleet.check_orders().await;
    fleet.world.cli(&["setup"]).succeeds();
    fleet.check_orders().await;
    let mut placed = 0;

    for number in CHANGES {
        // A client reaches the ingest that stays.
        let is_over = Arc::default();
        let placing = (number != 0).then(|| keep_placing(fleet.api(), &is_over));
        fleet.change(number).await;
        is_over.store(true, Ordering::Relaxed);
        if let Some(placing) = placing {
            placed += placing.await.expect("each order is completed");
        }
        fleet.check_orders().await;
    }

    assert_eq!(fleet.is_present, [false; 3], "all roles are rolled back");
    assert!(placed > 0);
    fleet.world.settled().await;
    assert_eq!(fleet.world.available("a"), SUPPLIED - placed);
    fleet.world.verify();
    let verify = ["verify", "--settle", "60s"];
    Cli::run_binary(&fleet.earlier, &fleet.earlier_env, &verify).succeeds();
    for (role, name) in fleet.roles.into_iter().zip(ROLES) {
        assert!(!role.log().contains("dead-lettered"), "{name}:\n{}", role.log());
        role.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_run_side_by_side_on_mysql() {
    upgrade_and_roll_back(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_run_side_by_side_on_mariadb() {
    upgrade_and_roll_back(Database::MariaDb).await;
}
