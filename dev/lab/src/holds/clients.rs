//! The clients: they place orders at a fixed rate, and confirm some of the holds.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::Context as _;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use stocklock::domain::OrderId;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::HoldsArgs;

const PRODUCTS: usize = 1_000;
/// Some confirmations are sent so much after the hold has ended, counted from the request.
const LATE_BY: Duration = Duration::from_secs(2);
const MAX_WRONG_SHOWN: usize = 5;

/// What the answers to a client say about the end of its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It has no hold, so it will be completed.
    WillComplete,
    /// Its hold was confirmed.
    Confirmed,
    /// It has a hold that nobody has confirmed.
    Held,
    /// Its hold had ended before it was confirmed.
    TooLate,
}

/// All answers.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) told: HashMap<OrderId, Told>,
    pub(super) by_status: BTreeMap<String, u32>,
}

/// What one client received.
struct Story {
    statuses: Vec<(&'static str, StatusCode)>,
    told: Option<(OrderId, Told)>,
}

/// One order, as it will be placed.
struct Plan {
    body: Value,
    confirm_after: Option<Duration>,
}

pub(super) struct Clients<'a> {
    args: &'a HoldsArgs,
    http: Client,
    url: String,
}

/// The ids of the products that orders name.
pub(super) fn products() -> impl Iterator<Item = String> {
    (0..PRODUCTS).map(|n| format!("sku-{n}"))
}

impl<'a> Clients<'a> {
    pub(super) fn new(args: &'a HoldsArgs, url: String) -> anyhow::Result<Self> {
        Ok(Self { args, http: stocklock::trust::client_without_tls().build()?, url })
    }

    /// Places all orders, and waits until the last confirmation is answered. Fails if a request
    /// gets no answer.
    pub(super) async fn place_all(&self) -> anyhow::Result<Answers> {
        let mut rng = fastrand::Rng::with_seed(self.args.seed);
        let (begun, mut requests) = (Instant::now(), JoinSet::new());
        let mut answers = Answers::default();
        for index in 0..self.args.holds {
            sleep_until(begun + Duration::from_secs(1) * index / self.args.rate).await;
            requests.spawn(place(self.http.clone(), self.url.clone(), self.with_hold(&mut rng)));
            for _ in 0..self.args.others {
                let plan = Plan { body: lines(&mut rng), confirm_after: None };
                requests.spawn(place(self.http.clone(), self.url.clone(), plan));
            }
            while let Some(story) = requests.try_join_next() {
                answers.add(story.context("a client")??);
            }
        }
        while let Some(story) = requests.join_next().await {
            answers.add(story.context("a client")??);
        }
        Ok(answers)
    }

    fn with_hold(&self, rng: &mut fastrand::Rng) -> Plan {
        let (mut body, seconds) = (lines(rng), rng.u32(self.args.seconds.clone()));
        body["hold_seconds"] = json!(seconds);
        let until = Duration::from_secs(seconds.into()) + LATE_BY;
        let after = until.mul_f64(rng.f64());
        Plan { body, confirm_after: (rng.u8(..100) < self.args.confirmed).then_some(after) }
    }
}

/// One to three lines of different products.
fn lines(rng: &mut fastrand::Rng) -> Value {
    let (first, count) = (rng.usize(..PRODUCTS), rng.usize(1..=3));
    let products = (0..count).map(|n| format!("sku-{}", (first + n) % PRODUCTS));
    let lines = products.map(|id| json!({"product_id": id, "quantity": rng.i64(1..=5)}));
    json!({"lines": lines.collect::<Vec<_>>()})
}

async fn place(http: Client, url: String, plan: Plan) -> anyhow::Result<Story> {
    let placed = http.post(&url).json(&plan.body).send().await.context("POST")?;
    let mut story = Story { statuses: vec![("place", placed.status())], told: None };
    if placed.status() != StatusCode::ACCEPTED {
        return Ok(story);
    }
    let answer: Value = placed.json().await.context("the answer to POST")?;
    let id: OrderId = answer["order_id"].as_str().context("no order_id")?.parse()?;
    let has_hold = plan.body.get("hold_seconds").is_some();
    let mut told = if has_hold { Told::Held } else { Told::WillComplete };
    if let Some(after) = plan.confirm_after {
        sleep(after).await;
        let confirmed = http.post(format!("{url}/{id}/confirm")).send().await.context("confirm")?;
        story.statuses.push(("confirm", confirmed.status()));
        match confirmed.status() {
            StatusCode::OK | StatusCode::ACCEPTED => told = Told::Confirmed,
            StatusCode::CONFLICT => told = Told::TooLate,
            _ => {}
        }
    }
    story.told = Some((id, told));
    Ok(story)
}

impl Answers {
    fn add(&mut self, story: Story) {
        for (request, status) in story.statuses {
            *self.by_status.entry(format!("{request} {}", status.as_u16())).or_default() += 1;
        }
        self.told.extend(story.told);
    }

    /// The answers that a healthy ingest does not give.
    pub(super) fn unexpected(&self) -> Vec<String> {
        const EXPECTED: [&str; 4] = ["place 202", "confirm 200", "confirm 202", "confirm 409"];
        let answers = self.by_status.iter();
        let wrong = answers.filter(|(answer, _)| !EXPECTED.contains(&answer.as_str()));
        wrong.map(|(answer, count)| format!("{count} × {answer}")).take(MAX_WRONG_SHOWN).collect()
    }
}
