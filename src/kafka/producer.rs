use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _},
};

use super::{
    batch_size::{BatchLimits, MAX_BATCH_BYTES, MIN_BATCH_BYTES},
    client::{ClientLog, client_config, report_topic_ids},
    renewal::ProducerRenewal,
};
use crate::{config::KafkaConfig, domain::OrderId};

/// The largest message, bytes: what a broker takes by default, and as much again for the headers of a dead letter.
pub(super) const MAX_MESSAGE_BYTES: &str = "2097152";
/// How long librdkafka tries to deliver a message before it gives up; the caller then decides.
const DELIVERY_TIMEOUT_MS: &str = "10000";
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(5);
/// How old a client is before it is replaced as its topic was replaced. Brokers may disagree on the
/// topic for some seconds.
const MIN_TOPIC_PAUSE: Duration = Duration::from_secs(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Produces with `acks=all` and idempotence, and partitions as Java's default does.
#[derive(Clone)]
pub struct Producer {
    config: Arc<ClientConfig>,
    client: Arc<RwLock<Arc<Client>>>,
    renewal: Arc<Mutex<ProducerRenewal>>,
    /// What the client's batches may have.
    batch_bytes: Arc<AtomicUsize>,
    limits: Arc<BatchLimits>,
}

/// The client that produces at present, and what it says.
struct Client {
    producer: FutureProducer<Context>,
    log: Arc<ClientLog>,
    begun: Instant,
}

/// Why messages were not produced.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The broker refuses these messages each alone, going by their numbers; it has acknowledged
    /// all others.
    #[error("{} of {sent} messages are too large for topic {topic}: raise its max.message.bytes", numbers.len())]
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

#[derive(Clone)]
struct Context(Arc<ClientLog>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(&error, reason);
    }
}

impl Client {
    fn new(config: &ClientConfig) -> KafkaResult<Arc<Self>> {
        let log = Arc::<ClientLog>::default();
        let producer = FutureProducer::from_config_and_context(config, Context(Arc::clone(&log)))?;
        Ok(Arc::new(Self { producer, log, begun: Instant::now() }))
    }

    /// An idempotent producer that lost track of its sequence, for instance as a broker lost its
    /// last seconds, never delivers again. One whose topic was replaced has a sequence that the new
    /// topic does not know.
    fn must_go(&self) -> bool {
        let may_follow_topic = || self.begun.elapsed() >= MIN_TOPIC_PAUSE;
        self.producer.client().fatal_error().is_some()
            || self.log.is_topic_replaced() && may_follow_topic()
    }
}

impl Producer {
    /// Fails where the configuration is refused; brokers that cannot be reached are waited for.
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
        let first = Arc::new(RwLock::new(Client::new(&client)?));
        let config = Arc::new(client);
        Ok(Self {
            config,
            client: first,
            renewal: Arc::default(),
            batch_bytes,
            limits: Arc::default(),
        })
    }

    /// Produces all messages and waits until the broker has acknowledged each. Those of a batch
    /// that is too large for the topic are produced again in smaller batches, in the end each
    /// alone. Fails where one of them could not be delivered; others may have been.
    pub async fn produce(&self, topic: &str, messages: Vec<Message>) -> Result<(), ProduceError> {
        let client = self.current();
        let all: Vec<_> = (0..messages.len()).collect();
        let began = Instant::now();
        let mut produced = deliver(&client.producer, topic, &messages, &all).await;
        let is_failing = self.is_failing(&produced, began);
        if is_failing || client.must_go() {
            self.replace(&client, is_failing)?;
        }
        if let Ok(refused) = &produced
            && !refused.is_empty()
        {
            produced = self.produce_smaller(topic, &messages, refused, &client).await;
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

    /// Has batches fit what these topics take, as far as the broker says so within some seconds.
    pub(crate) async fn fit_batches_to(&self, topics: &[&str]) -> KafkaResult<()> {
        let client = self.current();
        match self.limits.ask(&self.config, topics).await {
            Some(bytes) => self.limit_batches(bytes, &client),
            None => Ok(()),
        }
    }

    /// Produces messages that `refused_by` could not for the size of their batches. Answers the
    /// numbers of those that the broker refuses alone too.
    async fn produce_smaller(
        &self,
        topic: &str,
        messages: &[Message],
        refused: &[usize],
        refused_by: &Arc<Client>,
    ) -> KafkaResult<Vec<usize>> {
        self.fit_batches_to(&[topic]).await?;
        let mut refused = refused.to_vec();
        let client = self.current();
        if !Arc::ptr_eq(&client, refused_by) {
            refused = deliver(&client.producer, topic, messages, &refused).await?;
            if refused.is_empty() {
                return Ok(refused);
            }
        }
        let mut config = (*self.config).clone();
        config.set("batch.num.messages", "1");
        let alone = Client::new(&config)?;
        let too_large = deliver(&alone.producer, topic, messages, &refused).await;
        release(alone);
        let too_large = too_large?;
        if too_large.len() < refused.len() {
            self.limit_batches(self.batch_bytes.load(Ordering::Relaxed) / 2, &client)?;
        }
        Ok(too_large)
    }

    /// Lowers the limit of batches, unless another client than `present` has taken over meanwhile.
    fn limit_batches(&self, bytes: usize, present: &Arc<Client>) -> KafkaResult<()> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        let (former, bytes) =
            (self.batch_bytes.load(Ordering::Relaxed), bytes.max(MIN_BATCH_BYTES));
        if bytes >= former || !Arc::ptr_eq(&client, present) {
            return Ok(());
        }
        tracing::info!(bytes, former, "the producer's batches are limited");
        self.batch_bytes.store(bytes, Ordering::Relaxed);
        release(std::mem::replace(&mut *client, self.new_client()?));
        Ok(())
    }

    fn new_client(&self) -> KafkaResult<Arc<Client>> {
        let mut config = (*self.config).clone();
        config.set("batch.size", self.batch_bytes.load(Ordering::Relaxed).to_string());
        Client::new(&config)
    }

    fn current(&self) -> Arc<Client> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether deliveries have failed for so long that another client may help.
    fn is_failing(&self, produced: &KafkaResult<Vec<usize>>, began: Instant) -> bool {
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        renewal.is_due(produced.as_ref().err(), began, Instant::now())
    }

    /// Replaces the client `present`, unless another call has replaced it meanwhile.
    fn replace(&self, present: &Arc<Client>, is_failing: bool) -> KafkaResult<()> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&client, present) {
            let fatal = client.producer.client().fatal_error();
            let topic_replaced = client.log.is_topic_replaced();
            tracing::warn!(?fatal, topic_replaced, is_failing, "the producer is replaced");
            release(std::mem::replace(&mut *client, self.new_client()?));
        }
        Ok(())
    }

    /// Waits a bounded time for what is still on its way.
    pub(crate) async fn flush(&self) {
        let client = self.current();
        let flushed =
            tokio::task::spawn_blocking(move || client.producer.flush(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "messages were not delivered before the stop");
        }
    }
}

/// Gives a client back. The last one to do so ends it, which may take half a second.
fn release(client: Arc<Client>) {
    if Arc::strong_count(&client) == 1 {
        drop(tokio::task::spawn_blocking(move || drop(client)));
    }
}

/// Produces the messages with these numbers. Answers the numbers of those that are too large, by
/// themselves or with others of their batch.
async fn deliver(
    client: &FutureProducer<Context>,
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
            Ok(Ok(_)) => {}
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

async fn enqueue(
    client: &FutureProducer<Context>,
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
