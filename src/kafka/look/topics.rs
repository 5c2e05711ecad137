//! Topics, their partitions and replicas, and their settings.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use rdkafka::{consumer::Consumer as _, error::RDKafkaErrorCode, metadata::MetadataTopic};

use super::KafkaLook;
use crate::{
    finding::{Check, Finding, Findings, Remedy, Verdict},
    kafka::{
        KafkaProbe, TOPICS, client_config, plain,
        probe::ANSWER_TIMEOUT,
        token::Tokens,
        topic_settings::{Severity, TopicSettings, kept_for, kept_too_long},
        topics::Kind,
    },
};

/// The settings of a topic, or why they cannot be read.
type Read = Result<TopicSettings, String>;

/// A topic that is used.
struct UsedTopic {
    name: String,
    kind: Kind,
    is_orders: bool,
}

/// How a topic is spread over the brokers.
#[derive(Debug, Clone)]
enum Spread {
    Known {
        partitions: usize,
        /// Replicas of the partition that has the fewest.
        replicas: usize,
        leaderless: usize,
        /// Partitions of which not all replicas are in sync.
        behind: usize,
    },
    Missing,
    Denied,
    Failed(String),
}

/// Returns the topics that exist, and what was found out about all of them.
pub(super) async fn look(look: &KafkaLook<'_>, brokers: usize) -> (BTreeSet<String>, Vec<Finding>) {
    let used: Vec<_> = TOPICS
        .iter()
        .filter_map(|topic| Some((topic.name(look.topics)?, topic.kind)))
        .filter(|(name, _)| look.needs.iter().any(|need| need.topic == *name))
        .map(|(name, kind)| UsedTopic {
            name: name.to_owned(),
            kind,
            is_orders: name == look.topics.orders,
        })
        .collect();
    let spreads = spreads(look, used.iter().map(|topic| topic.name.clone()).collect()).await;
    let is_known = |spread: &Spread| matches!(spread, Spread::Known { .. });
    let known = used.iter().zip(&spreads).filter(|(_, spread)| is_known(spread));
    let known: BTreeSet<_> = known.map(|(topic, _)| topic.name.clone()).collect();
    let mut settings = settings(look, &known).await;
    let mut found = Vec::new();
    for (topic, spread) in used.iter().zip(spreads) {
        let mut findings = Findings::of("kafka", format!("topic {}", topic.name));
        if let (Spread::Known { replicas, .. }, Some(read)) =
            (&spread, settings.remove(&topic.name))
        {
            look_at_settings(look, topic, *replicas, read, &mut findings);
        }
        look_at_spread(look, &topic.name, &spread, brokers, &mut findings);
        found.extend(findings.into_vec());
    }
    (known, found)
}

async fn spreads(look: &KafkaLook<'_>, topics: Vec<String>) -> Vec<Spread> {
    let count = topics.len();
    let probe = KafkaProbe::new(look.kafka, &look.kafka.group_id);
    let probe = match probe {
        Ok(probe) => Arc::new(probe),
        Err(error) => return vec![Spread::Failed(error.to_string()); count],
    };
    let asking = topics.into_iter().map(async |topic| {
        let probe = Arc::clone(&probe);
        let asked = tokio::task::spawn_blocking(move || spread(&probe, &topic));
        asked.await.unwrap_or_else(|error| Spread::Failed(error.to_string()))
    });
    join_all(asking).await
}

fn spread(probe: &KafkaProbe, topic: &str) -> Spread {
    let metadata = match probe.client().fetch_metadata(Some(topic), ANSWER_TIMEOUT) {
        Ok(metadata) => metadata,
        Err(error) => return Spread::Failed(error.to_string()),
    };
    let Some(found) = metadata.topics().first() else { return Spread::Missing };
    match found.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Spread::Missing
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => Spread::Denied,
        Some(error) => Spread::Failed(error.to_string()),
        None => known(found),
    }
}

fn known(topic: &MetadataTopic) -> Spread {
    let partitions = topic.partitions();
    if partitions.is_empty() {
        return Spread::Missing;
    }
    Spread::Known {
        partitions: partitions.len(),
        replicas: partitions.iter().map(|one| one.replicas().len()).min().unwrap_or(0),
        leaderless: partitions.iter().filter(|one| one.leader() < 0).count(),
        behind: partitions.iter().filter(|one| one.isr().len() < one.replicas().len()).count(),
    }
}

fn look_at_spread(
    look: &KafkaLook<'_>,
    topic: &str,
    spread: &Spread,
    brokers: usize,
    findings: &mut Findings,
) {
    match spread {
        Spread::Missing => findings.wrong(
            Check::TopicExists,
            "the topic does not exist",
            Remedy::Command("stocklock setup".into()),
        ),
        Spread::Denied => findings.wrong(
            Check::TopicRights,
            "the user may not describe the topic",
            look.grant("Describe", &format!("--topic {topic}")),
        ),
        Spread::Failed(why) => findings.wrong(
            Check::TopicExists,
            format!("the brokers do not describe it: {why}"),
            Remedy::Advice("look into the logs of the brokers".into()),
        ),
        &Spread::Known { partitions, replicas, leaderless, behind } => {
            let back = "start the brokers that are away, or look into their logs";
            if leaderless > 0 {
                let text = format!("{leaderless} of {partitions} partitions have no leader");
                findings.wrong(Check::TopicExists, text, Remedy::Advice(back.into()));
            } else {
                findings.fine(Check::TopicExists, format!("exists, {partitions} partitions"));
            }
            look_at_partitions(look, topic, partitions, findings);
            if replicas == 1 && brokers > 1 {
                let text = format!(
                    "1 replica, and the cluster has {brokers} brokers: with its \
                                    broker, the messages are away or lost"
                );
                let remedy = "add replicas with kafka-reassign-partitions.sh";
                findings.warning(Check::Replication, text, Remedy::Advice(remedy.into()));
            } else if behind > 0 {
                let text = format!("{behind} of {partitions} partitions lack a replica in sync");
                findings.warning(Check::Replication, text, Remedy::Advice(back.into()));
            } else {
                findings.fine(Check::Replication, format!("{replicas} replicas, all in sync"));
            }
        }
    }
}

/// All topics should have the partitions that `topics.partitions` says. So one of them is no
/// narrower than the others.
fn look_at_partitions(
    look: &KafkaLook<'_>,
    topic: &str,
    partitions: usize,
    findings: &mut Findings,
) {
    let wanted = usize::try_from(look.topics.partitions).unwrap_or(usize::MAX);
    let text = format!("{partitions} partitions, topics.partitions is {wanted}");
    match partitions.cmp(&wanted) {
        Ordering::Less => {
            let rest = format!("--alter --topic {topic} --partitions {wanted}");
            findings.warning(Check::Partitions, text, look.command("kafka-topics", &rest));
        }
        Ordering::Greater => {
            let setting = format!("topics.partitions = \"{partitions}\"");
            findings.warning(Check::Partitions, text, Remedy::Setting(setting));
        }
        Ordering::Equal => {
            findings.fine(Check::Partitions, format!("{partitions} partitions, as configured"));
        }
    }
}

/// The settings of each topic, or why they cannot be read. All topics are asked for at the same
/// time, each by a request of its own: the fault of one spoils no other one.
async fn settings(look: &KafkaLook<'_>, topics: &BTreeSet<String>) -> BTreeMap<String, Read> {
    let admin = plain::admin(&client_config(look.kafka), &Tokens::of(look.kafka)).await;
    let reading = topics.iter().map(async |topic| {
        let described = match &admin {
            Ok(admin) => TopicSettings::describe(admin, &[topic], ANSWER_TIMEOUT).await,
            Err(error) => Err(error.clone()),
        };
        // rdkafka reports a topic that may not be described as one without settings.
        let read = described.map_err(|error| error.to_string()).and_then(|mut described| {
            let settings = described.remove(topic).filter(|settings| !settings.is_empty());
            settings.ok_or_else(|| "the broker names none".to_owned())
        });
        (topic.clone(), read)
    });
    join_all(reading).await.into_iter().collect()
}

fn look_at_settings(
    look: &KafkaLook<'_>,
    topic: &UsedTopic,
    replicas: usize,
    read: Read,
    findings: &mut Findings,
) {
    let name = &topic.name;
    let settings = match read {
        Ok(settings) => settings,
        Err(error) => {
            let text = format!("its settings cannot be read: {error}");
            let grant = look.grant("DescribeConfigs", &format!("--topic {name}"));
            findings.warning(Check::TopicSettings, text, grant);
            return;
        }
    };
    let alter = |setting: &str, value: &str| {
        let rest = format!(
            "--alter --entity-type topics --entity-name {name} --add-config {setting}={value}"
        );
        look.command("kafka-configs", &rest)
    };
    let problems = settings.problems(replicas, topic.kind);
    if problems.is_empty() {
        findings.fine(Check::TopicSettings, "no setting can stop or lose messages");
    }
    for problem in problems {
        let verdict = match problem.severity {
            Severity::Fault => Verdict::Wrong,
            Severity::Risk => Verdict::Warning,
        };
        let remedy = alter(problem.setting, &problem.value);
        findings.add(Check::TopicSettings, verdict, problem.what, Some(remedy));
    }
    if topic.is_orders {
        let longest = look.horizon.longest_wait();
        let retention_ms = settings.get("retention.ms").and_then(|ms| ms.parse().ok());
        match retention_ms.and_then(|ms| kept_too_long(ms, longest)) {
            Some(kept) => findings.warning(
                Check::Retention,
                format!(
                    "it keeps events {kept}, but one that waits for more than {} may be \
                     dead-lettered as expired",
                    kept_for(longest)
                ),
                alter("retention.ms", &millis(look.topics.retention)),
            ),
            None => findings.fine(Check::Retention, "no event that it keeps is too old"),
        }
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
