//! Faults of the Redis masters, and of their users.

use std::time::Duration;

use super::{Diagnosis, Fault, fault, shell};
use crate::harness::{Database, Masters, Proxy, Strategy, World, wait_until};

const URLS: &str = "STOCKLOCK__REDIS__URLS";
const WORKER: [&str; 2] = ["--role", "worker"];

async fn world_of(masters: &Masters) -> World {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    masters.serve(&mut world);
    world
}

/// Runs the lines of each fault in a shell, and fails the test unless the faults are gone.
fn mend(world: &World, ill: &Diagnosis, faults: &[Fault]) {
    for line in faults.iter().flat_map(|fault| ill.lines(fault)) {
        assert!(line.starts_with("redis-cli -h 127.0.0.1 -p "), "{line}");
        shell(&line);
    }
    Diagnosis::of(world, &WORKER).is_free_of(faults);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_master_is_named_and_mended() {
    let masters = Masters::start(3).await;
    let world = world_of(&masters).await;
    masters.command_of(0, "CONFIG SET maxmemory 100mb").await;
    masters.command_of(0, "CONFIG SET maxmemory-policy allkeys-lru").await;
    masters.command_of(2, "REPLICAOF 127.0.0.1 9").await;
    let faults = [
        fault("eviction", "wrong", "maxmemory-policy is allkeys-lru"),
        fault("persistence", "warning", "no append-only file"),
    ];
    let replica = fault("replica", "wrong", "it is a slave");

    let ill = Diagnosis::with_status(&world, &WORKER, 1);

    mend(&world, &ill, &faults);
    // No line promotes a replica.
    let lines = ill.lines(&replica);
    assert!(lines.iter().all(|line| line.starts_with("redis.urls = ")), "{lines:?}");
    masters.command_of(2, "REPLICAOF NO ONE").await;
    Diagnosis::with_status(&world, &WORKER, 0).is_free_of(&[replica]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_refuses_the_commands_of_locks_is_named() {
    let masters = Masters::start(3).await;
    let world = world_of(&masters).await;
    masters.command_of(0, "CONFIG SET min-replicas-to-write 1").await;
    masters.command_of(1, "CONFIG SET maxmemory 1").await;
    let full = fault("writable", "wrong", "OOM");

    let ill = Diagnosis::with_status(&world, &WORKER, 1);

    mend(&world, &ill, &[fault("writable", "wrong", "NOREPLICAS")]);
    // No line lifts the limit: the machine may have no more memory.
    let lines = ill.lines(&full);
    assert!(lines.iter().all(|line| line.starts_with("raise maxmemory")), "{lines:?}");
    masters.command_of(1, "CONFIG SET maxmemory 100mb").await;
    Diagnosis::with_status(&world, &WORKER, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_loads_or_cannot_save_its_data_is_named() {
    let masters = Masters::start_with(3, &Masters::REFUSING).await;
    let world = world_of(&masters).await;
    masters.cannot_save(0).await;
    masters.loads(1).await;
    let faults =
        [fault("writable", "wrong", "MISCONF"), fault("writable", "wrong", "loading the dataset")];

    let ill = Diagnosis::with_status(&world, &WORKER, 1);

    for (fault, advice) in faults.iter().zip(["free space on the disk", "wait until"]) {
        let lines = ill.lines(fault);
        assert!(lines.iter().all(|line| line.starts_with(advice)), "{lines:?}");
    }
    masters.can_save(0).await;
    wait_until("the master has loaded its data", async || {
        Diagnosis::of(&world, &WORKER).faults("writable").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_that_masters_withhold_is_named_and_granted() {
    let masters = Masters::start(3).await;
    let mut world = world_of(&masters).await;
    // A user, what it lacks, and the lines that it takes: a command that is denied hides the
    // channel that is denied.
    let mut users = vec![("weak".to_owned(), "+del".to_owned(), 2)];
    users.push(("mute".to_owned(), "lacks rights: &".to_owned(), 1));
    masters
        .command::<String>("ACL SETUSER weak on >secret resetchannels ~other:* -@all +get +set")
        .await;
    masters.command::<String>("ACL SETUSER mute on >secret ~* resetchannels +@all").await;
    // One user a missing right: all other rights are there.
    for missing in ["pexpire", "del", "zadd", "publish", "subscribe", "scan"] {
        let user = format!("no-{missing}");
        let rule = format!("ACL SETUSER {user} on >secret ~* &* +@all -{missing}");
        masters.command::<String>(&rule).await;
        users.push((user, format!("+{missing}"), 1));
    }

    for (user, missing, rounds) in users {
        let urls: Vec<_> =
            masters.urls_as(&user).iter().map(|url| url.expose().to_owned()).collect();
        world.env.insert(URLS.to_owned(), urls.join(","));
        for round in 0..rounds {
            let ill = Diagnosis::of(&world, &WORKER);
            let found = ill.faults("rights");
            let text = found.first().map_or(String::new(), |finding| finding["text"].to_string());
            assert!(round > 0 || text.contains(&missing), "{user}: {text}");
            assert!(ill.faults("writable").is_empty(), "{user}: {:?}", ill.faults("writable"));
            for finding in found {
                shell(finding["remedy"]["line"].as_str().expect("a line"));
            }
        }
        let well = Diagnosis::of(&world, &WORKER);
        assert!(well.faults("rights").is_empty(), "{user}: {:?}", well.faults("rights"));
    }
    masters.serve(&mut world);
    drop(world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_behind_two_urls_and_a_wrong_clock_are_named() {
    let masters = Masters::start(3).await;
    let mut world = world_of(&masters).await;
    masters.turn_clock(2, Duration::from_secs(3600)).await;
    let urls = masters.urls();
    let (_proxy, again) = Proxy::before(urls[0].expose()).await;
    let named = [urls[0].expose(), &again, urls[2].expose()].join(",");
    world.env.insert(URLS.to_owned(), named);
    let twins = fault("distinct", "wrong", "are one server");

    let ill = Diagnosis::with_status(&world, &WORKER, 1);

    let lines = ill.lines(&twins);
    assert!(lines.iter().all(|line| line.starts_with("redis.urls = ")), "{lines:?}");
    ill.lines(&fault("clock", "warning", "ms ahead of this one"));
    masters.serve(&mut world);
    masters.turn_clock(2, Duration::ZERO).await;
    Diagnosis::with_status(&world, &WORKER, 0)
        .is_free_of(&[twins, fault("clock", "warning", "ahead")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_master_of_a_cluster_is_named() {
    let masters = Masters::start_with(1, &["--cluster-enabled", "yes"]).await;
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    let shared = world.env[URLS].clone();
    masters.serve(&mut world);
    let faults =
        [fault("mode", "wrong", "it runs as cluster"), fault("majority", "warning", "one master")];

    let ill = Diagnosis::with_status(&world, &WORKER, 1);

    for fault in &faults {
        ill.lines(fault);
    }
    world.env.insert(URLS.to_owned(), shared);
    Diagnosis::with_status(&world, &WORKER, 0).is_free_of(&faults);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hangs_hides_no_other_one() {
    let masters = Masters::start(3).await;
    let world = world_of(&masters).await;
    masters.freeze(1).await;

    let ill = Diagnosis::with_status(&world, &WORKER, 2);

    assert_eq!((ill.count("unreachable"), ill.count("wrong")), (1, 0));
    let of_masters = ill.findings().iter().filter(|finding| finding["check"] == "eviction");
    assert_eq!(of_masters.count(), 2, "the others are looked at");
    masters.thaw(1).await;
    drop(world);
}
