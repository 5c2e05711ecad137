//! Waiting for conditions. A test names what it waits for and does not guess how long that takes.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use super::PATIENCE;

/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until a condition is true. Fails the test after [`PATIENCE`] and names the condition.
pub(crate) async fn wait_until(condition: &str, is_true: impl AsyncFnMut() -> bool) {
    wait_until_within(PATIENCE, condition, is_true).await;
}

/// Does the same with a deadline of the test's choice.
pub(crate) async fn wait_until_within(
    deadline: Duration,
    condition: &str,
    mut is_true: impl AsyncFnMut() -> bool,
) {
    wait_for_within(deadline, async || {
        if is_true().await { Ok(()) } else { Err(format!("not within {deadline:?}: {condition}")) }
    })
    .await;
}

/// Asks until the answer is `Ok`, and returns its value. Fails the test after [`PATIENCE`] with
/// the last `Err`, which says what was found instead.
pub(crate) async fn wait_for<T, E: Display>(ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    wait_for_within(PATIENCE, ask).await
}

/// Does the same with a deadline of the test's choice.
pub(crate) async fn wait_for_within<T, E: Display>(
    deadline: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(found) => assert!(begun.elapsed() < deadline, "{found}"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Fails the test if a condition is false at any look within a time. It is for what must not
/// happen: there is no event to wait for, so the time itself is tested.
pub(crate) async fn stays(
    duration: Duration,
    condition: &str,
    mut is_true: impl AsyncFnMut() -> bool,
) {
    let begun = Instant::now();
    while begun.elapsed() < duration {
        assert!(is_true().await, "no longer after {:?}: {condition}", begun.elapsed());
        tokio::time::sleep(INTERVAL).await;
    }
    assert!(is_true().await, "no longer after {duration:?}: {condition}");
}

/// Waits until a reading has not changed for a time, and returns it.
pub(crate) async fn unchanged_for<T: PartialEq>(time: Duration, read: impl AsyncFn() -> T) -> T {
    let begun = Instant::now();
    let (mut last, mut since) = (read().await, Instant::now());
    while since.elapsed() < time {
        assert!(begun.elapsed() < PATIENCE, "the reading is never unchanged for {time:?}");
        tokio::time::sleep(INTERVAL).await;
        let now = read().await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}
