//! The use cases without their loops, so that a test decides what arrives when.

use std::{collections::BTreeSet, fmt::Display, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::message::OwnedMessage;
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};
use stocklock::{
    compensate::Compensator,
    deduct::{Arrived, Worker},
    domain::{EventKind, Line, Lines, OrderEvent, OrderId, ProductId, fold::Decisions},
    kafka::{Done, Handler, Producer},
    lock::{Held, LockError, Locks, Selection},
    relay::{Announcer, Relay},
    store::{NewOrder, StockStore},
    telemetry::{ConsumerTraces, Metrics},
    wire::{OrderEventCodec, OrderStatusCodec},
};
use tokio::{task::JoinHandle, time::Instant};

use super::{PATIENCE, World, topics::delivered};

/// Nobody but the test publishes what is in the outbox.
const LONG_LEASE: Duration = Duration::from_secs(3600);

impl World {
    /// A worker with connections of its own, as another process has them.
    pub(crate) fn worker(&self, metrics: &Metrics) -> Worker {
        let (config, producer) =
            (&self.config, Producer::new(&self.config.kafka).expect("a producer"));
        Worker {
            store: self.stock_store(metrics),
            locks: Locks::new(&config.lock, &config.redis, metrics).expect("the locks"),
            producer,
            events: Arc::new(OrderEventCodec::new().expect("the schema")),
            statuses: Arc::new(OrderStatusCodec::new().expect("the schema")),
            status_topic: config.topics.order_status.as_str().into(),
            levels: None,
            metrics: metrics.clone(),
            traces: ConsumerTraces::off(),
        }
    }

    pub(crate) fn compensator(&self, metrics: &Metrics) -> Compensator {
        let (config, producer) =
            (&self.config, Producer::new(&self.config.kafka).expect("a producer"));
        let codec = Arc::new(OrderEventCodec::new().expect("the schema"));
        let statuses = Arc::new(OrderStatusCodec::new().expect("the schema"));
        Compensator {
            store: self.order_store(),
            relay: Relay::new(
                self.order_store(),
                producer.clone(),
                &config.topics.orders,
                codec,
                config.ingest.pending_after,
            ),
            announcer: Announcer::new(
                self.order_store(),
                producer,
                &config.topics.order_status,
                Arc::clone(&statuses),
            ),
            statuses,
            horizon: config.retention.horizon,
            metrics: metrics.clone(),
            traces: ConsumerTraces::off(),
        }
    }

    /// Saves orders as ingest does, and answers their events, which are not on the topic yet.
    pub(crate) async fn save(&self, orders: &[Lines]) -> Vec<OrderEvent> {
        self.save_as(orders.iter().map(|lines| (OrderId::generate(), lines.clone())).collect())
            .await
    }

    /// The same with ids of the test's choice, which tell when the orders were made.
    pub(crate) async fn save_as(&self, orders: Vec<(OrderId, Lines)>) -> Vec<OrderEvent> {
        let orders: Vec<_> = orders
            .into_iter()
            .map(|(order_id, lines)| NewOrder {
                order_id,
                reference: None,
                customer_id: None,
                hold_seconds: None,
                lines,
                accepted_at: order_id.made_at(),
            })
            .collect();
        self.order_store().place(&orders, LONG_LEASE).await.expect("saved");
        orders.into_iter().map(|order| placed(order.order_id, order.lines)).collect()
    }

    /// Has the compensator take all of the statuses topic, from its start, and publish what that
    /// releases.
    pub(crate) async fn replay_statuses(&self, compensator: &Compensator) {
        let messages = self.read_topic(&self.config.topics.order_status);
        try_step(compensator, &messages).await.expect("applied");
        compensator.relay.drain().await;
        compensator.announcer.drain().await;
    }

    /// Has the worker take all of the orders topic, from its start.
    pub(crate) async fn replay_orders(&self, worker: &Worker) {
        let messages = self.read_topic(&self.config.topics.orders);
        step(worker, &messages).await;
    }

    /// Fails the test unless the ledger explains the stock, and nothing is below zero.
    pub(crate) async fn check_ledger(&self, store: &StockStore) {
        let snapshot = store.snapshot().await.expect("a snapshot");
        assert_eq!(snapshot.corrupt, []);
        for (id, available) in &snapshot.available {
            let held = snapshot.held.get(id).copied().unwrap_or(0);
            assert!(*available >= 0, "{available} of {id} are available");
            assert_eq!(snapshot.supplied[id] - held, *available, "{id}: {held} are held");
        }
    }
}

pub(super) fn placed(order_id: OrderId, lines: Lines) -> OrderEvent {
    OrderEvent {
        order_id,
        kind: EventKind::Placed,
        lines,
        accepted_at: Utc::now(),
        hold_seconds: None,
        reference: None,
    }
}

/// An id of so many days ago; of the future where that is below 0.
pub(crate) fn aged(days: i64) -> OrderId {
    made_ago(TimeDelta::days(days))
}

/// An id of some time ago.
pub(crate) fn made_ago(age: TimeDelta) -> OrderId {
    made_at(Utc::now() - age)
}

pub(crate) fn made_at(time: DateTime<Utc>) -> OrderId {
    OrderId::new(time, &std::array::from_fn(|_| fastrand::u8(..)))
}

pub(crate) fn release(of: &OrderEvent) -> OrderEvent {
    OrderEvent { kind: EventKind::Release, ..of.clone() }
}

pub(crate) fn order_lines(lines: &[(&str, i64)]) -> Lines {
    let line = |(id, quantity): &(&str, i64)| {
        Line::new(ProductId::parse(id).expect("an id"), *quantity).expect("a line")
    };
    Lines::new(lines.iter().map(line).collect()).expect("lines")
}

/// Orders of 1 to 4 lines over products `p0`…, in any order and also twice; the same for the same
/// seed.
pub(crate) fn random_orders(seed: u64, count: usize, products: usize) -> Vec<Lines> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order = || {
        let lines: Vec<_> = (0..random.usize(1..=4))
            .map(|_| (format!("p{}", random.usize(..products)), random.i64(1..=3)))
            .collect();
        order_lines(
            &lines.iter().map(|(id, quantity)| (id.as_str(), *quantity)).collect::<Vec<_>>(),
        )
    };
    (0..count).map(|_| order()).collect()
}

/// Has a batch decoded, handled and published, as a lane does. Fails if a message is
/// deferred.
pub(crate) async fn try_step<H: Handler>(
    handler: &H,
    messages: &[OwnedMessage],
) -> Result<H::Handled, H::Error> {
    let decoded: Vec<_> = messages.iter().map(|message| handler.decode(message)).collect();
    let Done { handled, deferred } = handler.handle(&decoded).await?;
    assert!(deferred.is_empty(), "a message is deferred");
    handler.publish(&handled).await?;
    Ok(handled)
}

async fn repeat_later(error: &impl Display) {
    eprintln!("repeated: {error}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Has a worker decide and report a batch, and then the deferred messages, as a lane does. Answers
/// how many orders got their outcome.
pub(super) async fn step(worker: &Worker, messages: &[OwnedMessage]) -> usize {
    let mut decoded: Vec<_> = messages.iter().map(|message| worker.decode(message)).collect();
    let (mut open, mut outcomes) = (messages.iter().collect::<Vec<_>>(), 0);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match worker.handle(&decoded).await {
            Ok(Done { handled, deferred }) => {
                worker.publish(&handled).await.expect("reported");
                outcomes += handled.decisions.outcomes.len();
                open = deferred.into_iter().map(|number| open[number]).collect();
                decoded = open.iter().map(|message| worker.decode(message)).collect();
                if decoded.is_empty() {
                    return outcomes;
                }
            }
            Err(error) => repeat_later(&error).await,
        }
    }
    panic!("a batch is not done");
}

/// Has a worker decide events, in as many parts as others' locks make it.
pub(crate) async fn decide(worker: &Worker, events: &[OrderEvent]) -> Vec<Decisions> {
    let arrived =
        |event: &OrderEvent| Arrived { event: event.clone(), at: Instant::now(), trace: None };
    let arrived: Vec<_> = events.iter().map(arrived).collect();
    let (mut open, mut decisions) = (arrived.iter().collect::<Vec<_>>(), Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match worker.decide(&open).await {
            Ok(Done { handled, deferred }) => {
                decisions.push(handled);
                open = deferred.into_iter().map(|number| open[number]).collect();
                if open.is_empty() {
                    return decisions;
                }
            }
            Err(error) => repeat_later(&error).await,
        }
    }
    panic!("a batch is not decided");
}

/// The same for events that come in one batch, in this order.
pub(crate) async fn deliver(worker: &Worker, events: &[OrderEvent]) -> usize {
    step(worker, &events.iter().map(delivered).collect::<Vec<_>>()).await
}

/// Waits until the task has come to a statement that begins so and that a lock of this connection
/// holds up.
pub(crate) async fn is_held_up_at<T>(
    holder: &mut MySqlConnection,
    task: &JoinHandle<T>,
    statement: &str,
) {
    let database: String =
        sqlx::query_scalar("SELECT DATABASE()").fetch_one(&mut *holder).await.expect("its name");
    let text = |row: &MySqlRow, column| row.try_get::<Option<String>, _>(column).ok().flatten();
    let is_it = |row: &MySqlRow| {
        text(row, "db").as_ref() == Some(&database)
            && text(row, "Info").is_some_and(|sql| sql.trim_start().starts_with(statement))
    };
    let begun = Instant::now();
    while !sqlx::raw_sql("SHOW PROCESSLIST")
        .fetch_all(&mut *holder)
        .await
        .expect("the list")
        .iter()
        .any(is_it)
    {
        assert!(!task.is_finished(), "it was not held up at {statement}");
        assert!(begun.elapsed() < PATIENCE, "it does not come to {statement}");
        tokio::task::yield_now().await;
    }
}

/// Acquires all of the products or none, within `lock.wait`.
pub(crate) async fn acquire(locks: &Locks, products: &[ProductId]) -> Result<Held, LockError> {
    let all_or_none = |refused: &BTreeSet<ProductId>| {
        let products = if refused.is_empty() { products } else { &[] };
        let products = products.iter().cloned().collect();
        Selection { products, deferred: Vec::new(), covers_half: true }
    };
    Ok(locks.acquire(Instant::now(), all_or_none).await?.held)
}
