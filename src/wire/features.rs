//! What the values of the topics contain, and which version of stocklock reads it first.
//!
//! While old and new processes run side by side, a new one writes nothing that an old one refuses.
//! `topics.readable_by` names the oldest version that runs. A feature that is newer is not written.
//! A new feature gets a row here. The code that writes it asks `topics.readable_by` first.

use crate::config::{ReaderVersion, StatusFormat, TopicsConfig};

/// A part of the format of values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FormatFeature {
    pub(crate) name: &'static str,
    /// The first version that reads it.
    pub(crate) since: ReaderVersion,
    /// The settings under which it is written.
    written: Written,
}

/// When a feature is written.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Always,
    /// With `topics.status_format = "json"`.
    JsonStatuses,
    /// With `topics.cloudevents = true`.
    CloudEvents,
    /// With `schema_registry.url`.
    RegistryFraming,
}

const fn feature(name: &'static str, written: Written) -> FormatFeature {
    FormatFeature { name, since: ReaderVersion::OLDEST, written }
}

/// Every feature. A unit test compares it with the schemas and with the names in their values.
pub(crate) const FORMAT_FEATURES: [FormatFeature; 7] = [
    feature("order_event, schema 365c219ddec7df2f", Written::Always),
    feature("order_status, schema dd2ebaa85d446736", Written::Always),
    feature("kinds PLACED, RELEASE", Written::Always),
    feature(
        "statuses COMPLETED, RESERVED, FAILED, CANCELLED, CONFIRMED, RELEASED",
        Written::Always,
    ),
    feature("JSON objects on order-status", Written::JsonStatuses),
    feature("headers of CloudEvents", Written::CloudEvents),
    feature("the framing of a schema registry", Written::RegistryFraming),
];

/// Fails with the features that a process with these settings would write, and that a version from
/// `topics.readable_by` on refuses.
pub(crate) fn check_readable(topics: &TopicsConfig, has_registry: bool) -> Result<(), String> {
    check(&FORMAT_FEATURES, topics, has_registry)
}

fn check(
    features: &[FormatFeature],
    topics: &TopicsConfig,
    has_registry: bool,
) -> Result<(), String> {
    let is_on = |feature: &&FormatFeature| match feature.written {
        Written::Always => true,
        Written::JsonStatuses => topics.status_format == StatusFormat::Json,
        Written::CloudEvents => topics.cloudevents,
        Written::RegistryFraming => has_registry,
    };
    let refused =
        features.iter().filter(is_on).filter(|feature| feature.since > topics.readable_by);
    let refused: Vec<_> =
        refused.map(|feature| format!("{} (from {})", feature.name, feature.since)).collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(format!(
        "topics.readable_by = {}: expected a later version, since these settings write what that \
         one refuses: {}",
        topics.readable_by,
        refused.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        config::{Config, Layers},
        domain::{EventKind, ReportedStatus},
        wire::fingerprint::fingerprint,
    };

    fn topics(settings: &[&str]) -> TopicsConfig {
        let settings: Vec<_> = settings.iter().map(|text| (*text).to_owned()).collect();
        Config::resolve(&Layers::read(None, std::iter::empty(), &settings)).unwrap().topics
    }

    /// Such a change is refused by older processes: it needs a row of its own, and a version since.
    #[test]
    fn the_schemas_and_their_words_are_those_of_the_table() {
        let name = |name: &str, text: &str| {
            let json: Value = serde_json::from_str(text).unwrap();
            let bits = u64::from_be_bytes(fingerprint(&json));
            format!("{name}, schema {bits:016x}")
        };
        let event = include_str!("../../schemas/order_event.avsc");
        let status = include_str!("../../schemas/order_status.avsc");
        let words = |names: &[&str]| names.join(", ");
        let kinds = [EventKind::Placed, EventKind::Release].map(EventKind::as_str);
        let statuses = ["COMPLETED", "RESERVED", "FAILED", "CANCELLED", "CONFIRMED", "RELEASED"];
        let statuses = statuses.map(|name| ReportedStatus::parse(name, None).unwrap().as_str());

        let found = [
            name("order_event", event),
            name("order_status", status),
            format!("kinds {}", words(&kinds)),
            format!("statuses {}", words(&statuses)),
        ];

        assert_eq!(FORMAT_FEATURES.each_ref().map(|feature| feature.name)[..4], found);
    }

    #[test]
    fn a_feature_is_refused_if_an_older_version_could_not_read_it() {
        let newer =
            |written| FormatFeature { name: "news", since: ReaderVersion::new(0, 2), written };
        let plain = topics(&["topics.readable_by=0.1"]);
        let json = topics(&["topics.status_format=json"]);
        let cloudevents = topics(&["topics.cloudevents=true"]);

        assert_eq!(check_readable(&json, true), Ok(()));
        let refused = check(&[newer(Written::Always)], &plain, false).unwrap_err();
        assert!(refused.contains("news (from 0.2)"), "{refused}");
        assert!(check(&[newer(Written::JsonStatuses)], &plain, true).is_ok());
        assert!(check(&[newer(Written::JsonStatuses)], &json, true).is_err());
        assert!(check(&[newer(Written::CloudEvents)], &json, true).is_ok());
        assert!(check(&[newer(Written::CloudEvents)], &cloudevents, true).is_err());
        assert!(check(&[newer(Written::RegistryFraming)], &plain, false).is_ok());
        assert!(check(&[newer(Written::RegistryFraming)], &plain, true).is_err());
    }
}
