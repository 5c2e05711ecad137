use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::{Instant, sleep};

use super::Component;
use crate::lifecycle::Shutdown;

/// Mean pause between two tries of a dependency that is up.
const TRY_EVERY: Duration = Duration::from_secs(3);
/// Mean pause between two tries of a dependency that is down.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// A try that takes longer is reported as a failure, although it goes on.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// A dependency that answers later is slow. Then no loop that waits for it counts as stuck.
const SLOW: Duration = Duration::from_secs(1);

/// Why a role cannot use a dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    /// The address and the cause.
    pub(crate) why: String,
    /// The server answers and refuses, as with a wrong password. Waiting does not help.
    pub(crate) is_refusal: bool,
}

impl Lack {
    /// The dependency does not answer, or its answer is not usable.
    pub(crate) fn unreachable(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_refusal: false }
    }

    /// The server answers and refuses.
    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_refusal: true }
    }
}

/// Whether a role is ready while a dependency is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Not ready: the role cannot work without it.
    Always,
    /// Ready: the role can work without it for a while. Only a refusal before the dependency was up
    /// once means not ready, because then the role is configured wrongly.
    Rollout,
}

/// A dependency that a task tries all the time, so that readiness is known before there is work.
pub(crate) struct Dependency {
    component: Component,
    need: Need,
    up: IntGauge,
    was_up: bool,
    /// The cause of the last try's failure; `None` after a success.
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
                () = sleep(TRY_TIMEOUT) => {
                    let why = format!("no answer for {} s", begun.elapsed().as_secs());
                    // The cause of the last failed try says more than "no answer".
                    let lack = known.clone().unwrap_or_else(|| Lack::unreachable(why));
                    self.note(Err(lack), shutdown.is_requested());
                }
            }
        }
    }

    /// Reports the result of a try. During a stop it logs no failure: the role itself closes what
    /// the tries use.
    fn note(&mut self, tried: Result<(), Lack>, is_stopping: bool) {
        match tried {
            Ok(()) => {
                if self.lack.take().is_some() {
                    tracing::info!(dependency = self.component.name(), "dependency up again");
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
                        "dependency down"
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
    fn a_role_is_not_ready_while_a_dependency_that_it_always_needs_is_down() {
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
    fn a_role_is_ready_without_other_dependencies_unless_misconfigured() {
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
