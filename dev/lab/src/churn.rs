//! Workers that come and go while the fleet works.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use stocklock::commands::bench::Fleet;

/// How many workers joined, and how many were killed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) joined: usize,
    pub(crate) killed: usize,
}

/// Lets a worker join and kills one, in turn.
pub(crate) struct Churn {
    interval: Duration,
    /// Workers between a kill and the next join.
    workers: usize,
    state: RefCell<State>,
}

struct State {
    /// When the last worker joined or was killed, or the fleet was first seen at work.
    changed_at: Option<Instant>,
    counts: Counts,
}

impl Churn {
    pub(crate) fn new(interval: Duration, workers: usize) -> Self {
        let state = State { changed_at: None, counts: Counts::default() };
        Self { interval, workers, state: RefCell::new(state) }
    }

    /// Changes the fleet if the interval has passed: one joins, or the oldest is killed by SIGKILL.
    pub(crate) fn go_on(&self, fleet: &mut Fleet<'_>) -> anyhow::Result<()> {
        let mut state = self.state.borrow_mut();
        let changed_at = *state.changed_at.get_or_insert_with(Instant::now);
        if changed_at.elapsed() < self.interval {
            return Ok(());
        }
        state.changed_at = Some(Instant::now());
        if fleet.count_workers() <= self.workers {
            state.counts.joined += 1;
            fleet.add_worker()
        } else {
            state.counts.killed += 1;
            fleet.kill_oldest_worker()
        }
    }

    pub(crate) fn counts(self) -> Counts {
        self.state.into_inner().counts
    }
}
