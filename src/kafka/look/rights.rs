//! What the user may do. Each right is tried by a request that a broker checks and then rejects for
//! another cause, so nothing is written.
//!
//! | right | the request | the broker's answer to a user with the right |
//! | --- | --- | --- |
//! | read a topic | a fetch at its end | no message |
//! | write a topic | a message with `acks=2` | `INVALID_REQUIRED_ACKS`, before it is written |
//! | join a group | a member with a session of 1 ms | `INVALID_SESSION_TIMEOUT` |

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    config::{ClientConfig, FromClientConfigAndContext as _},
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};

use super::{GroupNeed, KafkaLook};
use crate::{
    finding::{Check, Finding, Findings, Remedy, for_shell},
    kafka::{
        KafkaProbe, client_config,
        probe::{ANSWER_TIMEOUT, ProbeCallbacks},
    },
};

const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// The answer to an attempt.
#[derive(Debug)]
enum Tried {
    Allowed,
    Denied,
    /// Neither yes nor no.
    Unknown(String),
}

impl Tried {
    /// `allowed` are the errors of a broker that has checked the right before.
    fn of(error: &KafkaError, allowed: &[RDKafkaErrorCode]) -> Self {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Self::Denied,
            Some(code) if allowed.contains(&code) => Self::Allowed,
            _ => Self::Unknown(error.to_string()),
        }
    }
}

/// Tries to read and to write the topics that exist.
pub(super) async fn look_at_topics(look: &KafkaLook<'_>, known: &BTreeSet<String>) -> Vec<Finding> {
    let needs = look.needs.iter().filter(|need| known.contains(&need.topic));
    let looking = needs.map(async |need| {
        let mut findings = Findings::of("kafka", format!("topic {}", need.topic));
        let (read, written) = tokio::join!(
            async { if need.is_read { Some(read(look, &need.topic).await) } else { None } },
            async { if need.is_written { Some(write(look, &need.topic).await) } else { None } },
        );
        for (tried, operation) in [(read, "Read"), (written, "Write")] {
            let Some(tried) = tried else { continue };
            let grant = || look.grant(operation, &format!("--topic {}", need.topic));
            note(tried, Check::TopicRights, operation, grant, &mut findings);
        }
        findings.into_vec()
    });
    futures::future::join_all(looking).await.into_iter().flatten().collect()
}

/// Tries to join the groups, and looks who is in them.
pub(super) async fn look_at_groups(look: &KafkaLook<'_>, known: &BTreeSet<String>) -> Vec<Finding> {
    let groups = look.groups.iter().filter(|group| known.contains(&group.topic));
    let looking = groups.map(async |group| {
        let mut findings = Findings::of("kafka", format!("group {}", group.group_id));
        let tried = join(look, group).await;
        let is_allowed = matches!(tried, Tried::Allowed);
        let grant = || look.grant("Read", &format!("--group {}", for_shell(&group.group_id)));
        note(tried, Check::Group, "Read", grant, &mut findings);
        if is_allowed && look.lists_members() {
            look_at_members(look, group, &mut findings).await;
        }
        findings.into_vec()
    });
    futures::future::join_all(looking).await.into_iter().flatten().collect()
}

fn note(
    tried: Tried,
    check: Check,
    operation: &str,
    grant: impl Fn() -> Remedy,
    findings: &mut Findings,
) {
    match tried {
        Tried::Allowed => findings.fine(check, format!("the user has the right {operation}")),
        Tried::Denied => {
            findings.wrong(check, format!("the user lacks the right {operation}"), grant());
        }
        Tried::Unknown(why) => findings.warning(
            check,
            format!("the right {operation} could not be tried: {why}"),
            Remedy::Advice("run stocklock doctor again, or look into the brokers' logs".into()),
        ),
    }
}

/// Fetches at the end of a partition.
async fn read(look: &KafkaLook<'_>, topic: &str) -> Tried {
    let mut config = client_config(look.kafka);
    config
        .set("group.id", &look.kafka.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("socket.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string());
    let (topic, callbacks) = (topic.to_owned(), ProbeCallbacks::new(look.kafka));
    blocking(move || {
        let client = quiet(&config, callbacks)?;
        let mut end = TopicPartitionList::new();
        end.add_partition_offset(&topic, 0, Offset::End)?;
        client.assign(&end)?;
        Ok(poll(&client, &[], |error| matches!(error, KafkaError::PartitionEOF(_))))
    })
    .await
}

/// Sends a message that no broker takes: there is no `acks=2`.
async fn write(look: &KafkaLook<'_>, topic: &str) -> Tried {
    let mut config = client_config(look.kafka);
    config
        .set("enable.idempotence", "false")
        .set("acks", "2")
        .set("retries", "0")
        .set("message.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string());
    let callbacks = ProbeCallbacks::new(look.kafka);
    let made = FutureProducer::from_config_and_context(&config, callbacks);
    let producer: FutureProducer<ProbeCallbacks> = match made {
        Ok(producer) => producer,
        Err(error) => return Tried::Unknown(error.to_string()),
    };
    let nothing: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).partition(0);
    match producer.send(nothing, Timeout::After(ANSWER_TIMEOUT)).await {
        Ok(_) => Tried::Allowed,
        Err((error, _)) => Tried::of(&error, &[RDKafkaErrorCode::InvalidRequiredAcks]),
    }
}

/// Asks to join with a session that is too short.
async fn join(look: &KafkaLook<'_>, group: &GroupNeed) -> Tried {
    let mut config = client_config(look.kafka);
    config
        .set("group.id", &group.group_id)
        .set("session.timeout.ms", "1")
        .set("heartbeat.interval.ms", "1")
        .set("enable.auto.commit", "false")
        .set("socket.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string());
    let (topic, callbacks) = (group.topic.clone(), ProbeCallbacks::new(look.kafka));
    blocking(move || {
        let client = quiet(&config, callbacks)?;
        client.subscribe(&[&topic])?;
        let refused_later = [
            RDKafkaErrorCode::InvalidSessionTimeout,
            RDKafkaErrorCode::InconsistentGroupProtocol,
            RDKafkaErrorCode::GroupMaxSizeReached,
        ];
        Ok(poll(&client, &refused_later, |_| false))
    })
    .await
}

/// Polls until an answer. `is_end` says which event shows that the user has the right.
fn poll(
    client: &BaseConsumer<ProbeCallbacks>,
    allowed: &[RDKafkaErrorCode],
    is_end: impl Fn(&KafkaError) -> bool,
) -> Tried {
    let (begun, mut last) = (Instant::now(), "no answer within 5 s".to_owned());
    while begun.elapsed() < ANSWER_TIMEOUT {
        match client.poll(POLL_TIMEOUT) {
            None => {}
            Some(Ok(_)) => return Tried::Allowed,
            Some(Err(error)) if is_end(&error) => return Tried::Allowed,
            Some(Err(error)) => match Tried::of(&error, allowed) {
                Tried::Unknown(why) => last = why,
                answer => return answer,
            },
        }
    }
    Tried::Unknown(last)
}

/// A group of classic members. A foreign member takes partitions away from the roles.
async fn look_at_members(look: &KafkaLook<'_>, group: &GroupNeed, findings: &mut Findings) {
    let (probe, group_id) = (KafkaProbe::new(look.kafka, &group.group_id), group.group_id.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let groups = probe?.client().fetch_group_list(Some(&group_id), ANSWER_TIMEOUT)?;
        Ok::<_, KafkaError>(groups.groups().first().map(|group| {
            let ids = group.members().iter().map(|member| member.client_id().to_owned());
            (group.state().to_owned(), ids.collect::<Vec<_>>())
        }))
    });
    match asked.await {
        Ok(Ok(Some((state, members)))) => {
            let foreign: Vec<_> =
                members.iter().filter(|id| !id.starts_with("stocklock")).cloned().collect();
            if foreign.is_empty() {
                let text = format!("{} members, state {state}", members.len());
                findings.fine(Check::Group, text);
            } else {
                let text =
                    format!("other programs are members of the group: {}", foreign.join(", "));
                let advice = "give the group of stocklock a name of its own, or stop them";
                findings.warning(Check::Group, text, Remedy::Advice(advice.into()));
            }
        }
        Ok(Ok(None)) => findings.fine(Check::Group, "has no member yet"),
        Ok(Err(error)) => unlisted(&error.to_string(), findings),
        Err(error) => unlisted(&error.to_string(), findings),
    }
}

fn unlisted(why: &str, findings: &mut Findings) {
    findings.warning(
        Check::Group,
        format!("its members cannot be listed: {why}"),
        Remedy::Advice("look into the logs of the brokers".into()),
    );
}

/// A client that logs nothing: the findings say what it meets.
fn quiet(
    config: &ClientConfig,
    callbacks: ProbeCallbacks,
) -> Result<BaseConsumer<ProbeCallbacks>, KafkaError> {
    BaseConsumer::from_config_and_context(config, callbacks)
}

async fn blocking(attempt: impl FnOnce() -> Result<Tried, KafkaError> + Send + 'static) -> Tried {
    match tokio::task::spawn_blocking(attempt).await {
        Ok(Ok(tried)) => tried,
        Ok(Err(error)) => Tried::Unknown(error.to_string()),
        Err(error) => Tried::Unknown(error.to_string()),
    }
}
