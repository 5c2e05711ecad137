//! Signals → drain → stop, as a value that is passed along.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const SECOND_SIGNAL_STATUS: i32 = 130;
/// The exit status of a stop that cut work off.
const CUT_OFF_STATUS: i32 = 2;
/// Work that hangs is cut off after this part of the stop's deadline. The rest is for leaving the
/// consumer groups and closing connections.
const CUT_OFF_AFTER: f64 = 0.75;
/// The part of what is left of the stop's deadline that leaving a consumer group may take.
const LEAVE_SHARE: f64 = 0.5;
/// How long the last line of the log may take: who reads the log may hang too.
const LOG_DEADLINE: Duration = Duration::from_millis(500);

/// Asks a process to stop. Its holder finishes what it has begun and returns.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    overdue: CancellationToken,
    work: Arc<Mutex<Work>>,
}

#[derive(Debug, Default)]
struct Work {
    unfinished: Vec<&'static str>,
    cut_off: Vec<&'static str>,
    requested_at: Option<Instant>,
    /// How long after the request the process ends, where that is bounded.
    deadline: Option<Duration>,
}

impl Shutdown {
    /// Stops on SIGTERM and SIGINT; a second signal ends the process at once, with status 130.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let requested = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            requested.request();
            tracing::info!(
                signal = name,
                "stopping: no new work is taken, work in flight is finished"
            );
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("stopped at once, at the second signal");
            std::process::exit(SECOND_SIGNAL_STATUS);
        });
        Ok(shutdown)
    }

    /// Bounds the stop: three quarters of `deadline` after the request, [`Shutdown::finish`] cuts
    /// work off; at the deadline the process ends with status 2, whatever hangs. `complaints`
    /// answers what the process lacks, for the log.
    pub(crate) fn enforce(
        &self,
        deadline: Duration,
        complaints: impl Fn() -> Vec<String> + Send + 'static,
    ) {
        let shutdown = self.clone();
        self.lock().deadline = Some(deadline);
        tokio::spawn(async move {
            shutdown.requested().await;
            let bounded = shutdown.clone();
            // A thread of its own: the runtime's may all be blocked.
            let ending =
                std::thread::Builder::new().name("stop-deadline".into()).spawn(move || {
                    std::thread::sleep(deadline);
                    let (logged, logging) = mpsc::channel();
                    std::thread::spawn(move || {
                        let (left, lacks) = (bounded.lock().left(), complaints());
                        tracing::error!(
                            ?left,
                            ?lacks,
                            ?deadline,
                            "stop deadline passed, work is unfinished"
                        );
                        let _nobody_waits = logged.send(());
                    });
                    let _logged = logging.recv_timeout(LOG_DEADLINE);
                    std::process::exit(CUT_OFF_STATUS);
                });
            if let Err(error) = ending {
                tracing::error!(%error, "the stop has no deadline");
            }
            tokio::time::sleep(deadline.mul_f64(CUT_OFF_AFTER)).await;
            shutdown.overdue.cancel();
        });
    }

    /// Awaits work until it ends, or until the stop is overdue: then the work is dropped, and the
    /// answer is `None`.
    pub(crate) async fn finish<T>(
        &self,
        name: &'static str,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let unfinished = Unfinished::new(self, name);
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.overdue() => {
                tracing::error!(work = name, "cut off, as the stop deadline is near");
                unfinished.cut_off();
                None
            }
        }
    }

    /// Awaits work that is not cut off before the process ends, such as leaving a consumer group.
    pub(crate) async fn close<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _unfinished = Unfinished::new(self, name);
        work.await
    }

    /// What was cut off so far.
    pub(crate) fn cut_off(&self) -> Vec<&'static str> {
        self.lock().cut_off.clone()
    }

    /// How long leaving a consumer group may take: half of what is left until the deadline. So a
    /// process whose work is done ends in order although the brokers are away. Unbounded where work
    /// was cut off, as the stop is no success then.
    pub(crate) fn leave_limit(&self, now: Instant) -> Duration {
        let work = self.lock();
        let deadline = work.deadline.filter(|_| work.cut_off.is_empty());
        let since =
            work.requested_at.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        deadline
            .map_or(Duration::MAX, |deadline| deadline.saturating_sub(since).mul_f64(LEAVE_SHARE))
    }

    pub fn request(&self) {
        self.lock().requested_at.get_or_insert_with(Instant::now);
        self.requested.cancel();
    }

    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// Returns once a stop is requested.
    pub(crate) async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Returns once work that hangs is cut off.
    pub(crate) async fn overdue(&self) {
        self.overdue.cancelled().await;
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Each name once.
    fn left(&self) -> Vec<&'static str> {
        let mut left = [self.cut_off.as_slice(), &self.unfinished].concat();
        left.sort_unstable();
        left.dedup();
        left
    }
}

/// Work that is listed as unfinished until this is dropped.
struct Unfinished<'a> {
    shutdown: &'a Shutdown,
    name: &'static str,
}

impl<'a> Unfinished<'a> {
    fn new(shutdown: &'a Shutdown, name: &'static str) -> Self {
        shutdown.lock().unfinished.push(name);
        Self { shutdown, name }
    }

    fn cut_off(self) {
        self.shutdown.lock().cut_off.push(self.name);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut work = self.shutdown.lock();
        if let Some(index) = work.unfinished.iter().position(|name| *name == self.name) {
            work.unfinished.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_ends_is_not_cut_off_and_work_that_hangs_is() {
        let shutdown = Shutdown::default();
        shutdown.overdue.cancel();

        let done = shutdown.finish("quick", async { 1 }).await;
        let hung = shutdown.finish("hung", std::future::pending::<()>()).await;

        assert_eq!((done, hung, shutdown.cut_off()), (Some(1), None, vec!["hung"]));
        assert_eq!(shutdown.lock().left(), ["hung"]);
    }

    #[tokio::test]
    async fn a_group_is_left_within_half_of_what_is_left_of_the_deadline() {
        let shutdown = Shutdown::default();
        assert_eq!(shutdown.leave_limit(Instant::now()), Duration::MAX);
        shutdown.enforce(Duration::from_secs(60), Vec::new);
        let requested_at = Instant::now();
        shutdown.lock().requested_at = Some(requested_at);

        let limit =
            |seconds| shutdown.leave_limit(requested_at + Duration::from_secs(seconds)).as_secs();

        assert_eq!((limit(0), limit(20), limit(90)), (30, 20, 0));
        shutdown.lock().cut_off.push("batches");
        assert_eq!(shutdown.leave_limit(requested_at), Duration::MAX);
    }

    #[tokio::test]
    async fn work_in_flight_is_left_until_it_ends() {
        let shutdown = Shutdown::default();
        let mut work = Box::pin(shutdown.close("group", std::future::pending::<()>()));

        let is_pending = futures::poll!(work.as_mut()).is_pending();

        assert!(is_pending);
        assert_eq!(shutdown.lock().left(), ["group"]);
        drop(work);
        assert_eq!(shutdown.lock().left(), [""; 0]);
    }
}
