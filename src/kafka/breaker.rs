use std::collections::HashMap;

use super::Blame;

/// How many of the last messages a window has.
pub(super) const WINDOW_MESSAGES: usize = 1000;
/// How many of them may be dead letters: a fifth.
pub(super) const MAX_DEAD_LETTERS: usize = WINDOW_MESSAGES / 5;
/// Sources that are counted apart. All further sources count as one.
const MAX_SOURCES: usize = 64;

/// Halts a lane if too many of its messages are bad. Then the fault is probably not in the
/// messages, but in stocklock or its configuration, and dead-lettering them all would do harm.
///
/// It opens when more than 200 of the last 1,000 messages would be dead letters. What a letter is
/// blamed on says among which messages it counts:
///
/// | blamed on | counts among the messages of |
/// | --- | --- |
/// | [`Blame::Source`] | the source |
/// | [`Blame::Partition`] | the partition, and the lane |
/// | [`Blame::Lane`] | the lane |
/// | [`Blame::Writer`] | nothing: the throttle bounds its rate |
#[derive(Debug, Default)]
pub(super) struct Breaker {
    lane: Window,
    partitions: HashMap<i32, Window>,
    /// The first [`MAX_SOURCES`] sources.
    sources: HashMap<String, Window>,
    other_sources: Window,
}

impl Breaker {
    /// Whether the next message of the partition may become a dead letter.
    pub(super) fn is_closed(&self, partition: i32, blame: Blame<'_>) -> bool {
        match blame {
            Blame::Writer => true,
            Blame::Lane => self.lane.has_room(),
            Blame::Partition => {
                self.lane.has_room() && self.partitions.get(&partition).is_none_or(Window::has_room)
            }
            Blame::Source(source) if self.is_counted_apart(source) => {
                self.sources.get(source).is_none_or(Window::has_room)
            }
            Blame::Source(_) => self.other_sources.has_room(),
        }
    }

    /// Counts a message that is done. `letter` is what it is blamed on if it is a dead letter.
    ///
    /// A letter that is blamed on its writer is not counted at all. As a good message it would hide
    /// other letters.
    pub(super) fn count(
        &mut self,
        partition: i32,
        source: Option<&str>,
        letter: Option<Blame<'_>>,
    ) {
        if letter == Some(Blame::Writer) {
            return;
        }
        self.lane.push(matches!(letter, Some(Blame::Lane | Blame::Partition)));
        self.partitions.entry(partition).or_default().push(letter == Some(Blame::Partition));
        if let Some(source) = source {
            let is_letter = matches!(letter, Some(Blame::Source(_)));
            self.of_source(source).push(is_letter);
        }
    }

    fn is_counted_apart(&self, source: &str) -> bool {
        self.sources.contains_key(source) || self.sources.len() < MAX_SOURCES
    }

    fn of_source(&mut self, source: &str) -> &mut Window {
        if !self.is_counted_apart(source) {
            return &mut self.other_sources;
        }
        if !self.sources.contains_key(source) {
            self.sources.insert(source.to_owned(), Window::default());
        }
        self.sources.get_mut(source).unwrap_or(&mut self.other_sources)
    }
}

/// The last 1,000 messages. Before there are so many, the missing ones count as good.
#[derive(Debug)]
struct Window {
    /// Whether each of them was a dead letter. A ring buffer.
    last: [bool; WINDOW_MESSAGES],
    /// The index of the oldest message, which the next one replaces.
    next: usize,
    dead_letters: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { last: [false; WINDOW_MESSAGES], next: 0, dead_letters: 0 }
    }
}

impl Window {
    /// Whether the next message may be a dead letter.
    fn has_room(&self) -> bool {
        self.dead_letters - usize::from(self.last[self.next]) < MAX_DEAD_LETTERS
    }

    fn push(&mut self, is_dead_letter: bool) {
        self.dead_letters -= usize::from(self.last[self.next]);
        self.dead_letters += usize::from(is_dead_letter);
        self.last[self.next] = is_dead_letter;
        self.next = (self.next + 1) % WINDOW_MESSAGES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(breaker: &mut Breaker, times: usize, source: &str, letter: Option<Blame<'_>>) {
        for _ in 0..times {
            assert!(letter.is_none_or(|blame| breaker.is_closed(0, blame)));
            breaker.count(0, Some(source), letter);
        }
    }

    #[test]
    fn it_opens_at_the_201st_letter_of_a_new_lane() {
        let mut breaker = Breaker::default();
        count(&mut breaker, 200, "worker", Some(Blame::Lane));
        assert!(!breaker.is_closed(0, Blame::Lane));
    }

    #[test]
    fn a_fifth_may_be_dead_lettered_for_ever() {
        let mut breaker = Breaker::default();
        for _ in 0..1000 {
            count(&mut breaker, 1, "worker", Some(Blame::Lane));
            count(&mut breaker, 4, "worker", None);
        }
        assert!(breaker.is_closed(0, Blame::Lane));
    }

    #[test]
    fn it_closes_when_enough_letters_are_a_thousand_messages_ago() {
        let mut breaker = Breaker::default();
        count(&mut breaker, 100, "worker", Some(Blame::Lane));
        count(&mut breaker, 50, "worker", None);
        count(&mut breaker, 100, "worker", Some(Blame::Lane));
        // The first letter is still among the last 1,000. When it leaves them, there is room for
        // one.
        count(&mut breaker, 749, "worker", None);
        assert!(!breaker.is_closed(0, Blame::Lane));
        count(&mut breaker, 1, "worker", None);
        count(&mut breaker, 100, "worker", Some(Blame::Lane));
        assert!(!breaker.is_closed(0, Blame::Lane));
    }

    #[test]
    fn letters_of_a_source_or_a_partition_leave_the_others_room() {
        let mut breaker = Breaker::default();
        count(&mut breaker, 200, "payments", Some(Blame::Source("payments")));
        for number in 0..400 {
            breaker.count(7, None, (number % 2 == 0).then_some(Blame::Partition));
            for _ in 0..5 {
                breaker.count(0, Some("worker"), None);
            }
        }
        assert!(!breaker.is_closed(0, Blame::Source("payments")));
        assert!(!breaker.is_closed(7, Blame::Partition));
        assert!(breaker.is_closed(0, Blame::Source("worker")));
        assert!(breaker.is_closed(0, Blame::Partition));
        assert!(breaker.is_closed(0, Blame::Lane));
    }

    #[test]
    fn letters_of_many_partitions_are_counted_together_too() {
        let mut breaker = Breaker::default();
        for number in 0..200 {
            breaker.count(number % 10, None, Some(Blame::Partition));
        }
        assert!(!breaker.is_closed(11, Blame::Partition));
    }

    #[test]
    fn letters_of_one_source_among_many_good_messages_of_others_are_seen() {
        let mut breaker = Breaker::default();
        for _ in 0..200 {
            count(&mut breaker, 50, "worker", None);
            count(&mut breaker, 1, "payments", Some(Blame::Source("payments")));
        }
        assert!(!breaker.is_closed(0, Blame::Source("payments")));
    }

    #[test]
    fn letters_blamed_on_their_writer_neither_open_it_nor_hide_others() {
        let mut breaker = Breaker::default();
        count(&mut breaker, 5000, "payments", Some(Blame::Writer));
        for _ in 0..200 {
            count(&mut breaker, 1, "worker", Some(Blame::Lane));
            count(&mut breaker, 100, "payments", Some(Blame::Writer));
        }
        assert!(!breaker.is_closed(0, Blame::Lane));
        assert!(breaker.is_closed(0, Blame::Source("payments")));
    }

    #[test]
    fn sources_beyond_the_64th_are_counted_as_one() {
        let mut breaker = Breaker::default();
        for number in 0..10_000 {
            count(&mut breaker, 1, &number.to_string(), None);
        }
        assert_eq!(breaker.sources.len(), MAX_SOURCES);
        for number in 0..200 {
            let source = format!("other {number}");
            count(&mut breaker, 1, &source, Some(Blame::Source(&source)));
        }
        assert!(!breaker.is_closed(0, Blame::Source("one more")));
        assert!(breaker.is_closed(0, Blame::Source("0")));
    }
}
