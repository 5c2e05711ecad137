//! Limits how often one event is logged.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time between two log lines about one subject.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// Subjects that are counted apart. All further subjects count as one.
const MAX_SUBJECTS: usize = 64;
const OTHERS: &str = "others";

/// Limits log lines about one subject: the first line is written at once, then one line a minute.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter(Mutex<HashMap<String, LastLine>>);

#[derive(Debug)]
struct LastLine {
    at: Instant,
    /// Lines that were dropped since then.
    dropped_lines: u64,
}

impl LogLimiter {
    /// Returns how many lines about `subject` were dropped since the last written line, or `None`
    /// if this line is to be dropped too.
    pub(crate) fn is_due(&self, subject: &str, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let subject =
            if said.len() < MAX_SUBJECTS || said.contains_key(subject) { subject } else { OTHERS };
        let Some(before) = said.get_mut(subject) else {
            said.insert(subject.to_owned(), LastLine { at: now, dropped_lines: 0 });
            return Some(0);
        };
        if now.duration_since(before.at) < REPEAT_AFTER {
            before.dropped_lines += 1;
            return None;
        }
        let dropped_lines = before.dropped_lines;
        *before = LastLine { at: now, dropped_lines: 0 };
        Some(dropped_lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_at_once_and_then_once_a_minute() {
        let (limiter, start) = (LogLimiter::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);

        assert_eq!(limiter.is_due("broker", start), Some(0));
        assert_eq!(limiter.is_due("broker", after(1)), None);
        assert_eq!(limiter.is_due("group", after(1)), Some(0));
        assert_eq!(limiter.is_due("broker", after(59)), None);
        assert_eq!(limiter.is_due("broker", after(61)), Some(2));
        assert_eq!(limiter.is_due("broker", after(62)), None);
    }

    #[test]
    fn the_number_of_subjects_is_bounded() {
        let (limiter, now) = (LogLimiter::default(), Instant::now());
        for number in 0..1000 {
            limiter.is_due(&number.to_string(), now);
        }
        assert!(limiter.0.lock().unwrap().len() <= MAX_SUBJECTS + 1);
    }
}
