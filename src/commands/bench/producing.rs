//! The client that places orders as records of the topic of order requests.

use std::time::Instant;

use anyhow::Context as _;
use rdkafka::message::{Header, OwnedHeaders};
use tokio::task::JoinSet;

use super::{
    placing::{Identity, Placing},
    site::Site,
};
use crate::{
    domain::{Lines, OrderId},
    kafka::{Message, Producer},
    wire::OrderRequestCodec,
};

/// The most records of one call of the producer.
const MAX_RECORDS: usize = 1_000;
/// Calls that wait for the broker, without a rate and with one.
const CALLS: usize = 4;
const MAX_CALLS: usize = 10_000;

impl Placing {
    /// Produces all orders to the topic of order requests. The keys are random, so that the records
    /// spread over the partitions.
    ///
    /// Fails if the broker does not take a record.
    pub(super) async fn produce(self, site: &Site, orders: &[Lines]) -> anyhow::Result<()> {
        let intake = site.config.topics.order_requests.as_ref().context("the intake is off")?;
        let (producer, codec) =
            (Producer::new(&site.config.kafka)?, OrderRequestCodec::reading(&[])?);
        let most = self.rate.map_or(CALLS, |_| MAX_CALLS);
        let (begun, mut calls, mut next) = (Instant::now(), JoinSet::new(), 0);
        while next < orders.len() {
            self.due(begun, u32::try_from(next)?).await;
            while calls.len() >= most {
                calls.join_next().await.context("a call of the producer")???;
            }
            let end = self.count_due(begun).clamp(next + 1, next + MAX_RECORDS).min(orders.len());
            let records = orders[next..end].iter().map(|lines| self.identity.record(&codec, lines));
            let (producer, topic) = (producer.clone(), intake.requests.clone());
            let records: Vec<_> = records.collect();
            calls.spawn(async move { producer.produce(&topic, records).await });
            next = end;
        }
        while let Some(produced) = calls.join_next().await {
            produced??;
        }
        Ok(())
    }

    /// How many orders are due. Without a rate, all of them are.
    fn count_due(self, begun: Instant) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        let due = begun.elapsed().as_micros() * u128::from(rate) / 1_000_000;
        usize::try_from(due).unwrap_or(usize::MAX)
    }
}

impl Identity {
    /// The order as a record.
    fn record(self, codec: &OrderRequestCodec, lines: &Lines) -> Message {
        let order_id = (self == Self::OrderId).then(OrderId::generate);
        let key = OrderId::generate().to_string();
        let headers = (self == Self::Key).then(|| {
            OwnedHeaders::new().insert(Header { key: "Idempotency-Key", value: Some(&key) })
        });
        Message {
            payload: Some(codec.encode(order_id, lines)),
            key: Some(key.into_bytes()),
            headers,
        }
    }
}
