use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _},
};

use super::client_config;
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
    client: Arc<RwLock<FutureProducer<Context>>>,
}

/// What is to be produced. The topic is the caller's.
#[derive(Debug, Clone)]
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Option<OwnedHeaders>,
}

#[derive(Clone)]
struct Context;

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka");
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
        let producer = FutureProducer::from_config_and_context(&client, Context)?;
        Ok(Self { config: Arc::new(client), client: Arc::new(RwLock::new(producer)) })
    }

    /// Produces all messages and waits until the broker has acknowledged each. Fails where one of them could not be delivered;
    /// others may have been.
    pub async fn produce(&self, topic: &str, messages: Vec<Message>) -> KafkaResult<()> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let produced = deliver(&client, topic, &messages).await;
        if produced.is_err() && client.client().fatal_error().is_some() {
            self.replace_failed()?;
        }
        produced
    }

    /// An idempotent producer that lost track of its sequence, for instance as a broker lost its last seconds, never delivers again.
    fn replace_failed(&self) -> KafkaResult<()> {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((error, reason)) = client.client().fatal_error() {
            tracing::warn!(%error, reason, "the producer is replaced");
            let failed =
                std::mem::replace(&mut *client, FutureProducer::from_config_and_context(&self.config, Context)?);
            tokio::task::spawn_blocking(move || drop(failed));
        }
        Ok(())
    }

    /// Waits a bounded time for what is still on its way.
    pub async fn flush(&self) {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
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
