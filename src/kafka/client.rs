use rdkafka::ClientConfig;

use crate::config::Kafka;

/// What every client of the cluster has in common.
pub fn client_config(kafka: &Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "stocklock")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true");
    for (name, value) in &kafka.security {
        client.set(*name, value);
    }
    client
}
