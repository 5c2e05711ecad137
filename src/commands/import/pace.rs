//! When an import sends, when it waits, and when it gives up.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Most failures in a row, with no order placed or refused in between. They take about a minute.
pub(super) const MAX_FAILURES: u32 = 30;
/// Most of them while the server has never answered. They take some seconds.
const MAX_FIRST_FAILURES: u32 = 6;

/// A failure is a broken stream, or an answer that is not final, such as a 503.
#[derive(Default)]
pub(super) struct Pace {
    backoff: Backoff,
    paused_until: Option<Instant>,
    has_answered: bool,
}

/// What follows on a failure.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    /// Another failure was counted a moment ago, and its pause lasts.
    Pausing,
    /// A pause begins.
    Pause,
    GiveUp,
}

impl Pace {
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Called for each answer, final or not.
    pub(super) fn answered(&mut self, is_final: bool) {
        self.has_answered = true;
        if is_final {
            self.backoff = Backoff::default();
        }
    }

    /// Counts a failure, unless a pause lasts. Pauses for `least` at least.
    pub(super) fn failed(&mut self, least: Duration) -> Next {
        if self.paused_until.is_some() {
            return Next::Pausing;
        }
        let delay = self.backoff.next_delay().max(least);
        let most = if self.has_answered { MAX_FAILURES } else { MAX_FIRST_FAILURES };
        if self.backoff.failures() >= most {
            return Next::GiveUp;
        }
        self.paused_until = Some(Instant::now() + delay);
        Next::Pause
    }

    /// Whether the last failure was the first of its run.
    pub(super) fn is_first_failure(&self) -> bool {
        self.backoff.failures() == 1
    }
}
