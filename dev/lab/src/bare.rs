//! What an order's way takes at least: the commits and the Kafka hops of the pipeline, a task for
//! each in one process, in batches that are closed when the roles would close theirs; without HTTP,
//! consumer groups, and locks in Redis.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{SubsecRound as _, Utc};
use futures::StreamExt as _;
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use stocklock::{
    commands::bench::Site,
    config::{BatchConfig, Config},
    domain::{Lines, OrderEvent, OrderId},
    kafka::{Message, Producer, client_config},
    relay::{COMMITTER_LEASE, FORGET_DELAY},
    store::{Guard, NewOrder, OrderStore, PublishedGroup, StockStore},
    wire::{OrderEventCodec, OrderStatusCodec},
};

/// Orders that wait between two tasks.
const QUEUE: usize = 100_000;

/// Brings orders, of which so many arrive a second, to their final status.
pub(crate) async fn run(
    site: &Site,
    orders: &OrderStore,
    stock: &StockStore,
    arriving: &[Lines],
    rate: u32,
) -> anyhow::Result<()> {
    let (arrivals, arrived) = mpsc::channel(QUEUE);
    let (placed, events) = mpsc::channel(QUEUE);
    let (published, in_outbox) = mpsc::channel(QUEUE);
    let config = &site.config;
    let count = arriving.len();
    let mut tasks = JoinSet::new();
    tasks.spawn(apply(orders.clone(), config.clone(), count));
    tasks.spawn(decide(stock.clone(), config.clone(), count));
    tasks.spawn(strike_out(orders.clone(), in_outbox));
    tasks.spawn(publish(config.clone(), events, published));
    tasks.spawn(place(orders.clone(), config.ingest.groups, arrived, placed));
    tasks.spawn(arrive(arriving.to_vec(), rate, arrivals));
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task panicked")??;
    }
    Ok(())
}

async fn arrive(
    orders: Vec<Lines>,
    rate: u32,
    arrivals: mpsc::Sender<NewOrder>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    for (index, lines) in (0_u32..).zip(orders) {
        sleep_until(begun + Duration::from_secs(1) * index / rate).await;
        let accepted_at = Utc::now().trunc_subsecs(3);
        let order_id = OrderId::generate();
        arrivals
            .send(NewOrder {
                order_id,
                reference: None,
                customer_id: None,
                hold_seconds: None,
                lines,
                accepted_at,
            })
            .await?;
    }
    Ok(())
}

async fn place(
    store: OrderStore,
    groups: BatchConfig,
    mut arrived: mpsc::Receiver<NewOrder>,
    placed: mpsc::Sender<Vec<OrderEvent>>,
) -> anyhow::Result<()> {
    let mut pace = Pace::new(groups);
    loop {
        pace.may_close().await;
        let mut group = Vec::new();
        if arrived.recv_many(&mut group, groups.max).await == 0 {
            return Ok(());
        }
        pace.closed();
        store.place(&group, COMMITTER_LEASE).await?;
        placed.send(group.into_iter().map(NewOrder::into_event).collect()).await?;
    }
}

async fn publish(
    config: Config,
    mut groups: mpsc::Receiver<Vec<OrderEvent>>,
    published: mpsc::Sender<PublishedGroup>,
) -> anyhow::Result<()> {
    let (producer, codec) = (Producer::new(&config.kafka)?, OrderEventCodec::new()?);
    while let Some(group) = groups.recv().await {
        let messages =
            group.iter().map(|event| Message::of_order(event.order_id, codec.encode(event)));
        producer.produce(&config.topics.orders, messages.collect()).await?;
        if let Some(group) = PublishedGroup::whole(group.iter().map(|event| event.order_id)) {
            published.send(group).await?;
        }
    }
    Ok(())
}

async fn strike_out(
    store: OrderStore,
    mut in_outbox: mpsc::Receiver<PublishedGroup>,
) -> anyhow::Result<()> {
    let mut group = Vec::new();
    while in_outbox.recv_many(&mut group, QUEUE).await > 0 {
        sleep(FORGET_DELAY).await;
        while let Ok(published) = in_outbox.try_recv() {
            group.push(published);
        }
        store.forget_published(std::mem::take(&mut group)).await?;
    }
    Ok(())
}

async fn decide(store: StockStore, config: Config, count: usize) -> anyhow::Result<()> {
    let (events, codec) = (consumer(&config, &config.topics.orders)?, OrderEventCodec::new()?);
    let (producer, status_codec) = (Producer::new(&config.kafka)?, OrderStatusCodec::new()?);
    let mut batches = events.stream().ready_chunks(config.worker.batches.max);
    let (mut pace, mut decided) = (Pace::new(config.worker.batches), 0);
    while decided < count {
        pace.may_close().await;
        let batch = batches.next().await.context("the topic ended")?;
        pace.closed();
        let batch = batch
            .into_iter()
            .map(|event| anyhow::Ok(codec.decode(event?.payload().context("no event")?)?));
        let batch = batch.collect::<anyhow::Result<Vec<_>>>()?;
        decided += batch.len();
        let at = Utc::now();
        let statuses = store.decide(&batch, Guard::RowLocks, at, || true).await?.statuses;
        let messages = statuses
            .iter()
            .map(|status| Message::of_order(status.order_id, status_codec.encode(status)));
        producer.produce(&config.topics.order_status, messages.collect()).await?;
    }
    Ok(())
}

async fn apply(store: OrderStore, config: Config, count: usize) -> anyhow::Result<()> {
    let (statuses, codec) =
        (consumer(&config, &config.topics.order_status)?, OrderStatusCodec::new()?);
    let mut batches = statuses.stream().ready_chunks(config.compensator.batches.max);
    let (mut pace, mut applied) = (Pace::new(config.compensator.batches), 0);
    while applied < count {
        pace.may_close().await;
        let batch = batches.next().await.context("the topic ended")?;
        pace.closed();
        let now = Utc::now();
        let read =
            |payload: Option<&[u8]>| anyhow::Ok(codec.decode(payload.context("no status")?, now)?);
        let batch = batch.into_iter().map(|status| read(status?.payload()));
        let batch = batch.collect::<anyhow::Result<Vec<_>>>()?;
        applied += batch.len();
        store.apply(&batch, Utc::now(), config.retention.horizon, COMMITTER_LEASE).await?;
    }
    Ok(())
}

/// The earliest time for the next batch, by `linger` of its batches.
struct Pace {
    linger: Duration,
    next: Instant,
}

impl Pace {
    fn new(batches: BatchConfig) -> Self {
        Self { linger: batches.linger, next: Instant::now() }
    }

    async fn may_close(&self) {
        sleep_until(self.next).await;
    }

    fn closed(&mut self) {
        self.next = Instant::now() + self.linger;
    }
}

/// Reads a whole topic from its beginning.
fn consumer(config: &Config, topic: &str) -> anyhow::Result<StreamConsumer> {
    let mut settings = client_config(&config.kafka);
    settings
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "50");
    let consumer: StreamConsumer = settings.create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..config.topics.partitions {
        partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}
