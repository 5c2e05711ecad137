//! Places where the tests kill or stop a process.

/// A place in the code that a test can name.
///
/// With the feature `crash-points`, the process ends as by `kill -9` when it reaches the point
/// that the environment variable `STOCKLOCK_CRASH_AT` names: `name` at the first time, `name@n` at
/// the n-th. `STOCKLOCK_STOP_AT` stops it there in the same way, as `kill -STOP` does.
///
/// Without the feature, this function does nothing.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub(crate) fn crash_point(_name: &str) {}

#[cfg(feature = "crash-points")]
pub(crate) fn crash_point(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    use nix::sys::signal::{Signal, raise};

    /// A point, and at which time that the process reaches it something happens.
    struct Trigger {
        point: String,
        time: u64,
        reached: AtomicU64,
    }

    impl Trigger {
        fn from_variable(variable: &str) -> Option<Self> {
            let value = std::env::var(variable).ok()?;
            let (point, time) = value.split_once('@').unwrap_or((&value, "1"));
            Some(Self {
                point: point.to_owned(),
                time: time.parse().unwrap_or(1),
                reached: AtomicU64::new(0),
            })
        }

        fn is_due(&self, name: &str) -> bool {
            self.point == name && self.reached.fetch_add(1, Ordering::SeqCst) + 1 == self.time
        }
    }

    static CRASH: LazyLock<Option<Trigger>> =
        LazyLock::new(|| Trigger::from_variable("STOCKLOCK_CRASH_AT"));
    static STOP: LazyLock<Option<Trigger>> =
        LazyLock::new(|| Trigger::from_variable("STOCKLOCK_STOP_AT"));

    if CRASH.as_ref().is_some_and(|trigger| trigger.is_due(name)) {
        eprintln!("crash point {name} reached");
        let _never_returns = raise(Signal::SIGKILL);
    }
    if STOP.as_ref().is_some_and(|trigger| trigger.is_due(name)) {
        eprintln!("stopped at {name}");
        let _continued = raise(Signal::SIGSTOP);
    }
}
