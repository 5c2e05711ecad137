use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult},
};

use super::topics::Kind;

/// The least `max.message.bytes` of `orders` and `order-status`. The largest order event has 100
/// lines, the largest status has a reason of 512 characters, and both have headers.
pub const MIN_MESSAGE_BYTES: i64 = 16_384;
/// By how much the clocks of a fleet may differ, milliseconds.
const CLOCK_TOLERANCE_MS: i64 = 60_000;

/// A topic's settings as the broker applies them, the broker's defaults included.
#[derive(Debug, Default)]
pub(super) struct TopicSettings(BTreeMap<String, String>);

impl TopicSettings {
    /// Asks the broker for the settings of these topics, and returns them by topic.
    ///
    /// Fails if a topic is unknown, if its settings may not be read, or if no broker answers within
    /// `timeout`.
    pub(super) async fn describe(
        admin: &AdminClient<DefaultClientContext>,
        topics: &[&str],
        timeout: Duration,
    ) -> KafkaResult<BTreeMap<String, Self>> {
        let options =
            AdminOptions::new().operation_timeout(Some(timeout)).request_timeout(Some(timeout));
        let specifiers: Vec<_> =
            topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let mut described = BTreeMap::new();
        for resource in admin.describe_configs(&specifiers, &options).await? {
            let ConfigResource { specifier, entries } = resource.map_err(KafkaError::AdminOp)?;
            let settings = entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            if let OwnedResourceSpecifier::Topic(topic) = specifier {
                described.insert(topic, Self(settings.collect()));
            }
        }
        Ok(described)
    }

    /// The value of a setting, if the broker named it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }

    /// The largest batch that the topic takes, bytes, if the broker named the limits.
    pub(super) fn max_batch_bytes(&self) -> Option<usize> {
        let limits =
            ["max.message.bytes", "segment.bytes"].into_iter().filter_map(|name| self.number(name));
        usize::try_from(limits.min()?).ok()
    }

    /// What is wrong with the settings of a topic that has `replicas` replicas. One sentence for
    /// each problem, which also says how to mend it. A compacted topic keeps the last message of
    /// each key for ever; other topics keep messages until they are read.
    pub(super) fn problems(&self, replicas: usize, kind: Kind) -> Vec<String> {
        let replicas = i64::try_from(replicas).unwrap_or(i64::MAX);
        let mut problems = Vec::new();
        problems.extend(
            self.number("min.insync.replicas").and_then(|min| insync_problem(min, replicas)),
        );
        problems.extend(self.cleanup_problem(kind));
        if let Some(bytes) = self.number("retention.bytes").filter(|bytes| *bytes >= 0) {
            problems.push(format!(
                "retention.bytes is {bytes}: the broker may delete unread messages; set it to -1"
            ));
        }
        if let Some(bytes) =
            self.number("max.message.bytes").filter(|bytes| *bytes < MIN_MESSAGE_BYTES)
        {
            problems.push(format!(
                "max.message.bytes is {bytes}: the largest messages do not fit; \
                 set it to {MIN_MESSAGE_BYTES} or more"
            ));
        }
        if let Some(codec) = self.get("compression.type").filter(|codec| *codec != "producer") {
            problems.push(format!(
                "compression.type is {codec}: the broker compresses each batch again; \
                 set it to producer"
            ));
        }
        problems.extend(self.timestamp_problems());
        problems
    }

    fn cleanup_problem(&self, kind: Kind) -> Option<String> {
        let policy = self.get("cleanup.policy")?;
        if kind == Kind::Compacted {
            (policy != "compact").then(|| {
                format!(
                    "cleanup.policy is {policy}: the last message of a key may be deleted; set it \
                     to compact"
                )
            })
        } else {
            policy.contains("compact").then(|| {
                format!(
                    "cleanup.policy is {policy}: compaction deletes unread messages, and rejects \
                     messages without a key; set it to delete"
                )
            })
        }
    }

    /// Problems with the limits of messages' times. The broker compares a message's time with its
    /// own clock only under `CreateTime`.
    fn timestamp_problems(&self) -> Vec<String> {
        if self.get("message.timestamp.type") != Some("CreateTime") {
            return Vec::new();
        }
        let limits = [
            ("message.timestamp.before.max.ms", "behind"),
            ("message.timestamp.after.max.ms", "ahead"),
        ];
        let too_low = limits.into_iter().filter_map(|(name, direction)| {
            let limit = self.number(name).filter(|limit| *limit < CLOCK_TOLERANCE_MS)?;
            Some(format!(
                "{name} is {limit}: the broker rejects all messages of a process whose clock is \
                 {limit} ms {direction}; set it to 3600000 or more"
            ))
        });
        too_low.collect()
    }
}

/// What is wrong with `min.insync.replicas`, if anything. The broker acknowledges a message when
/// `min` replicas have it, since producers use `acks=all`.
fn insync_problem(min: i64, replicas: i64) -> Option<String> {
    let (consequence, remedy) = if min > replicas {
        (
            "the broker accepts no message",
            format!("set it to {}, or add replicas", (replicas - 1).max(1)),
        )
    } else if min == replicas && replicas > 1 {
        ("no message is accepted while one broker is away", format!("set it to {}", replicas - 1))
    } else if min == 1 && replicas > 2 {
        ("an acknowledged message may be lost with one broker", "set it to 2".to_owned())
    } else {
        return None;
    };
    Some(format!("min.insync.replicas is {min} of {replicas} replicas: {consequence}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(changed: &[(&str, &str)]) -> TopicSettings {
        let good = [
            ("cleanup.policy", "delete"),
            ("compression.type", "producer"),
            ("max.message.bytes", "1048588"),
            ("message.timestamp.after.max.ms", "3600000"),
            ("message.timestamp.before.max.ms", "9223372036854775807"),
            ("message.timestamp.type", "CreateTime"),
            ("min.insync.replicas", "2"),
            ("retention.bytes", "-1"),
            ("segment.bytes", "1073741824"),
        ];
        TopicSettings(
            good.iter()
                .chain(changed)
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        )
    }

    #[test]
    fn good_settings_have_no_problem() {
        assert_eq!(settings(&[]).problems(3, Kind::Messages), [""; 0]);
        assert_eq!(settings(&[("min.insync.replicas", "1")]).problems(1, Kind::Messages), [""; 0]);
        assert_eq!(settings(&[("min.insync.replicas", "1")]).problems(2, Kind::Messages), [""; 0]);
    }

    #[test]
    fn a_compacted_topic_keeps_the_last_message_of_a_key() {
        assert_eq!(
            settings(&[("cleanup.policy", "compact")]).problems(3, Kind::Compacted),
            [""; 0]
        );
        for policy in ["delete", "compact,delete"] {
            let problems = settings(&[("cleanup.policy", policy)]).problems(3, Kind::Compacted);
            assert!(
                problems.len() == 1 && problems[0].contains("set it to compact"),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn each_setting_that_can_stop_a_topic_is_one_problem() {
        let bad = [
            ("cleanup.policy", "compact,delete"),
            ("compression.type", "zstd"),
            ("max.message.bytes", "16383"),
            ("message.timestamp.after.max.ms", "59999"),
            ("message.timestamp.before.max.ms", "1"),
            ("min.insync.replicas", "1"),
            ("min.insync.replicas", "3"),
            ("min.insync.replicas", "4"),
            ("retention.bytes", "1000"),
        ];
        for (name, value) in bad {
            let problems = settings(&[(name, value)]).problems(3, Kind::Messages);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(&format!("{name} is {value}")), "{problems:?}");
        }
    }

    #[test]
    fn the_brokers_own_time_is_compared_with_no_clock() {
        let own_time =
            [("message.timestamp.type", "LogAppendTime"), ("message.timestamp.after.max.ms", "1")];
        assert_eq!(settings(&own_time).problems(3, Kind::Messages), [""; 0]);
    }

    #[test]
    fn a_batch_fits_the_topic_and_its_segments() {
        assert_eq!(settings(&[]).max_batch_bytes(), Some(1_048_588));
        assert_eq!(settings(&[("segment.bytes", "1048576")]).max_batch_bytes(), Some(1_048_576));
        assert_eq!(TopicSettings::default().max_batch_bytes(), None);
    }
}
