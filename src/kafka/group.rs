use std::time::Duration;

use rdkafka::{consumer::Consumer as _, error::KafkaResult};

use super::{
    client_config,
    plain::{self, PlainCallbacks},
    token::Tokens,
};
use crate::config::{self, GroupProtocol};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a consumer group has a member. Always `true` under the group protocol `consumer`, whose
/// members librdkafka cannot list.
///
/// Blocks for up to 10 s. Fails if no broker answers in that time.
pub(crate) fn has_members(kafka: &config::KafkaConfig, group_id: &str) -> KafkaResult<bool> {
    if kafka.group_protocol == GroupProtocol::Consumer {
        return Ok(true);
    }
    let client = plain::asking(&client_config(kafka), PlainCallbacks::new(&Tokens::of(kafka)))?;
    let groups = client.fetch_group_list(Some(group_id), ANSWER_TIMEOUT)?;
    Ok(groups.groups().iter().any(|group| !group.members().is_empty()))
}
