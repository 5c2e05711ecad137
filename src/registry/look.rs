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
const URL: &str = "schema_registry.url = \"http://HOST:PORT/PATH\"";

/// Looks at the registry and at these subjects. Never fails: what cannot be looked at is a finding
/// too. Takes 15 s at most.
pub(crate) async fn look_at_registry(
    url: &str,
    client: &RegistryClient,
    subjects: impl Iterator<Item = &Subject>,
) -> Vec<Finding> {
    let mut findings = Findings::of("schema_registry", url);
    let looked = timeout(LOOK_TIMEOUT, look(client, subjects, &mut findings)).await;
    match looked {
        Ok(Ok(())) => {}
        Ok(Err(error)) => note_failure(&error, &mut findings),
        Err(_) => {
            let text = format!("no answer within {} s", LOOK_TIMEOUT.as_secs());
            findings.unreachable(text, Remedy::Setting(URL.into()));
        }
    }
    findings.into_vec()
}

/// A registry that answers is not unreachable.
fn note_failure(error: &RegistryError, findings: &mut Findings) {
    let text = with_causes(error);
    match error {
        RegistryError::Unreachable(_) => findings.unreachable(text, Remedy::Setting(URL.into())),
        RegistryError::Forbidden { .. } => {
            let setting = "schema_registry.username, schema_registry.password";
            findings.wrong(Check::Login, text, Remedy::Setting(setting.into()));
        }
        RegistryError::Missing { .. } | RegistryError::Unreadable(_) | RegistryError::NoBase => {
            let text = format!("no schema registry's API is at this path: {text}");
            findings.wrong(Check::Version, text, Remedy::Setting(URL.into()));
        }
        RegistryError::Refused { .. } | RegistryError::Failing { .. } | RegistryError::TooLarge => {
            let advice = "look into the log of the schema registry";
            findings.wrong(Check::Reachable, text, Remedy::Advice(advice.into()));
        }
    }
}

async fn look(
    client: &RegistryClient,
    subjects: impl Iterator<Item = &Subject>,
    findings: &mut Findings,
) -> Result<(), RegistryError> {
    // A wrong path would answer to the others that it has no such subject.
    client.ask_for_subjects().await?;
    findings.fine(Check::Reachable, "answers, and lets the user in");
    for subject in subjects {
        let versions = client.versions(&subject.name).await?;
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
    let level = match client.compatibility(subject).await {
        Err(error @ RegistryError::Forbidden { .. }) => {
            let advice = "give the user the right to read it; no role needs it";
            findings.warning(
                Check::Compatibility,
                format!("{subject}: it may not be read: {}", with_causes(&error)),
                Remedy::Advice(advice.into()),
            );
            return Ok(());
        }
        level => level?,
    };
    match level {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{config::RegistryConfig, finding::Verdict};

    /// A registry that answers so to a request for subjects, and denies any other.
    async fn registry(subjects: &'static str, body: &'static str) -> RegistryClient {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = client.read(&mut request).await.unwrap();
            let is_of_subjects = request[..length].starts_with(b"GET /subjects ");
            let status = if is_of_subjects { subjects } else { "403 Forbidden" };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
            client.write_all(answer.as_bytes()).await.unwrap();
        });
        RegistryClient::new(&RegistryConfig { url, credentials: None }).unwrap()
    }

    #[tokio::test]
    async fn a_registry_that_answers_is_not_unreachable() {
        for (status, body, check) in [
            ("404 Not Found", "", Check::Version),
            ("200 OK", "<html>", Check::Version),
            ("500 Internal Server Error", "", Check::Reachable),
            ("400 Bad Request", "", Check::Reachable),
            ("401 Unauthorized", "", Check::Login),
        ] {
            let client = registry(status, body).await;

            let found = look_at_registry("http://r", &client, std::iter::empty()).await;

            let found: Vec<_> = found.iter().map(|one| (one.check, one.verdict)).collect();
            assert_eq!(found, [(check, Verdict::Wrong)], "{status}");
        }
    }

    #[tokio::test]
    async fn a_level_that_may_not_be_read_is_a_warning() {
        let client = registry("200 OK", "[]").await;
        let mut findings = Findings::of("schema_registry", "http://r");

        look_at_compatibility(&client, "orders-value", &mut findings).await.unwrap();

        let [found] = &findings.into_vec()[..] else { panic!("one finding") };
        assert_eq!((found.check, found.verdict), (Check::Compatibility, Verdict::Warning));
    }
}
