use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A loop is stuck if it has work and does not report for this long. Then `/livez` answers 503,
/// unless a dependency was down or slow in this time: a restart would not help.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// The reports of all loops of a process.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<Vec<Component>>>,
    excused: Arc<Mutex<Option<Instant>>>,
}

/// One loop of a process, or one dependency. Each report means that it is alive.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    /// Whether the process is ready only if this component is.
    is_needed: bool,
    state: Arc<Mutex<ComponentState>>,
    /// When a dependency of the process was last seen down or slow.
    excused: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
struct ComponentState {
    /// Time of the last report.
    reported: Instant,
    /// Whether it waits for work. Then its silence is no sign of trouble.
    waiting: bool,
    /// Why it is not ready; `None`: it is ready.
    not_ready: Option<String>,
}

impl Health {
    /// Adds a component, which is not ready until it reports.
    pub fn register(&self, name: &'static str) -> Component {
        self.add(name, true)
    }

    /// Adds a component without which the process does its other work, so that it is ready whatever
    /// this component reports.
    pub(crate) fn register_optional(&self, name: &'static str) -> Component {
        self.add(name, false)
    }

    fn add(&self, name: &'static str, is_needed: bool) -> Component {
        let state = ComponentState {
            reported: Instant::now(),
            waiting: false,
            not_ready: Some("starting".into()),
        };
        let component = Component {
            name,
            is_needed,
            state: Arc::new(Mutex::new(state)),
            excused: Arc::clone(&self.excused),
        };
        self.components.lock().unwrap_or_else(PoisonError::into_inner).push(component.clone());
        component
    }

    /// Each needed component that is not ready, with its reason.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        self.each(|component, state| {
            let why = state.not_ready.as_ref().filter(|_| component.is_needed);
            why.map(|why| format!("{}: {why}", component.name))
        })
    }

    /// Each component that has work and has not reported for more than three minutes. Empty if a
    /// dependency was down or slow in these three minutes: the loops may wait for it.
    pub(crate) fn stuck(&self, now: Instant) -> Vec<String> {
        let excused = *self.excused.lock().unwrap_or_else(PoisonError::into_inner);
        if excused.is_some_and(|excused| now.saturating_duration_since(excused) <= STUCK_AFTER) {
            return Vec::new();
        }
        self.each(|component, state| {
            let silent = now.saturating_duration_since(state.reported);
            (silent > STUCK_AFTER && !state.waiting)
                .then(|| format!("{}: no progress for {} s", component.name, silent.as_secs()))
        })
    }

    fn each(
        &self,
        complaint: impl Fn(&Component, &ComponentState) -> Option<String>,
    ) -> Vec<String> {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        components.iter().filter_map(|component| complaint(component, &component.lock())).collect()
    }
}

impl Component {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Reports that the component is alive and ready.
    pub(crate) fn ready(&self) {
        self.report(None);
    }

    /// Reports that the component is alive, and why it is not ready.
    pub(crate) fn not_ready(&self, why: impl Into<String>) {
        self.report(Some(why.into()));
    }

    /// Reports that a dependency is down or slow, so that no loop of the process counts as stuck.
    pub(crate) fn excuse(&self) {
        *self.excused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Reports that the component is alive. It stays as ready as before.
    pub(crate) fn alive(&self) {
        let mut state = self.lock();
        (state.reported, state.waiting) = (Instant::now(), false);
    }

    /// Waits for `work`. A loop without work is not stuck, however long it waits.
    pub(crate) async fn waiting<T>(&self, work: impl Future<Output = T>) -> T {
        self.lock().waiting = true;
        let work = work.await;
        self.alive();
        work
    }

    fn report(&self, not_ready: Option<String>) {
        *self.lock() = ComponentState { reported: Instant::now(), waiting: false, not_ready };
    }

    fn lock(&self) -> MutexGuard<'_, ComponentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_loop_is_stuck_only_if_it_has_work() {
        let (health, later) =
            (Health::default(), Instant::now() + STUCK_AFTER + Duration::from_secs(9));
        let lane = health.register("lane");
        lane.ready();
        assert_eq!(health.stuck(Instant::now()), [""; 0]);
        assert_eq!(health.stuck(later).len(), 1);
        let mut idle = Box::pin(lane.waiting(std::future::pending::<()>()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(idle.as_mut().poll(&mut context).is_pending());
        assert_eq!(health.stuck(later), [""; 0]);
    }

    #[test]
    fn a_loop_that_waits_for_a_slow_dependency_is_not_stuck() {
        let (health, begun) = (Health::default(), Instant::now());
        let (lane, store) = (health.register("lane"), health.register("store"));
        lane.ready();
        store.excuse();

        assert_eq!(health.stuck(begun + STUCK_AFTER + Duration::from_nanos(1)), [""; 0]);
        assert_eq!(health.stuck(begun + 2 * STUCK_AFTER).len(), 2);
    }
}
