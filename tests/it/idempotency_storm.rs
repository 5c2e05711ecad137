//! Pairs of equal requests, sent to two replicas of ingest while these are killed.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use reqwest::Client;
use serde_json::Value;

use crate::harness::{Role, World, free_address, http_client, lines, on_each_database, wait_for};

/// One replica is killed in each round, in turn.
const ROUNDS: usize = 10;
const PAIRS_PER_ROUND: usize = 20;
/// A round's kill comes after as much of this: some time in what its requests take.
const LATEST_KILL: Duration = Duration::from_millis(30);

/// What the requests of a pair were answered, each once.
struct Pair {
    key: String,
    /// The id of the order. `None`: an error, so the order may be saved or not.
    told: [Option<String>; 2],
    /// A connection broke after a request was sent.
    is_hit: bool,
}

/// Sends a request once. Fails if it is not answered, or answered with an error.
async fn send(client: &Client, address: &str, key: &str) -> Result<String, Failed> {
    let request = client
        .post(format!("http://{address}/v1/orders"))
        .header("idempotency-key", key)
        .timeout(Duration::from_secs(20))
        .body(lines(&[("a", 1)]).to_string());
    let response = request.send().await?;
    let status = response.status().as_u16();
    let body: Value = response.json().await?;
    match status {
        202 => Ok(body["order_id"].as_str().expect("an id").to_owned()),
        503 | 504 => Err(Failed { why: format!("{status} {body}"), is_hit: false }),
        _ => panic!("{status} {body}"),
    }
}

/// Why a request was not answered with an order's id.
struct Failed {
    why: String,
    /// The connection broke after the request was sent.
    is_hit: bool,
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        Self { why: format!("{error:?}"), is_hit: !error.is_connect() }
    }
}

async fn send_pair(client: &Client, addresses: &[String; 2], key: String) -> Pair {
    let [first, second] = addresses;
    let (first, second) = tokio::join!(send(client, first, &key), send(client, second, &key));
    let is_hit =
        [&first, &second].iter().any(|told| told.as_ref().is_err_and(|failed| failed.is_hit));
    Pair { key, told: [first.ok(), second.ok()], is_hit }
}

/// Repeats a request at either replica until it is answered with an order's id.
async fn repeat(client: &Client, addresses: &[String; 2], key: &str) -> String {
    let mut attempts = addresses.iter().cycle();
    wait_for(async || {
        let address = attempts.next().expect("a cycle");
        send(client, address, key).await.map_err(|failed| format!("{key}: {}", failed.why))
    })
    .await
}

/// Starts a replica at its address, and waits until it takes orders.
async fn start(world: &World, address: &str) -> Role {
    world.start_with("ingest", &[("STOCKLOCK__HTTP__LISTEN", address)]).await
}

on_each_database!(pairs_sent_to_replicas_that_are_killed_make_one_order_each,);

async fn pairs_sent_to_replicas_that_are_killed_make_one_order_each(world: World) {
    world.import(&[("a", 1_000)]);
    let addresses = [free_address(), free_address()];
    let mut replicas =
        [Some(start(&world, &addresses[0]).await), Some(start(&world, &addresses[1]).await)];
    let client = http_client();
    let mut random = fastrand::Rng::with_seed(16);
    let (mut pairs, mut kills) = (Vec::new(), 0);

    for round in 0..ROUNDS {
        let victim = replicas[round % 2].take().expect("it runs");
        let sending = (0..PAIRS_PER_ROUND)
            .map(|pair| send_pair(&client, &addresses, format!("k-{round}-{pair}")));
        let killing = async {
            // The moment is what is random here; there is no condition to wait for.
            tokio::time::sleep(LATEST_KILL.mul_f64(random.f64())).await;
            victim.kill();
            kills += 1;
        };
        let (sent, ()) = tokio::join!(join_all(sending), killing);
        pairs.extend(sent);
        replicas[round % 2] = Some(start(&world, &addresses[round % 2]).await);
    }

    let hit = pairs.iter().filter(|pair| pair.is_hit).count();
    let failed = pairs.iter().filter(|pair| pair.told.contains(&None)).count();
    let mut ids = BTreeSet::new();
    for pair in &pairs {
        let repeated = repeat(&client, &addresses, &pair.key).await;
        for told in pair.told.iter().flatten() {
            assert_eq!(*told, repeated, "{} was told two ids", pair.key);
        }
        ids.insert(repeated);
    }
    eprintln!("{} pairs, {kills} kills, {hit} pairs hit, {failed} with an error", pairs.len());

    assert_eq!((pairs.len(), kills), (200, ROUNDS));
    assert!(hit > 0, "no kill came while a request was answered");
    assert_eq!((ids.len(), world.count_orders("PENDING").await), (200, 200));
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (200, 800));
    world.verify();
}
