use std::time::Duration;

use rdkafka::{
    ClientContext,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord, Producer as _},
};

use super::client_config;
use crate::{config::Kafka, telemetry::Metrics};

/// How long librdkafka tries to deliver a message before it gives up; the caller then decides.
const DELIVERY_TIMEOUT_MS: &str = "10000";
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Produces with `acks=all` and idempotence, and partitions as Java's default does.
#[derive(Clone)]
pub struct Producer {
    inner: FutureProducer<Context>,
}

/// What is to be produced. The topic is the caller's.
#[derive(Debug, Clone)]
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Option<OwnedHeaders>,
}

#[derive(Clone)]
struct Context {
    metrics: Metrics,
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.metrics.retries.with_label_values(&["kafka"]).inc();
        tracing::warn!(%error, reason, "kafka");
    }
}

impl Producer {
    /// Fails where the configuration is refused; brokers that cannot be reached are waited for.
    pub fn new(kafka: &Kafka, metrics: &Metrics) -> KafkaResult<Self> {
        let mut client = client_config(kafka);
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", "50000")
            .set("queue.buffering.max.kbytes", "65536")
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS);
        let inner = FutureProducer::from_config_and_context(&client, Context { metrics: metrics.clone() })?;
        Ok(Self { inner })
    }

    /// Produces all messages and waits until the broker has acknowledged each. Fails where one of them could not be delivered;
    /// others may have been.
    pub async fn produce(&self, topic: &str, messages: Vec<Message>) -> KafkaResult<()> {
        let mut deliveries = Vec::with_capacity(messages.len());
        for message in &messages {
            deliveries.push(self.enqueue(topic, message).await?);
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

    async fn enqueue(&self, topic: &str, message: &Message) -> KafkaResult<rdkafka::producer::DeliveryFuture> {
        loop {
            let record = FutureRecord::<[u8], [u8]> {
                topic,
                partition: None,
                payload: message.payload.as_deref(),
                key: message.key.as_deref(),
                timestamp: None,
                headers: message.headers.clone(),
            };
            match self.inner.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    tokio::time::sleep(QUEUE_FULL_DELAY).await;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Waits a bounded time for what is still on its way.
    pub async fn flush(&self) {
        let inner = self.inner.clone();
        let flushed = tokio::task::spawn_blocking(move || inner.flush(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "messages were not delivered before the stop");
        }
    }
}
