use std::{sync::Arc, time::Duration};

use super::{RegistryClient, RegistryError};
use crate::{
    backoff::Backoff,
    error_text,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
    wire::RegisteredSchemas,
};

/// The name of the registry as a dependency.
const DEPENDENCY: &str = "schema_registry";
/// The shortest pause after a failure.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Looks up schemas until the process stops. Repeats what fails with growing delays, at most 5 s.
#[derive(Clone)]
pub(crate) struct Lookups {
    pub(crate) client: RegistryClient,
    pub(crate) schemas: Arc<RegisteredSchemas>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

/// Why a written topic has no id for its schema.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnIdError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("subject {0} has no version with the schema of this version: run `stocklock setup`")]
    Unregistered(String),
}

impl OwnIdError {
    /// Whether a repetition may help at once.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Unregistered(_) => false,
        }
    }
}

/// Reads the versions of all subjects, and keeps the ids of the own schemas. So the schemas that
/// other systems registered for these topics are known before their values come.
///
/// Fails if the registry does not answer, or if a schema that stocklock writes is not registered.
pub(crate) async fn find_own_ids(
    client: &RegistryClient,
    schemas: &RegisteredSchemas,
) -> Result<(), OwnIdError> {
    for subject in schemas.subjects() {
        for version in client.versions(&subject.name).await? {
            if subject.is_own(&version.schema) {
                subject.set_id(version.id);
            }
            schemas.add(version.id, &version.schema);
        }
        if subject.is_written && subject.id().is_none() {
            return Err(OwnIdError::Unregistered(subject.name.clone()));
        }
    }
    Ok(())
}

impl Lookups {
    /// Finds the ids of the own schemas. `health` says why there is none yet. Returns `false` if
    /// the process is to stop before they are found.
    pub(crate) async fn find_own_ids(&self, health: Component) -> bool {
        let mut backoff = Backoff::default();
        loop {
            let found = find_own_ids(&self.client, &self.schemas);
            let Ok(found) = self.shutdown.interruptible(found).await else { return false };
            let Err(error) = found else {
                health.ready();
                return true;
            };
            let text = error_text::with_causes(&error);
            health.excuse();
            health.not_ready(&*text);
            if self.wait(&mut backoff, &text, "ids of the schemas not found").await.is_err() {
                return false;
            }
        }
    }

    /// Looks up the ids that values carry and that nobody has looked up yet.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::default();
        while let Ok(wanted) = self.shutdown.interruptible(self.schemas.wanted()).await {
            for id in wanted {
                let Ok(looked_up) = self.shutdown.interruptible(self.look_up(id)).await else {
                    return;
                };
                match looked_up {
                    Ok(()) => backoff = Backoff::default(),
                    Err(error) => {
                        let text = error_text::with_causes(&error);
                        let event = "schema not looked up, its messages wait";
                        if self.wait(&mut backoff, &text, event).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Fails unless the registry says what the schema is, or that it has none.
    async fn look_up(&self, id: u32) -> Result<(), RegistryError> {
        match self.client.schema(id).await {
            Ok(found) => match found.kind.as_deref() {
                None | Some("AVRO") => {
                    self.schemas.add(id, &found.schema);
                    tracing::info!(id, "schema looked up");
                }
                Some(kind) => {
                    self.schemas.add_absent(id, format!("its schema is {kind}, expected AVRO"));
                }
            },
            Err(RegistryError::Missing { .. }) => {
                self.schemas.add_absent(id, "the registry has no schema with this id".to_owned());
                tracing::warn!(id, "schema unknown to the registry");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reports a failure and waits. Logs the first, second, fourth, eighth … failure in a row.
    async fn wait(
        &self,
        backoff: &mut Backoff,
        error: &str,
        event: &str,
    ) -> Result<(), crate::lifecycle::StopRequested> {
        let delay = backoff.next_delay().max(MIN_PAUSE);
        self.metrics.retries.with_label_values(&[DEPENDENCY]).inc();
        if backoff.failures().is_power_of_two() {
            tracing::warn!(error, failures = backoff.failures(), ?delay, "{event}");
        }
        self.shutdown.sleep(delay).await
    }
}
