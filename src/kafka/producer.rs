use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
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
    client::{ClientLog, client_config, report_topic_ids},
    renewal::ProducerRenewal,
};
use crate::config::Kafka;

/// The largest message, bytes: what a broker takes by default, and as much again for the headers of a dead letter.
pub(super) const MAX_MESSAGE_BYTES: &str = "2097152";
/// How long librdkafka tries to deliver a message before it gives up; the caller then decides.
const DELIVERY_TIMEOUT_MS: &str = "10000";
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Produces with `acks=all` and idempotence, and partitions as Java's default does.
#[derive(Clone)]
pub struct Producer {
    config: Arc<ClientConfig>,
    client: Arc<RwLock<Client>>,
    renewal: Arc<Mutex<ProducerRenewal>>,
}

/// The client that produces at present, and what it says.
#[derive(Clone)]
struct Client {
    producer: FutureProducer<Context>,
    log: Arc<ClientLog>,
}

/// What is to be produced. The topic is the caller's.
#[derive(Debug, Clone)]
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Option<OwnedHeaders>,
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
    fn new(config: &ClientConfig) -> KafkaResult<Self> {
        let log = Arc::<ClientLog>::default();
        Ok(Self { producer: FutureProducer::from_config_and_context(config, Context(Arc::clone(&log)))?, log })
    }

    /// An idempotent producer that lost track of its sequence, for instance as a broker lost its
    /// last seconds, never delivers again. One whose topic was replaced has a sequence that the new
    /// topic does not know.
    fn must_go(&self) -> bool {
        self.producer.client().fatal_error().is_some() || self.log.is_topic_replaced()
    }
}

impl Producer {
    /// Fails where the configuration is refused; brokers that cannot be reached are waited for.
    pub fn new(kafka: &Kafka) -> KafkaResult<Self> {
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
        let connected = Arc::new(RwLock::new(Client::new(&client)?));
        Ok(Self { config: Arc::new(client), client: connected, renewal: Arc::default() })
    }

    /// Produces all messages and waits until the broker has acknowledged each. Fails where one of them could not be delivered;
    /// others may have been.
    pub async fn produce(&self, topic: &str, messages: Vec<Message>) -> KafkaResult<()> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let began = Instant::now();
        let produced = deliver(&client.producer, topic, &messages).await;
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        let is_failing = renewal.is_due(&produced, began, Instant::now());
        drop(renewal);
        if is_failing || client.must_go() {
            self.replace(is_failing)?;
        }
        produced
    }

    /// Replaces the client where it must go, or where it `is_failing`, unless another call has
    /// replaced it meanwhile.
    fn replace(&self, is_failing: bool) -> KafkaResult<()> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if is_failing || client.must_go() {
            let fatal = client.producer.client().fatal_error();
            let topic_replaced = client.log.is_topic_replaced();
            tracing::warn!(?fatal, topic_replaced, is_failing, "the producer is replaced");
            let former = std::mem::replace(&mut *client, Client::new(&self.config)?);
            tokio::task::spawn_blocking(move || drop(former));
        }
        Ok(())
    }

    /// Waits a bounded time for what is still on its way.
    pub async fn flush(&self) {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).producer.clone();
        let flushed = tokio::task::spawn_blocking(move || client.flush(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "messages were not delivered before the stop");
        }
    }
}

async fn deliver(client: &FutureProducer<Context>, topic: &str, messages: &[Message]) -> KafkaResult<()> {
    let mut deliveries = Vec::with_capacity(messages.len());
    for message in messages {
        deliveries.push(enqueue(client, topic, message).await?);
    }
    for delivery in deliveries {
        match delivery.await {
            Ok(Ok(_)) => {}
            Ok(Err((error, _))) => return Err(error),
            Err(_) => return Err(KafkaError::Canceled),
        }
    }
    Ok(())
}

async fn enqueue(client: &FutureProducer<Context>, topic: &str, message: &Message) -> KafkaResult<DeliveryFuture> {
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
