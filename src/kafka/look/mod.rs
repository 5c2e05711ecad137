//! Looks at the brokers for `stocklock doctor`: topics, their settings, rights, groups. No look
//! writes a message or an offset, or joins a group.
//!
//! | file | what it looks at |
//! | --- | --- |
//! | `topics.rs` | topics, partitions, replicas, settings |
//! | `rights.rs` | whether the user may read and write the topics, and join the groups |

mod rights;
mod topics;

use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use tokio::{net::TcpStream, time::timeout};

use super::{
    KafkaProbe,
    identity::security_setting,
    probe::{ANSWER_TIMEOUT, Unanswered},
};
use crate::{
    config::{GroupProtocol, KafkaConfig, TopicsConfig},
    domain::Horizon,
    finding::{Check, Finding, Findings, Remedy, for_shell},
};

/// How long a broker may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Of a cluster with more brokers, the first ones are dialled.
const MAX_DIALLED_BROKERS: usize = 50;

/// What the roles do with a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicNeed {
    pub(crate) topic: String,
    pub(crate) is_read: bool,
    pub(crate) is_written: bool,
}

/// A consumer group of the roles, and the topic that it consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupNeed {
    pub(crate) group_id: String,
    pub(crate) topic: String,
}

/// The brokers, and what the roles need of them.
#[derive(Debug, Clone)]
pub(crate) struct KafkaLook<'a> {
    pub(crate) kafka: &'a KafkaConfig,
    pub(crate) topics: &'a TopicsConfig,
    pub(crate) horizon: Horizon,
    pub(crate) needs: Vec<TopicNeed>,
    pub(crate) groups: Vec<GroupNeed>,
}

/// A broker that the cluster names to its clients.
#[derive(Debug, Clone)]
struct Broker {
    id: i32,
    address: String,
}

impl KafkaLook<'_> {
    /// Looks at everything, and adds each finding to `found` as soon as it is known. Never fails:
    /// what cannot be looked at is a finding too. Each question has a limit of 5 s, and about all
    /// topics the same one is asked at the same time.
    pub(crate) async fn look(&self, found: &mut Vec<Finding>) {
        let mut findings = Findings::of("kafka", self.kafka.brokers.as_str());
        let brokers = self.brokers(&mut findings).await;
        found.extend(findings.into_vec());
        let Some(brokers) = brokers else { return };
        let mut findings = Findings::of("kafka", self.kafka.brokers.as_str());
        dial(&brokers, &mut findings).await;
        found.extend(findings.into_vec());
        let (known, of_topics) = topics::look(self, brokers.len()).await;
        found.extend(of_topics);
        let (of_rights, of_groups) = tokio::join!(
            rights::look_at_topics(self, &known),
            rights::look_at_groups(self, &known)
        );
        found.extend(of_rights);
        found.extend(of_groups);
    }

    /// The brokers of the cluster. `None` if no broker answers, or if it refuses the user, which is
    /// then a finding.
    async fn brokers(&self, findings: &mut Findings) -> Option<Vec<Broker>> {
        let advice = || {
            Remedy::Setting("kafka.brokers = \"HOST:PORT,…\", and kafka.security_protocol".into())
        };
        let probe = match KafkaProbe::new(self.kafka, &self.kafka.group_id) {
            Ok(probe) => probe,
            Err(error) => {
                findings.wrong(Check::Login, error.to_string(), advice());
                return None;
            }
        };
        let topic = self.topics.orders.clone();
        let asked = tokio::task::spawn_blocking(move || {
            match probe.client().fetch_metadata(Some(&topic), ANSWER_TIMEOUT) {
                Ok(metadata) => Ok(metadata
                    .brokers()
                    .iter()
                    .map(|broker| Broker {
                        id: broker.id(),
                        address: format!("{}:{}", broker.host(), broker.port()),
                    })
                    .collect::<Vec<_>>()),
                Err(error) => Err(probe.unanswered(&error)),
            }
        });
        match asked.await {
            Ok(Ok(brokers)) => {
                findings.fine(Check::Reachable, format!("answers, {} brokers", brokers.len()));
                Some(brokers)
            }
            Ok(Err(unanswered)) => {
                note_unanswered(unanswered, advice, findings);
                None
            }
            Err(error) => {
                findings.unreachable(error.to_string(), advice());
                None
            }
        }
    }

    /// A command of Kafka, with what each of them needs to connect.
    fn command(&self, tool: &str, rest: &str) -> Remedy {
        let is_plain = self.setting("security.protocol").is_none_or(|name| name == "plaintext");
        let config = if is_plain { "" } else { " --command-config client.properties" };
        Remedy::Command(format!(
            "{tool}.sh --bootstrap-server {}{config} {rest}",
            self.kafka.brokers
        ))
    }

    /// The command that gives this user a right. `resource` is `--topic NAME` or the like.
    fn grant(&self, operation: &str, resource: &str) -> Remedy {
        let principal = principal_of(|name| self.setting(name));
        self.command(
            "kafka-acls",
            &format!("--add --allow-principal {principal} --operation {operation} {resource}"),
        )
    }

    fn setting(&self, name: &str) -> Option<&str> {
        security_setting(self.kafka, name)
    }

    /// Whether the members of groups can be listed.
    fn lists_members(&self) -> bool {
        self.kafka.group_protocol == GroupProtocol::Classic
    }
}

/// The principal of this client as a broker names it. `setting` has librdkafka's settings.
fn principal_of<'s>(setting: impl Fn(&str) -> Option<&'s str>) -> String {
    let certificates = ["ssl.certificate.location", "ssl.certificate.pem"];
    let has_certificate = certificates.iter().any(|name| setting(name).is_some());
    let user = match setting("security.protocol") {
        None | Some("plaintext") => "ANONYMOUS",
        Some("ssl") if !has_certificate => "ANONYMOUS",
        Some("ssl") => "CN=…",
        Some(_) => setting("sasl.username").unwrap_or("…"),
    };
    for_shell(&format!("User:{user}"))
}

/// `otherwise` is what to do about a mistake that is not a usual one.
fn note_unanswered(
    unanswered: Unanswered,
    otherwise: impl Fn() -> Remedy,
    findings: &mut Findings,
) {
    let Unanswered { why, advice, is_refusal } = unanswered;
    let advice = advice.map(|advice| Remedy::Advice(advice.into()));
    if is_refusal {
        let login = "kafka.sasl_username, kafka.sasl_password, kafka.sasl_mechanism";
        findings.wrong(Check::Login, why, advice.unwrap_or(Remedy::Setting(login.into())));
    } else {
        findings.unreachable(why, advice.unwrap_or_else(otherwise));
    }
}

/// Dials each address that the cluster gives its clients.
async fn dial(brokers: &[Broker], findings: &mut Findings) {
    let dialling = brokers.iter().take(MAX_DIALLED_BROKERS).map(async |broker| {
        let dialled = timeout(DIAL_TIMEOUT, TcpStream::connect(&broker.address)).await;
        let why = match dialled {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DIAL_TIMEOUT.as_secs()),
        };
        Some(format!("broker {} advertises {}: {why}", broker.id, broker.address))
    });
    let failed: Vec<_> = futures::future::join_all(dialling).await.into_iter().flatten().collect();
    if failed.is_empty() {
        findings.fine(Check::Brokers, "each advertised address can be reached");
    } else {
        let remedy = "set advertised.listeners of the broker to an address that clients reach";
        findings.wrong(Check::Brokers, failed.join("; "), Remedy::Advice(remedy.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_of_a_refused_certificate_is_that_of_its_cause() {
        let mut findings = Findings::of("kafka", "b:9093");
        let why = "b:9093: ssl://b:9093/1: certificate verify failed".to_owned();
        let advice = crate::kafka::advice::advice(&why);
        let unanswered = Unanswered { why: why.clone(), advice, is_refusal: true };

        note_unanswered(unanswered, || panic!("there is advice"), &mut findings);

        let [finding] = &findings.into_vec()[..] else { panic!("one finding") };
        let remedy = finding.remedy.as_ref().map(Remedy::line);
        assert_eq!((finding.text.as_str(), remedy), (why.as_str(), advice));
        assert!(advice.is_some_and(|advice| advice.starts_with("name the authority")));
    }

    #[test]
    fn the_principal_is_the_one_that_a_broker_sees() {
        for (security, principal) in [
            (&[][..], "User:ANONYMOUS"),
            (&[("security.protocol", "ssl")], "User:ANONYMOUS"),
            (
                &[("security.protocol", "ssl"), ("ssl.certificate.location", "/tls.crt")],
                "'User:CN=…'",
            ),
            (&[("security.protocol", "sasl_ssl"), ("sasl.username", "shop")], "User:shop"),
        ] {
            let setting =
                |name: &str| security.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            assert_eq!(principal_of(setting), principal, "{security:?}");
        }
    }
}
