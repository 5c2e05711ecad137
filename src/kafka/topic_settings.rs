use std::{collections::BTreeMap, fmt, time::Duration};

use rdkafka::{
    admin::{AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier},
    error::{KafkaError, KafkaResult},
};

use super::{plain::Admin, topics::Kind};

/// The least `max.message.bytes` of `orders` and `order-status`. The largest order event has 100
/// lines, the largest status has a reason of 512 characters, and both have headers.
pub const MIN_MESSAGE_BYTES: i64 = 16_384;
/// The least `max.message.bytes` of a topic of dead letters: what a broker takes by default.
/// (`setup` asks for twice as much.)
const MIN_LETTER_BYTES: i64 = 1_048_588;
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
        admin: &Admin,
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

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
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

    /// What is wrong with the settings of a topic that has `replicas` replicas. A compacted topic
    /// keeps the last message of each key for ever; other topics keep messages until they are read.
    pub(super) fn problems(&self, replicas: usize, kind: Kind) -> Vec<SettingProblem> {
        let replicas = i64::try_from(replicas).unwrap_or(i64::MAX);
        let mut problems = Vec::new();
        problems.extend(
            self.number("min.insync.replicas").and_then(|min| insync_problem(min, replicas)),
        );
        problems.extend(self.cleanup_problem(kind));
        if let Some(bytes) = self.number("retention.bytes").filter(|bytes| *bytes >= 0) {
            problems.push(SettingProblem {
                setting: "retention.bytes",
                what: format!("retention.bytes is {bytes}: the broker may delete unread messages"),
                value: "-1".to_owned(),
                or: "",
                severity: Severity::Risk,
            });
        }
        problems.extend(self.size_problem(kind));
        if let Some(codec) = self.get("compression.type").filter(|codec| *codec != "producer") {
            problems.push(SettingProblem {
                setting: "compression.type",
                what: format!(
                    "compression.type is {codec}: the broker compresses each batch again"
                ),
                value: "producer".to_owned(),
                or: "",
                severity: Severity::Risk,
            });
        }
        if self.get("unclean.leader.election.enable") == Some("true") {
            problems.push(SettingProblem {
                setting: "unclean.leader.election.enable",
                what: "unclean.leader.election.enable is true: a replica that lacks acknowledged \
                       messages may become the leader"
                    .to_owned(),
                value: "false".to_owned(),
                or: "",
                severity: Severity::Risk,
            });
        }
        problems.extend(self.timestamp_problems());
        problems
    }

    fn cleanup_problem(&self, kind: Kind) -> Option<SettingProblem> {
        let policy = self.get("cleanup.policy")?;
        let (why, value) = if kind == Kind::Compacted {
            (policy != "compact")
                .then_some(("the last message of a key may be deleted", "compact"))?
        } else {
            policy.contains("compact").then_some((
                "compaction deletes unread messages, and rejects messages without a key",
                "delete",
            ))?
        };
        Some(SettingProblem {
            setting: "cleanup.policy",
            what: format!("cleanup.policy is {policy}: {why}"),
            value: value.to_owned(),
            or: "",
            severity: Severity::Fault,
        })
    }

    /// A dead letter that does not fit goes without its value.
    fn size_problem(&self, kind: Kind) -> Option<SettingProblem> {
        let bytes = self.number("max.message.bytes")?;
        let (why, least, severity) = if bytes < MIN_MESSAGE_BYTES {
            ("the largest messages do not fit", MIN_MESSAGE_BYTES, Severity::Fault)
        } else if kind == Kind::DeadLetters && bytes < MIN_LETTER_BYTES {
            ("a large dead letter goes without its value", MIN_LETTER_BYTES, Severity::Risk)
        } else {
            return None;
        };
        Some(SettingProblem {
            setting: "max.message.bytes",
            what: format!("max.message.bytes is {bytes}: {why}"),
            value: least.to_string(),
            or: " or more",
            severity,
        })
    }

    /// Problems with the limits of messages' times. The broker compares a message's time with its
    /// own clock only under `CreateTime`.
    fn timestamp_problems(&self) -> Vec<SettingProblem> {
        if self.get("message.timestamp.type") != Some("CreateTime") {
            return Vec::new();
        }
        let limits = [
            ("message.timestamp.before.max.ms", "behind"),
            ("message.timestamp.after.max.ms", "ahead"),
        ];
        let too_low = limits.into_iter().filter_map(|(setting, direction)| {
            let limit = self.number(setting).filter(|limit| *limit < CLOCK_TOLERANCE_MS)?;
            Some(SettingProblem {
                setting,
                what: format!(
                    "{setting} is {limit}: the broker rejects all messages of a process whose \
                     clock is {limit} ms {direction}"
                ),
                value: "3600000".to_owned(),
                or: " or more",
                severity: Severity::Risk,
            })
        });
        too_low.collect()
    }
}

/// How bad a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// Messages are lost or rejected.
    Fault,
    /// Messages are lost after a failure, or cost more.
    Risk,
}

/// A setting of a topic that can stop stocklock, or lose messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SettingProblem {
    pub(super) setting: &'static str,
    /// Its value, and what that does.
    pub(super) what: String,
    /// The value that mends it.
    pub(super) value: String,
    /// What else mends it, as the end of a sentence.
    or: &'static str,
    pub(super) severity: Severity,
}

impl fmt::Display for SettingProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; set it to {}{}", self.what, self.value, self.or)
    }
}

/// What is wrong with `min.insync.replicas`, if anything. The broker acknowledges a message when
/// `min` replicas have it, since producers use `acks=all`.
fn insync_problem(min: i64, replicas: i64) -> Option<SettingProblem> {
    let (consequence, value, or, severity) = if min > replicas {
        (
            "the broker accepts no message",
            (replicas - 1).max(1),
            ", or add replicas",
            Severity::Fault,
        )
    } else if min == replicas && replicas > 1 {
        ("no message is accepted while one broker is away", replicas - 1, "", Severity::Risk)
    } else if min == 1 && replicas > 2 {
        ("an acknowledged message may be lost with one broker", 2, "", Severity::Risk)
    } else {
        return None;
    };
    Some(SettingProblem {
        setting: "min.insync.replicas",
        what: format!("min.insync.replicas is {min} of {replicas} replicas: {consequence}"),
        value: value.to_string(),
        or,
        severity,
    })
}

/// How long a topic keeps messages, as text, if that is more than `longest`. -1 is for ever.
pub(crate) fn kept_too_long(retention_ms: i64, longest: Duration) -> Option<String> {
    let kept = u64::try_from(retention_ms).ok().map(Duration::from_millis);
    match kept {
        Some(kept) if kept <= longest => None,
        Some(kept) => Some(format!("for {}", kept_for(kept))),
        None => Some("for ever".to_owned()),
    }
}

/// A time of retention as text.
pub(super) fn kept_for(kept: Duration) -> String {
    humantime::format_duration(kept).to_string()
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

    fn sentences(settings: &TopicSettings, replicas: usize, kind: Kind) -> Vec<String> {
        settings.problems(replicas, kind).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_settings_have_no_problem() {
        let one = settings(&[("min.insync.replicas", "1")]);

        assert_eq!(settings(&[]).problems(3, Kind::Messages), []);
        assert_eq!(one.problems(1, Kind::Messages), []);
        assert_eq!(one.problems(2, Kind::DeadLetters), []);
    }

    #[test]
    fn a_large_dead_letter_needs_a_large_topic() {
        let small = settings(&[("max.message.bytes", "1000000")]);

        assert_eq!(small.problems(3, Kind::Messages), []);
        let problems = sentences(&small, 3, Kind::DeadLetters);
        assert!(problems.len() == 1 && problems[0].contains("set it to 1048588"), "{problems:?}");
    }

    #[test]
    fn a_compacted_topic_keeps_the_last_message_of_a_key() {
        let compacted = settings(&[("cleanup.policy", "compact")]);
        assert_eq!(compacted.problems(3, Kind::Compacted), []);
        for policy in ["delete", "compact,delete"] {
            let problems = sentences(&settings(&[("cleanup.policy", policy)]), 3, Kind::Compacted);
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
            ("unclean.leader.election.enable", "true"),
        ];
        for (name, value) in bad {
            let problems = sentences(&settings(&[(name, value)]), 3, Kind::Messages);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(&format!("{name} is {value}")), "{problems:?}");
        }
    }

    #[test]
    fn the_brokers_own_time_is_compared_with_no_clock() {
        let own_time =
            [("message.timestamp.type", "LogAppendTime"), ("message.timestamp.after.max.ms", "1")];
        assert_eq!(settings(&own_time).problems(3, Kind::Messages), []);
    }

    #[test]
    fn a_batch_fits_the_topic_and_its_segments() {
        assert_eq!(settings(&[]).max_batch_bytes(), Some(1_048_588));
        assert_eq!(settings(&[("segment.bytes", "1048576")]).max_batch_bytes(), Some(1_048_576));
        assert_eq!(TopicSettings::default().max_batch_bytes(), None);
    }
}
