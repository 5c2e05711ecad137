//! Where the tests let a process die.

/// With the feature `crash-points`: ends the process as `kill -9` does, at the n-th time it comes to the point that
/// `STOCKLOCK_CRASH_AT=name` or `name@n` names. Without the feature: nothing.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_name: &str) {}

#[cfg(feature = "crash-points")]
pub fn crash_point(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static WANTED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let wanted = std::env::var("STOCKLOCK_CRASH_AT").ok()?;
        let (name, times) = wanted.split_once('@').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), times.parse().unwrap_or(1)))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let Some((wanted, times)) = &*WANTED else { return };
    if wanted == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *times {
        eprintln!("crash point {name} reached");
        let _never_returns = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
