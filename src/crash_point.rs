//! Where the tests let a process die or stop.

/// With the feature `crash-points`: ends the process as `kill -9` does, at the n-th time it comes to the point that
/// `STOCKLOCK_CRASH_AT=name` or `name@n` names, or stops it as `kill -STOP` does, at that of `STOCKLOCK_STOP_AT`. Without the
/// feature: nothing.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_name: &str) {}

#[cfg(feature = "crash-points")]
pub(crate) fn crash_point(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    use nix::sys::signal::{Signal, raise};

    struct Wanted {
        point: String,
        times: u64,
        passed: AtomicU64,
    }

    impl Wanted {
        fn from(variable: &str) -> Option<Self> {
            let wanted = std::env::var(variable).ok()?;
            let (point, times) = wanted.split_once('@').unwrap_or((&wanted, "1"));
            Some(Self {
                point: point.to_owned(),
                times: times.parse().unwrap_or(1),
                passed: AtomicU64::new(0),
            })
        }

        fn is_here(&self, name: &str) -> bool {
            self.point == name && self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.times
        }
    }

    static CRASH: LazyLock<Option<Wanted>> = LazyLock::new(|| Wanted::from("STOCKLOCK_CRASH_AT"));
    static STOP: LazyLock<Option<Wanted>> = LazyLock::new(|| Wanted::from("STOCKLOCK_STOP_AT"));

    if CRASH.as_ref().is_some_and(|wanted| wanted.is_here(name)) {
        eprintln!("crash point {name} reached");
        let _never_returns = raise(Signal::SIGKILL);
    }
    if STOP.as_ref().is_some_and(|wanted| wanted.is_here(name)) {
        eprintln!("stopped at {name}");
        let _continued = raise(Signal::SIGSTOP);
    }
}
