//! The stop of a process: a signal, then the drain, then the end. A [`Shutdown`] is a value that
//! the roles pass along, never a static.
//!
//! | time since the request | event |
//! | --- | --- |
//! | 0 | [`Shutdown::requested`]: loops take no new work and finish what is in flight |
//! | 75 % of `stop.deadline` | [`Shutdown::overdue`]: [`Shutdown::finish`] cuts work off |
//! | 100 % of `stop.deadline` | the process ends with status 2, whatever hangs |

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const SECOND_SIGNAL_STATUS: i32 = 130;
/// The exit status of a stop that cut work off.
const CUT_OFF_STATUS: i32 = 2;
/// The part of the stop's deadline after which work that hangs is cut off. The rest is for leaving
/// the consumer groups and closing connections.
const CUT_OFF_SHARE: f64 = 0.75;
/// The part of the time left until the deadline that closing one connection or group may take.
const CLOSING_SHARE: f64 = 0.5;
/// How long the last line of the log may take: the reader of the log may hang too.
const MAX_LOG_TIME: Duration = Duration::from_millis(500);

/// Asks a process to stop. Each holder finishes the work that it has begun and returns.
///
/// Cheap to clone; all clones are the same request.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    overdue: CancellationToken,
    progress: Arc<Mutex<Progress>>,
}

/// How far a stop has come.
#[derive(Debug, Default)]
struct Progress {
    /// Names of the work that is awaited now.
    unfinished: Vec<&'static str>,
    /// Names of the work that was dropped because the stop was overdue.
    cut_off: Vec<&'static str>,
    requested_at: Option<Instant>,
    /// How long after the request the process ends; `None` if the stop is unbounded.
    deadline: Option<Duration>,
}

/// A stop was requested: the caller's loop ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stop was requested")]
pub(crate) struct StopRequested;

impl Shutdown {
    /// Requests a stop on the first SIGTERM or SIGINT. A second signal ends the process at once,
    /// with status 130.
    ///
    /// Fails if the process cannot register a signal handler.
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
            tracing::warn!("second signal received, stopping at once");
            std::process::exit(SECOND_SIGNAL_STATUS);
        });
        Ok(shutdown)
    }

    /// Bounds the stop by `deadline`, counted from the request. After three quarters of it,
    /// [`Shutdown::finish`] cuts work off. At the deadline the process ends with status 2,
    /// whatever hangs; its last log line has what `complaints` returns, the reasons why the
    /// process is not ready.
    pub(crate) fn enforce(
        &self,
        deadline: Duration,
        complaints: impl Fn() -> Vec<String> + Send + 'static,
    ) {
        let shutdown = self.clone();
        self.progress().deadline = Some(deadline);
        tokio::spawn(async move {
            shutdown.requested().await;
            let bounded = shutdown.clone();
            // A thread of its own: the threads of the runtime may all be blocked.
            let ending =
                std::thread::Builder::new().name("stop-deadline".into()).spawn(move || {
                    std::thread::sleep(deadline);
                    bounded.log_deadline_passed(deadline, complaints);
                    std::process::exit(CUT_OFF_STATUS);
                });
            if let Err(error) = ending {
                tracing::error!(%error, "no thread for the stop deadline, the stop is unbounded");
            }
            tokio::time::sleep(deadline.mul_f64(CUT_OFF_SHARE)).await;
            shutdown.overdue.cancel();
        });
    }

    /// Logs on another thread, as the log or `complaints` may block. Returns after 500 ms at the
    /// latest.
    fn log_deadline_passed(
        self,
        deadline: Duration,
        complaints: impl Fn() -> Vec<String> + Send + 'static,
    ) {
        let (logged, logging) = mpsc::channel();
        std::thread::spawn(move || {
            let (left, lacks) = (self.progress().left(), complaints());
            tracing::error!(?left, ?lacks, ?deadline, "stop deadline passed, work is unfinished");
            let _nobody_waits = logged.send(());
        });
        let _logged = logging.recv_timeout(MAX_LOG_TIME);
    }

    /// Sleeps for `delay`. Fails with [`StopRequested`] as soon as a stop is requested.
    pub(crate) async fn sleep(&self, delay: Duration) -> Result<(), StopRequested> {
        self.interruptible(tokio::time::sleep(delay)).await
    }

    /// Awaits `work`. Drops it and fails with [`StopRequested`] as soon as a stop is requested, so
    /// `work` must be safe to drop at every await.
    pub(crate) async fn interruptible<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, StopRequested> {
        self.requested.run_until_cancelled(work).await.ok_or(StopRequested)
    }

    /// Awaits `work`. Returns `None` if the stop becomes overdue first; then the work is dropped,
    /// and `name` is listed in [`Shutdown::cut_off`].
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
                tracing::error!(work = name, "stop deadline is near, work is cut off");
                unfinished.cut_off();
                None
            }
        }
    }

    /// Awaits `work` that is never cut off, such as leaving a consumer group. At the deadline the
    /// log lists it as unfinished.
    pub(crate) async fn close<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _unfinished = Unfinished::new(self, name);
        work.await
    }

    /// The names of the work that was cut off so far.
    pub(crate) fn cut_off(&self) -> Vec<&'static str> {
        self.progress().cut_off.clone()
    }

    /// How long leaving a consumer group or another server may take: half of the time left until
    /// the deadline. So a process whose work is done ends in order although its servers are away.
    ///
    /// Unbounded if the stop has no deadline. Also unbounded if work was cut off: the stop has
    /// failed then, and the process ends at the deadline.
    pub(crate) fn closing_limit(&self, now: Instant) -> Duration {
        let progress = self.progress();
        let deadline = progress.deadline.filter(|_| progress.cut_off.is_empty());
        let since =
            progress.requested_at.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        deadline
            .map_or(Duration::MAX, |deadline| deadline.saturating_sub(since).mul_f64(CLOSING_SHARE))
    }

    /// Requests the stop. Further requests change nothing.
    pub fn request(&self) {
        self.progress().requested_at.get_or_insert_with(Instant::now);
        self.requested.cancel();
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// Returns once a stop is requested.
    pub(crate) async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Returns once the stop is overdue: work that hangs is cut off.
    pub(crate) async fn overdue(&self) {
        self.overdue.cancelled().await;
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// The names of all work that did not end, each once.
    fn left(&self) -> Vec<&'static str> {
        let mut left = [self.cut_off.as_slice(), &self.unfinished].concat();
        left.sort_unstable();
        left.dedup();
        left
    }
}

/// Lists work as unfinished until this is dropped.
struct Unfinished<'a> {
    shutdown: &'a Shutdown,
    name: &'static str,
}

impl<'a> Unfinished<'a> {
    fn new(shutdown: &'a Shutdown, name: &'static str) -> Self {
        shutdown.progress().unfinished.push(name);
        Self { shutdown, name }
    }

    fn cut_off(self) {
        self.shutdown.progress().cut_off.push(self.name);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut progress = self.shutdown.progress();
        if let Some(index) = progress.unfinished.iter().position(|name| *name == self.name) {
            progress.unfinished.swap_remove(index);
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
        assert_eq!(shutdown.progress().left(), ["hung"]);
    }

    #[tokio::test]
    async fn a_group_is_left_within_half_of_what_is_left_of_the_deadline() {
        let shutdown = Shutdown::default();
        assert_eq!(shutdown.closing_limit(Instant::now()), Duration::MAX);
        shutdown.enforce(Duration::from_secs(60), Vec::new);
        let requested_at = Instant::now();
        shutdown.progress().requested_at = Some(requested_at);

        let limit =
            |seconds| shutdown.closing_limit(requested_at + Duration::from_secs(seconds)).as_secs();

        assert_eq!((limit(0), limit(20), limit(90)), (30, 20, 0));
        shutdown.progress().cut_off.push("batches");
        assert_eq!(shutdown.closing_limit(requested_at), Duration::MAX);
    }

    #[tokio::test]
    async fn a_sleep_ends_as_soon_as_a_stop_is_requested() {
        let shutdown = Shutdown::default();
        let mut long = Box::pin(shutdown.sleep(Duration::from_secs(3_600)));

        let short = shutdown.sleep(Duration::ZERO).await;
        let was_pending = futures::poll!(long.as_mut()).is_pending();
        shutdown.request();

        assert_eq!((short, was_pending, long.await), (Ok(()), true, Err(StopRequested)));
        assert_eq!(shutdown.sleep(Duration::ZERO).await, Err(StopRequested));
    }

    #[tokio::test]
    async fn work_in_flight_is_left_until_it_ends() {
        let shutdown = Shutdown::default();
        let mut work = Box::pin(shutdown.close("group", std::future::pending::<()>()));

        let is_pending = futures::poll!(work.as_mut()).is_pending();

        assert!(is_pending);
        assert_eq!(shutdown.progress().left(), ["group"]);
        drop(work);
        assert_eq!(shutdown.progress().left(), [""; 0]);
    }
}
