//! Looks at the schema registry for `stocklock doctor`.

use std::time::Duration;

use tokio::time::timeout;

use super::{RegistryClient, RegistryError};
use crate::{
    error_text::with_causes,
    finding::{Check, Finding, Findings, Remedy},
    wire::Subject,
};

/// How long all looks may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// Looks at the registry and at these subjects. Never fails: what cannot be looked at is a finding
/// too. Takes 15 s at most.
pub(crate) async fn look_at_registry(
    url: &str,
    client: &RegistryClient,
    subjects: impl Iterator<Item = &Subject>,
) -> Vec<Finding> {
    let mut findings = Findings::of("schema_registry", url);
    let looked = timeout(LOOK_TIMEOUT, look(client, subjects, &mut findings)).await;
    let text = match looked {
        Ok(Ok(())) => return findings.into_vec(),
        Ok(Err(error @ RegistryError::Forbidden { .. })) => {
            let setting = "schema_registry.username, schema_registry.password";
            findings.wrong(Check::Login, with_causes(&error), Remedy::Setting(setting.into()));
            return findings.into_vec();
        }
        Ok(Err(error)) => with_causes(&error),
        Err(_) => format!("no answer within {} s", LOOK_TIMEOUT.as_secs()),
    };
    let setting = "schema_registry.url = \"http://HOST:PORT/PATH\"";
    findings.unreachable(text, Remedy::Setting(setting.into()));
    findings.into_vec()
}

async fn look(
    client: &RegistryClient,
    subjects: impl Iterator<Item = &Subject>,
    findings: &mut Findings,
) -> Result<(), RegistryError> {
    for (number, subject) in subjects.enumerate() {
        let versions = client.versions(&subject.name).await?;
        if number == 0 {
            findings.fine(Check::Reachable, "answers, and lets the user in");
        }
        let name = &subject.name;
        let is_registered = versions.iter().any(|version| subject.is_own(&version.schema));
        match versions.last().map(|latest| subject.can_read(&latest.schema)) {
            Some(Err(error)) => findings.wrong(
                Check::Subjects,
                format!("{name}: the latest version cannot be read: {}", with_causes(&error)),
                Remedy::Advice("register a version that this stocklock can read".into()),
            ),
            Some(Ok(())) if is_registered => {
                findings.fine(Check::Subjects, format!("{name} has the schema of this version"));
            }
            _ if subject.is_written => findings.wrong(
                Check::Subjects,
                format!("{name} lacks the schema with which this version writes"),
                Remedy::Command("stocklock setup".into()),
            ),
            _ => findings.warning(
                Check::Subjects,
                format!("{name} lacks the schema of this version"),
                Remedy::Command("stocklock setup".into()),
            ),
        }
        look_at_compatibility(client, name, findings).await?;
    }
    Ok(())
}

async fn look_at_compatibility(
    client: &RegistryClient,
    subject: &str,
    findings: &mut Findings,
) -> Result<(), RegistryError> {
    match client.compatibility(subject).await? {
        Some(level) if level == "NONE" => {
            let command = format!(
                "curl -X PUT -H 'Content-Type: application/json' \
                 -d '{{\"compatibility\": \"BACKWARD\"}}' {}",
                client.compatibility_url(subject)
            );
            findings.warning(
                Check::Compatibility,
                format!("{subject} has the compatibility NONE: anyone may break it"),
                Remedy::Command(command),
            );
        }
        level => {
            let level = level.unwrap_or_else(|| "that of the registry".to_owned());
            findings.fine(Check::Compatibility, format!("{subject}: {level}"));
        }
    }
    Ok(())
}
