use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A loop that does not report for this long is taken for stuck, and `/livez` says so.
const STUCK_AFTER: Duration = Duration::from_secs(60);

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
    not_ready: Option<String>,
}

impl Health {
    /// A new component, not ready until it reports.
    pub fn register(&self, name: &'static str) -> Component {
        let state = State { reported: Instant::now(), not_ready: Some("starting".into()) };
        let component = Component { name, state: Arc::new(Mutex::new(state)) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(component.clone());
        component
    }

    /// Each component that is not ready, with why.
    pub fn not_ready(&self) -> Vec<String> {
        self.each(|component, state| state.not_ready.as_ref().map(|why| format!("{}: {why}", component.name)))
    }

    /// Each component that has not reported for a minute.
    pub fn stuck(&self) -> Vec<String> {
        self.each(|component, state| {
            let silent = state.reported.elapsed();
            (silent > STUCK_AFTER).then(|| format!("{}: no progress for {} s", component.name, silent.as_secs()))
        })
    }

    fn each(&self, say: impl Fn(&Component, &State) -> Option<String>) -> Vec<String> {
        let components = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        components.iter().filter_map(|c| say(c, &c.state.lock().unwrap_or_else(PoisonError::into_inner))).collect()
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).reported = Instant::now();
    }

    fn report(&self, not_ready: Option<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { reported: Instant::now(), not_ready };
    }
}
