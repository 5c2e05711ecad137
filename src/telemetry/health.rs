use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A loop at work that does not report for this long is taken for stuck, and `/livez` says so. Longer than the deadlines of one
/// batch together: its locks, its transaction's attempts and its statuses.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// What the loops of a process say of themselves.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Vec<Component>>>);

/// One loop's report: it is alive whenever it reports, and ready unless it says why not.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    state: Arc<Mutex<State>>,
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
        let state = State { reported: Instant::now(), waiting: false, not_ready: Some("starting".into()) };
        let component = Component { name, state: Arc::new(Mutex::new(state)) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(component.clone());
        component
    }

    /// Each component that is not ready, with why.
    pub fn not_ready(&self) -> Vec<String> {
        self.each(|component, state| state.not_ready.as_ref().map(|why| format!("{}: {why}", component.name)))
    }

    /// Each component that is at work and has not reported for three minutes.
    pub fn stuck(&self, now: Instant) -> Vec<String> {
        self.each(|component, state| {
            let silent = now.saturating_duration_since(state.reported);
            (silent > STUCK_AFTER && !state.waiting)
                .then(|| format!("{}: no progress for {} s", component.name, silent.as_secs()))
        })
    }

    fn each(&self, say: impl Fn(&Component, &State) -> Option<String>) -> Vec<String> {
        let components = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        components.iter().filter_map(|c| say(c, &c.lock())).collect()
    }
}

impl Component {
    pub fn ready(&self) {
        self.report(None);
    }

    pub fn not_ready(&self, why: impl Into<String>) {
        self.report(Some(why.into()));
    }

    /// Alive, and as ready as before.
    pub fn alive(&self) {
        let mut state = self.lock();
        (state.reported, state.waiting) = (Instant::now(), false);
    }

    /// Waits for work; that there is none for long does not mean that the loop is stuck.
    pub async fn waiting<T>(&self, work: impl Future<Output = T>) -> T {
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
        let (health, later) = (Health::default(), Instant::now() + STUCK_AFTER + Duration::from_secs(9));
        let lane = health.register("lane");
        lane.ready();
        assert_eq!(health.stuck(Instant::now()), [""; 0]);
        assert_eq!(health.stuck(later).len(), 1);
        let mut idle = Box::pin(lane.waiting(std::future::pending::<()>()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(idle.as_mut().poll(&mut context).is_pending());
        assert_eq!(health.stuck(later), [""; 0]);
    }
}
