use std::time::Duration;

use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaResult,
};

use super::client_config;
use crate::config::{self, GroupProtocol};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the workers' group has a member. Always `true` under the protocol `consumer`, whose
/// members the client cannot list. Blocks for up to 10 s; fails where no broker answers.
pub(crate) fn has_workers(kafka: &config::KafkaConfig) -> KafkaResult<bool> {
    if kafka.group_protocol == GroupProtocol::Consumer {
        return Ok(true);
    }
    let client: BaseConsumer = client_config(kafka).create()?;
    let groups = client.fetch_group_list(Some(&kafka.group_id), TIMEOUT)?;
    Ok(groups.groups().iter().any(|group| !group.members().is_empty()))
}
