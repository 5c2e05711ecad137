use std::{
    error::Error,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    client::OAuthToken,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{
        DeliveryFuture, FutureProducer, FutureRecord, Producer as _, future_producer::Delivery,
    },
};

use super::{
    batch_size::{BatchLimits, MAX_BATCH_BYTES, MIN_BATCH_BYTES},
    client::{ClientLog, client_config, report_topic_ids},
    renewal::{MIN_TOPIC_PAUSE, ProducerRenewal},
    token::Tokens,
};
use crate::{config::KafkaConfig, domain::OrderId, telemetry::order_log};

/// The largest message, bytes: twice what a broker takes by default. A dead letter needs the second
/// half for its headers.
pub(super) const MAX_MESSAGE_BYTES: &str = "2097152";
/// How long librdkafka tries to deliver a message, milliseconds. Then the caller decides what to
/// do.
const DELIVERY_TIMEOUT_MS: &str = "10000";
/// How long to wait for room in librdkafka's queue before the next attempt.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(5);
/// How long a stop waits for messages on their way to the broker.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Produces with `acks=all` and idempotence. Chooses partitions as Java's default partitioner does.
///
/// Its clones share one client. The producer replaces that client by itself if
/// - its deliveries have failed for 15 s,
/// - it has a fatal error,
/// - its topic was replaced, or
/// - a topic takes only smaller batches.
#[derive(Clone)]
pub struct Producer {
    config: Arc<ClientConfig>,
    tokens: Tokens,
    client: Arc<RwLock<Arc<ProducerClient>>>,
    renewal: Arc<Mutex<ProducerRenewal>>,
    /// The largest batch of the client, bytes.
    batch_bytes: Arc<AtomicUsize>,
    limits: Arc<BatchLimits>,
}

/// A client that produces, with its log.
struct ProducerClient {
    producer: FutureProducer<ProducerCallbacks>,
    log: Arc<ClientLog>,
    created_at: Instant,
}

/// Why messages were not produced.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The broker rejects each of these messages even alone, as too large. `numbers` are their
    /// indexes in the messages that were given, in no order. The broker has acknowledged all
    /// others.
    #[error(
        "{} of {sent} messages are too large for topic {topic}: raise its max.message.bytes",
        numbers.len()
    )]
    TooLarge { topic: String, numbers: Vec<usize>, sent: usize },
}

/// A message to be produced. The caller of [`Producer::produce`] names the topic.
#[derive(Debug, Clone)]
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Option<OwnedHeaders>,
}

impl Message {
    /// A message about an order. Its key is the order id as lower-case text with hyphens, so that
    /// all messages about an order are in one partition.
    pub fn of_order(order_id: OrderId, payload: Vec<u8>) -> Self {
        Self { key: Some(order_id.to_string().into_bytes()), payload: Some(payload), headers: None }
    }
}

/// Receives librdkafka's callbacks.
#[derive(Clone)]
struct ProducerCallbacks {
    log: Arc<ClientLog>,
    tokens: Tokens,
}

impl ClientContext for ProducerCallbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.log.line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.tokens.for_callback()
    }
}

impl ProducerClient {
    fn new(config: &ClientConfig, tokens: &Tokens) -> KafkaResult<Arc<Self>> {
        let log = Arc::<ClientLog>::default();
        let callbacks = ProducerCallbacks { log: Arc::clone(&log), tokens: tokens.clone() };
        let producer = FutureProducer::from_config_and_context(config, callbacks)?;
        Ok(Arc::new(Self { producer, log, created_at: Instant::now() }))
    }

    /// Whether the client never delivers again:
    /// - It lost track of its idempotent sequence, for instance since a broker lost its last
    ///   seconds. That is a fatal error.
    /// - Its topic was replaced, and the new topic does not know the sequence.
    fn is_unusable(&self) -> bool {
        let may_follow_topic = || self.created_at.elapsed() >= MIN_TOPIC_PAUSE;
        self.producer.client().fatal_error().is_some()
            || self.log.is_topic_replaced() && may_follow_topic()
    }
}

impl Producer {
    /// Fails if librdkafka rejects the configuration. Does not wait for brokers.
    pub fn new(kafka: &KafkaConfig) -> KafkaResult<Self> {
        let mut client = client_config(kafka);
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("linger.ms", "0.2")
            .set("queue.buffering.max.messages", "50000")
            .set("queue.buffering.max.kbytes", "65536")
            .set("message.max.bytes", MAX_MESSAGE_BYTES)
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS);
        report_topic_ids(&mut client);
        let batch_bytes = Arc::new(AtomicUsize::new(MAX_BATCH_BYTES));
        let tokens = Tokens::of(kafka);
        let first = Arc::new(RwLock::new(ProducerClient::new(&client, &tokens)?));
        let config = Arc::new(client);
        Ok(Self {
            config,
            tokens,
            client: first,
            renewal: Arc::default(),
            batch_bytes,
            limits: Arc::default(),
        })
    }

    /// Produces all messages and waits until the broker has acknowledged each. If a batch is too
    /// large for the topic, produces its messages again in smaller batches, and in the end each
    /// alone.
    ///
    /// Fails with
    /// - [`ProduceError::TooLarge`] if only messages remain that are too large by themselves,
    /// - [`ProduceError::Kafka`] if a message was not delivered for another cause. Others may have
    ///   been delivered.
    pub async fn produce(&self, topic: &str, messages: Vec<Message>) -> Result<(), ProduceError> {
        let client = self.current();
        let all: Vec<_> = (0..messages.len()).collect();
        let began = Instant::now();
        let mut produced = deliver(&client.producer, topic, &messages, &all).await;
        let is_failing = self.is_failing(&produced, began);
        if is_failing || client.is_unusable() {
            self.replace(&client, is_failing)?;
        }
        if let Ok(too_large) = &produced
            && !too_large.is_empty()
        {
            produced = self.produce_smaller(topic, &messages, too_large, &client).await;
        }
        release(client);
        match produced? {
            numbers if numbers.is_empty() => Ok(()),
            numbers => Err(ProduceError::TooLarge {
                topic: topic.to_owned(),
                numbers,
                sent: messages.len(),
            }),
        }
    }

    /// Limits batches to what these topics take. Does nothing if no broker answers within 5 s.
    ///
    /// Fails if the client for smaller batches cannot be made.
    pub(crate) async fn fit_batches_to(&self, topics: &[&str]) -> KafkaResult<()> {
        let client = self.current();
        match self.limits.ask(&self.config, &self.tokens, topics).await {
            Some(bytes) => self.limit_batches(bytes, &client),
            None => Ok(()),
        }
    }

    /// Produces messages whose batches were too large when the client `tried` produced them.
    /// Returns the numbers of the messages that are too large even alone.
    async fn produce_smaller(
        &self,
        topic: &str,
        messages: &[Message],
        numbers: &[usize],
        tried: &Arc<ProducerClient>,
    ) -> KafkaResult<Vec<usize>> {
        self.fit_batches_to(&[topic]).await?;
        let mut remaining = numbers.to_vec();
        let client = self.current();
        if !Arc::ptr_eq(&client, tried) {
            remaining = deliver(&client.producer, topic, messages, &remaining).await?;
            if remaining.is_empty() {
                return Ok(remaining);
            }
        }
        let mut config = (*self.config).clone();
        config.set("batch.num.messages", "1");
        let alone = ProducerClient::new(&config, &self.tokens)?;
        let too_large = deliver(&alone.producer, topic, messages, &remaining).await;
        release(alone);
        let too_large = too_large?;
        if too_large.len() < remaining.len() {
            self.limit_batches(self.batch_bytes.load(Ordering::Relaxed) / 2, &client)?;
        }
        Ok(too_large)
    }

    /// Lowers the limit of batches to `bytes`, unless another client has replaced `present`
    /// meanwhile.
    fn limit_batches(&self, bytes: usize, present: &Arc<ProducerClient>) -> KafkaResult<()> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        let (former, bytes) =
            (self.batch_bytes.load(Ordering::Relaxed), bytes.max(MIN_BATCH_BYTES));
        if bytes >= former || !Arc::ptr_eq(&client, present) {
            return Ok(());
        }
        tracing::info!(bytes, former, "limiting the producer's batches");
        self.batch_bytes.store(bytes, Ordering::Relaxed);
        release(std::mem::replace(&mut *client, self.new_client()?));
        Ok(())
    }

    fn new_client(&self) -> KafkaResult<Arc<ProducerClient>> {
        let mut config = (*self.config).clone();
        config.set("batch.size", self.batch_bytes.load(Ordering::Relaxed).to_string());
        ProducerClient::new(&config, &self.tokens)
    }

    fn current(&self) -> Arc<ProducerClient> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes the result of a delivery. Returns whether deliveries have failed for so long that
    /// another client may help.
    fn is_failing(&self, produced: &KafkaResult<Vec<usize>>, began: Instant) -> bool {
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        renewal.is_due(produced.as_ref().err(), began, Instant::now())
    }

    /// Replaces the client `present`, unless another call has replaced it meanwhile.
    fn replace(&self, present: &Arc<ProducerClient>, is_failing: bool) -> KafkaResult<()> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&client, present) {
            let fatal = client.producer.client().fatal_error();
            let topic_replaced = client.log.is_topic_replaced();
            tracing::warn!(?fatal, topic_replaced, is_failing, "replacing the producer");
            release(std::mem::replace(&mut *client, self.new_client()?));
        }
        Ok(())
    }

    /// Waits until all messages are delivered, for 10 s at most.
    pub(crate) async fn flush(&self) {
        let client = self.current();
        let flushed =
            tokio::task::spawn_blocking(move || client.producer.flush(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "messages not delivered before the stop");
        }
    }
}

/// Drops a reference to a client. Dropping the last one closes the client, which may block for half
/// a second: that happens on a thread for blocking work.
fn release(client: Arc<ProducerClient>) {
    if Arc::strong_count(&client) == 1 {
        drop(tokio::task::spawn_blocking(move || drop(client)));
    }
}

/// Produces the messages with these numbers. Returns the numbers of the messages that are too
/// large, alone or together with the others of their batch.
///
/// Fails with the first other error.
async fn deliver(
    client: &FutureProducer<ProducerCallbacks>,
    topic: &str,
    messages: &[Message],
    numbers: &[usize],
) -> KafkaResult<Vec<usize>> {
    let (mut deliveries, mut too_large) = (Vec::with_capacity(numbers.len()), Vec::new());
    for number in numbers {
        match enqueue(client, topic, &messages[*number]).await {
            Ok(delivery) => deliveries.push((*number, delivery)),
            Err(error) if is_too_large(&error) => too_large.push(*number),
            Err(error) => return Err(error),
        }
    }
    for (number, delivery) in deliveries {
        match delivery.await {
            Ok(Ok(Delivery { partition, offset, .. })) => {
                order_log::published(messages[number].key.as_deref(), topic, partition, offset);
            }
            Ok(Err((error, _))) if is_too_large(&error) => too_large.push(number),
            Ok(Err((error, _))) => return Err(error),
            Err(_) => return Err(KafkaError::Canceled),
        }
    }
    Ok(too_large)
}

fn is_too_large(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge)
    )
}

/// Puts a message into librdkafka's queue, and waits while the queue is full.
async fn enqueue(
    client: &FutureProducer<ProducerCallbacks>,
    topic: &str,
    message: &Message,
) -> KafkaResult<DeliveryFuture> {
    loop {
        let record = FutureRecord::<[u8], [u8]> {
            topic,
            partition: None,
            payload: message.payload.as_deref(),
            key: message.key.as_deref(),
            timestamp: None,
            headers: message.headers.clone(),
        };
        match client.send_result(record) {
            Ok(delivery) => return Ok(delivery),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                tokio::time::sleep(QUEUE_FULL_DELAY).await;
            }
            Err((error, _)) => return Err(error),
        }
    }
}
