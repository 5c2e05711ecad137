use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A loop at work that does not report for this long is stuck, and `/livez` says so, unless a
/// dependency was down or slow meanwhile: a restart does not mend that.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// What the loops of a process say of themselves.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<Vec<Component>>>,
    excused: Arc<Mutex<Option<Instant>>>,
}

/// One loop's report: it is alive whenever it reports, and ready unless it says why not.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    state: Arc<Mutex<State>>,
    /// When a dependency of the process was last seen down or slow.
    excused: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
struct State {
    reported: Instant,
    /// Waiting for work, however long that takes.
    waiting: bool,
    not_ready: Option<String>,
}

impl Health {
    /// A new component, not ready until it reports.
    pub fn register(&self, name: &'static str) -> Component {
        let state =
            State { reported: Instant::now(), waiting: false, not_ready: Some("starting".into()) };
        let component = Component {
            name,
            state: Arc::new(Mutex::new(state)),
            excused: Arc::clone(&self.excused),
        };
        self.components.lock().unwrap_or_else(PoisonError::into_inner).push(component.clone());
        component
    }

    /// Each component that is not ready, with why.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        self.each(|component, state| {
            state.not_ready.as_ref().map(|why| format!("{}: {why}", component.name))
        })
    }

    /// Each component that is at work and has not reported for three minutes. None where a
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

    fn each(&self, say: impl Fn(&Component, &State) -> Option<String>) -> Vec<String> {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        components.iter().filter_map(|c| say(c, &c.lock())).collect()
    }
}

impl Component {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn ready(&self) {
        self.report(None);
    }

    pub(crate) fn not_ready(&self, why: impl Into<String>) {
        self.report(Some(why.into()));
    }

    /// Says that a dependency is down or slow, so that no loop of the process counts as stuck.
    pub(crate) fn excuse(&self) {
        *self.excused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Alive, and as ready as before.
    pub(crate) fn alive(&self) {
        let mut state = self.lock();
        (state.reported, state.waiting) = (Instant::now(), false);
    }

    /// Waits for work; that there is none for long does not mean that the loop is stuck.
    pub(crate) async fn waiting<T>(&self, work: impl Future<Output = T>) -> T {
        self.lock().waiting = true;
        let work = work.await;
        self.alive();
        work
    }

    fn report(&self, not_ready: Option<String>) {
        *self.lock() = State { reported: Instant::now(), waiting: false, not_ready };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_at_work_is_being_stuck_and_silence_without_work_is_not() {
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
