use super::{RegistryClient, RegistryError};
use crate::{error_text, wire::Subject};

/// What `setup` did with a subject.
#[derive(Debug)]
pub(crate) enum Registration {
    /// The schema was registered before.
    Known {
        id: u32,
    },
    Registered {
        id: u32,
    },
    /// The schema cannot read what the latest version wrote, in the registry's words or in ours.
    Incompatible {
        why: String,
    },
}

/// Registers the schema of a subject, unless it is registered. A subject that this call creates
/// requires BACKWARD compatibility from then on; other subjects keep their level.
///
/// Fails if the registry does not answer, or refuses for another cause than compatibility.
pub(crate) async fn register(
    client: &RegistryClient,
    subject: &Subject,
) -> Result<Registration, RegistryError> {
    let versions = client.versions(&subject.name).await?;
    if let Some(known) = versions.iter().rev().find(|version| subject.is_own(&version.schema)) {
        return Ok(Registration::Known { id: known.id });
    }
    if let Some(latest) = versions.last() {
        // A registry may have no rule for the subject. The values on the topic have to be read.
        if let Err(error) = subject.can_read(&latest.schema) {
            let why = format!("version {}: {}", latest.version, error_text::with_causes(&error));
            return Ok(Registration::Incompatible { why });
        }
        let refusal = client.incompatibility(&subject.name, subject.schema).await?;
        if let Some(why) = refusal {
            return Ok(Registration::Incompatible { why });
        }
    }
    let id = match client.register(&subject.name, subject.schema).await {
        Err(RegistryError::Refused { status, words }) if status.as_u16() == 409 => {
            // There was no version to be incompatible with: another call creates the subject.
            if versions.is_empty() {
                return Err(RegistryError::Failing { status, words });
            }
            return Ok(Registration::Incompatible { why: words });
        }
        id => id?,
    };
    if versions.is_empty() {
        client.require_backward(&subject.name).await?;
    }
    Ok(Registration::Registered { id })
}
