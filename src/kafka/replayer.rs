use rdkafka::{
    config::FromClientConfigAndContext as _,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord},
};

use super::{client_config, plain::PlainCallbacks, producer::MAX_MESSAGE_BYTES, token::Tokens};
use crate::config::KafkaConfig;

/// How long librdkafka tries to deliver a message, milliseconds.
const DELIVERY_TIMEOUT_MS: &str = "20000";

/// Produces messages to partitions of the caller's choice, with `acks=all` and idempotence.
pub(crate) struct Replayer {
    producer: FutureProducer<PlainCallbacks>,
}

/// A message that is produced again.
#[derive(Debug)]
pub(crate) struct ReplayedMessage<'m> {
    pub(crate) topic: &'m str,
    /// `None`: as Java's default partitioner chooses.
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'m [u8]>,
    pub(crate) payload: Option<&'m [u8]>,
    pub(crate) headers: OwnedHeaders,
}

impl Replayer {
    /// Fails if librdkafka rejects the configuration. Does not wait for brokers.
    pub(crate) fn new(kafka: &KafkaConfig) -> KafkaResult<Self> {
        let mut client = client_config(kafka);
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("message.max.bytes", MAX_MESSAGE_BYTES)
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS);
        let callbacks = PlainCallbacks::new(&Tokens::of(kafka));
        Ok(Self { producer: FutureProducer::from_config_and_context(&client, callbacks)? })
    }

    /// Produces a message, and returns whether the broker has acknowledged it. `false`: it is too
    /// large for its topic.
    ///
    /// Fails if the message is not delivered within 20 s, or if the broker rejects it for another
    /// cause.
    pub(crate) async fn replay(&self, message: ReplayedMessage<'_>) -> KafkaResult<bool> {
        let ReplayedMessage { topic, partition, key, payload, headers } = message;
        let headers = Some(headers);
        let record =
            FutureRecord::<[u8], [u8]> { topic, partition, payload, key, timestamp: None, headers };
        let delivered = match self.producer.send_result(record) {
            Ok(delivery) => match delivery.await {
                Ok(delivered) => delivered.map(drop).map_err(|(error, _)| error),
                Err(_) => Err(KafkaError::Canceled),
            },
            Err((error, _)) => Err(error),
        };
        match delivered {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) =>
            {
                Ok(false)
            }
            delivered => delivered.map(|()| true),
        }
    }
}
