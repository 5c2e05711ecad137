use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two log lines that say the same.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Subjects that are told apart; all others count as one.
const MAX_SUBJECTS: usize = 64;
const OTHERS: &str = "others";

/// Limits log lines that say the same: the first is written at once, and then one a minute.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<HashMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// Lines that were not written since.
    unsaid: u64,
}

impl Seldom {
    /// Returns how many lines about `subject` were dropped since the last one, or `None` where this
    /// one is to be dropped too.
    pub(super) fn is_due(&self, subject: &str, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let subject =
            if said.len() < MAX_SUBJECTS || said.contains_key(subject) { subject } else { OTHERS };
        let Some(before) = said.get_mut(subject) else {
            said.insert(subject.to_owned(), Said { at: now, unsaid: 0 });
            return Some(0);
        };
        if now.duration_since(before.at) < SAY_AGAIN_AFTER {
            before.unsaid += 1;
            return None;
        }
        let unsaid = before.unsaid;
        *before = Said { at: now, unsaid: 0 };
        Some(unsaid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_at_once_and_then_once_a_minute() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);

        assert_eq!(seldom.is_due("broker", start), Some(0));
        assert_eq!(seldom.is_due("broker", after(1)), None);
        assert_eq!(seldom.is_due("group", after(1)), Some(0));
        assert_eq!(seldom.is_due("broker", after(59)), None);
        assert_eq!(seldom.is_due("broker", after(61)), Some(2));
        assert_eq!(seldom.is_due("broker", after(62)), None);
    }

    #[test]
    fn only_so_many_subjects_are_remembered() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        for number in 0..1000 {
            seldom.is_due(&number.to_string(), now);
        }
        assert!(seldom.0.lock().unwrap().len() <= MAX_SUBJECTS + 1);
    }
}
