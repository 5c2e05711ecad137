//! Hostile clients at ingest cost good clients little, and no more memory than the chart allows.
//! `STOCKLOCK_TEST_HOSTILE=full` brings 15,000 of them instead of 3,000.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::harness::{
    Database, Raw, Role, Strategy, World, http_client, http_get, lines, wait_until,
};

/// Good orders a second, and for how long they are measured.
const RATE: u32 = 500;
const MEASURED: Duration = Duration::from_secs(4);
/// Measurements; one of them has to be within the bound, since the machine has other work too.
const ROUNDS: usize = 3;
const WORST_RATIO: f64 = 3.0;
/// Below it a percentile is good whatever its ratio: a busy machine's time slices are as long.
const GOOD_MS: f64 = 50.0;

/// How many hostile clients there are of each kind.
struct Crowd {
    silent: usize,
    slow: usize,
    not_reading: usize,
    waiting: usize,
}

impl Crowd {
    fn of_this_run() -> Self {
        match std::env::var("STOCKLOCK_TEST_HOSTILE").as_deref() {
            Ok("full") => Self { silent: 2_000, slow: 2_000, not_reading: 1_000, waiting: 10_000 },
            _ => Self { silent: 400, slow: 400, not_reading: 200, waiting: 2_500 },
        }
    }
}

/// The memory limit of ingest in the chart, in KiB.
fn memory_limit_kib() -> u64 {
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/stocklock/values.yaml");
    let values = std::fs::read_to_string(values).expect("the chart's values");
    let ingest = values.split("\ningest:").nth(1).expect("ingest");
    let limit =
        ingest.split("memory: ").nth(2).and_then(|rest| rest.split("Mi").next()).expect("a limit");
    limit.parse::<u64>().expect("MiB") << 10
}

/// Places orders at a steady rate. Answers the 99th percentile of their latency in milliseconds.
async fn percentile_of_good_clients(ingest: &Role) -> f64 {
    let (client, url) = (http_client(), format!("{}/v1/orders", ingest.http));
    let order = lines(&[("a", 1)]);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut requests, begun) = (JoinSet::new(), Instant::now());
    while begun.elapsed() < MEASURED {
        tick.tick().await;
        let request = client.post(&url).json(&order).timeout(Duration::from_secs(30));
        requests.spawn(async move {
            let asked = Instant::now();
            let status = request.send().await.expect("an answer").status();
            assert_eq!(status, 202, "a good client is refused");
            asked.elapsed()
        });
    }
    let mut took = requests.join_all().await;
    took.sort_unstable();
    took[took.len() * 99 / 100].as_secs_f64() * 1e3
}

/// Connects hostile clients. The slow ones and those with large bodies work until `is_over`.
async fn besiege(http: &str, crowd: &Crowd, is_over: &Arc<AtomicBool>) -> (Vec<Raw>, JoinSet<()>) {
    let order = lines(&[("a", 1)]).to_string();
    let connected =
        |count: usize| stream::iter(0..count).map(|_| Raw::connect(http)).buffer_unordered(64);
    let mut held: Vec<_> = connected(crowd.silent).collect().await;
    let mut not_reading = connected(crowd.not_reading).collect::<Vec<_>>().await;
    let pipelined = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    for client in &mut not_reading {
        client.send_for(pipelined.as_bytes(), Duration::from_millis(5)).await;
    }
    held.append(&mut not_reading);
    let mut waiting = connected(crowd.waiting).collect::<Vec<_>>().await;
    for client in &mut waiting {
        client.place(&order, "prefer: wait=60\r\n").await;
    }
    held.append(&mut waiting);

    let mut busy = JoinSet::new();
    let slow = connected(crowd.slow).collect::<Vec<_>>().await;
    busy.spawn(trickle(slow, Arc::clone(is_over)));
    for _ in 0..4 {
        busy.spawn(send_large_bodies(http.to_owned(), Arc::clone(is_over)));
    }
    (held, busy)
}

async fn accepted(ingest: &Role) -> u64 {
    ingest.count("stocklock_orders_ingested_total", r#"result="accepted""#).await
}

/// Waits until the orders of the waiting clients are saved, which takes a while.
async fn all_placed(ingest: &Role, orders: u64) {
    wait_until("the orders of the waiting clients are saved", async || {
        accepted(ingest).await >= orders
    })
    .await;
}

/// A head or a body that comes a byte at a time.
async fn trickle(mut clients: Vec<Raw>, is_over: Arc<AtomicBool>) {
    for (index, client) in clients.iter_mut().enumerate() {
        let head = if index % 2 == 0 {
            "GET / HTTP/1.1\r\nx: "
        } else {
            "POST /v1/orders HTTP/1.1\r\ncontent-length: 9000\r\n\r\n"
        };
        client.send_for(head.as_bytes(), Duration::from_millis(5)).await;
    }
    while !is_over.load(Ordering::Relaxed) {
        for client in &mut clients {
            client.send_for(b" ", Duration::from_millis(5)).await;
        }
        // The pace of a slow client.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn send_large_bodies(http: String, is_over: Arc<AtomicBool>) {
    let unknown = vec!["\"\":0"; 131_071].join(",");
    let body = format!("{{\"lines\":[],{unknown}}}");
    let client = http_client();
    while !is_over.load(Ordering::Relaxed) {
        let answer = client.post(format!("{http}/v1/orders")).body(body.clone()).send().await;
        // With the crowd in full number it may also be cut off.
        if let Ok(answer) = answer {
            assert!([422, 503].contains(&answer.status().as_u16()), "{answer:?}");
        }
        // The pace of one sender.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_cost_good_clients_little_and_bounded_memory() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit");
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 1_000_000_000)]);
    let ingest = world.start("ingest").await;
    let crowd = Crowd::of_this_run();
    percentile_of_good_clients(&ingest).await;

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let without = percentile_of_good_clients(&ingest).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let accepted = accepted(&ingest).await;
        let (held, busy) = besiege(&ingest.http, &crowd, &is_over).await;
        all_placed(&ingest, accepted + crowd.waiting as u64).await;
        let with = percentile_of_good_clients(&ingest).await;
        is_over.store(true, Ordering::Relaxed);
        busy.join_all().await;
        drop(held);
        rounds.push((without, with));
        if with <= without * WORST_RATIO || with <= GOOD_MS {
            break;
        }
    }
    let (peak, limit) = (ingest.peak_memory_kib(), memory_limit_kib());
    println!("p99 in ms without and with: {rounds:?}; {peak} KiB of {limit} at its peak");
    let (without, with) = rounds[rounds.len() - 1];
    assert!(
        with <= without * WORST_RATIO || with <= GOOD_MS,
        "p99 in ms without and with: {rounds:?}"
    );
    assert!(peak < limit, "{peak} KiB at its peak, {limit} are allowed");

    assert!(
        ingest.count("stocklock_http_requests_total", r#"status="422""#).await > 0,
        "no large body was refused"
    );
    let livez = http_get(format!("{}/livez", ingest.admin)).await.expect("an answer");
    assert_eq!(livez.status(), 200);
}
