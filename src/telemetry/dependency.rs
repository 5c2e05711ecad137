use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::{Instant, sleep};

use super::Component;
use crate::lifecycle::Shutdown;

/// Between two tries of a dependency that is up.
const TRY_EVERY: Duration = Duration::from_secs(3);
/// Between two tries of a dependency that is down.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// A try that takes longer counts as a failure, although it goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// A dependency that takes longer is slow, which excuses a loop that waits for it.
const SLOW: Duration = Duration::from_secs(1);

/// Why a dependency cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    /// The address and the cause.
    pub(crate) why: String,
    /// The server answers and refuses: waiting mends nothing, as with a wrong password.
    pub(crate) is_refusal: bool,
}

impl Lack {
    /// A dependency that does not answer, or not as it should.
    pub(crate) fn unreachable(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_refusal: false }
    }

    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_refusal: true }
    }
}

/// Whether a role is ready without a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The role cannot work without it.
    Always,
    /// The role can work without it for a while. But until the dependency was up once, a refusal
    /// keeps the role from being ready: it is configured wrongly.
    Rollout,
}

/// A dependency that is tried all the time, so that readiness is known before there is work.
pub(crate) struct Dependency {
    component: Component,
    need: Need,
    up: IntGauge,
    was_up: bool,
    /// Why it was down at the last try.
    lack: Option<Lack>,
}

impl Dependency {
    /// `component` is not ready before the first try.
    pub(crate) fn new(component: Component, need: Need, up: IntGauge) -> Self {
        up.set(0);
        Self { component, need, up, was_up: false, lack: None }
    }

    /// Tries the dependency every 3 s while it is up and every second while it is down, one try at
    /// a time. It goes on during a stop, whose log says what hung, until work is cut off.
    pub(crate) async fn watch<T>(mut self, attempt: impl Fn() -> T, shutdown: Shutdown)
    where
        T: Future<Output = Result<(), Lack>>,
    {
        let trying = async {
            loop {
                let tried = self.attempt(attempt(), &shutdown).await;
                let every = if tried.is_ok() { TRY_EVERY } else { TRY_AGAIN_EVERY };
                self.note(tried, shutdown.is_requested());
                sleep(crate::backoff::jittered(every, 0.5..1.5)).await;
            }
        };
        tokio::select! {
            () = trying => {}
            () = shutdown.overdue() => {}
        }
    }

    async fn attempt(
        &mut self,
        attempt: impl Future<Output = Result<(), Lack>>,
        shutdown: &Shutdown,
    ) -> Result<(), Lack> {
        let (begun, known) = (Instant::now(), self.lack.clone());
        let mut trying = std::pin::pin!(attempt);
        loop {
            tokio::select! {
                tried = &mut trying => {
                    if begun.elapsed() > SLOW {
                        self.component.excuse();
                    }
                    return tried;
                }
                () = sleep(PATIENCE) => {
                    let why = format!("no answer for {} s", begun.elapsed().as_secs());
                    // The cause of the try before says more than that this one hangs too.
                    let lack = known.clone().unwrap_or_else(|| Lack::unreachable(why));
                    self.note(Err(lack), shutdown.is_requested());
                }
            }
        }
    }

    /// What the role itself closes at a stop is no news for the log.
    fn note(&mut self, tried: Result<(), Lack>, is_stopping: bool) {
        match tried {
            Ok(()) => {
                if self.lack.take().is_some() {
                    tracing::info!(
                        dependency = self.component.name(),
                        "the dependency is up again"
                    );
                }
                self.was_up = true;
                self.up.set(1);
                self.component.ready();
            }
            Err(lack) => {
                if self.lack.is_none() && !is_stopping {
                    tracing::warn!(
                        dependency = self.component.name(),
                        why = lack.why,
                        "the dependency is down"
                    );
                }
                self.up.set(0);
                self.component.excuse();
                let is_missed = self.need == Need::Always || lack.is_refusal && !self.was_up;
                if is_missed {
                    self.component.not_ready(&*lack.why);
                } else {
                    self.component.ready();
                }
                self.lack = Some(lack);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Health;

    fn dependency(health: &Health, need: Need) -> (Dependency, IntGauge) {
        let up = IntGauge::new("up", "up").unwrap();
        (Dependency::new(health.register("store"), need, up.clone()), up)
    }

    #[test]
    fn what_is_always_needed_keeps_a_role_from_being_ready_with_its_cause() {
        let health = Health::default();
        let (mut store, up) = dependency(&health, Need::Always);
        assert_eq!(health.not_ready(), ["store: starting"]);

        store.note(Err(Lack::unreachable("127.0.0.1:9: refused")), false);
        assert_eq!(
            (health.not_ready(), up.get()),
            (vec!["store: 127.0.0.1:9: refused".to_owned()], 0)
        );

        store.note(Ok(()), false);
        assert_eq!((health.not_ready(), up.get()), (vec![], 1));

        store.note(Err(Lack::unreachable("gone")), false);
        assert_eq!((health.not_ready(), up.get()), (vec!["store: gone".to_owned()], 0));
    }

    #[test]
    fn what_a_role_can_do_without_only_holds_up_a_wrong_rollout() {
        let health = Health::default();
        let (mut store, up) = dependency(&health, Need::Rollout);

        store.note(Err(Lack::unreachable("away")), false);
        assert_eq!(health.not_ready(), [""; 0]);

        store.note(Err(Lack::refused("a wrong password")), false);
        assert_eq!(health.not_ready(), ["store: a wrong password"]);

        store.note(Ok(()), false);
        store.note(Err(Lack::refused("a new password")), false);
        assert_eq!((health.not_ready(), up.get()), (vec![], 0));
    }
}
