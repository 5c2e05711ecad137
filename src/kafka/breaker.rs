/// How many of a lane's last messages count.
pub(super) const WINDOW: usize = 1000;
/// The most of them that may be set aside: a fifth.
pub(super) const MOST_SET_ASIDE: usize = WINDOW / 5;

/// Tells messages that are bad each by itself from a fault that all of them meet: a breaker that opens where more than 200 of a lane's last
/// 1,000 messages would be set aside. Those that a lane has not seen yet count as good.
#[derive(Debug)]
pub struct Breaker {
    /// Whether each of them was set aside; a ring.
    last: [bool; WINDOW],
    next: usize,
    set_aside: usize,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { last: [false; WINDOW], next: 0, set_aside: 0 }
    }
}

impl Breaker {
    /// Whether the next message may be set aside.
    pub fn is_closed(&self) -> bool {
        self.set_aside - usize::from(self.last[self.next]) < MOST_SET_ASIDE
    }

    /// Counts a message that is done, one way or the other.
    pub fn count(&mut self, set_aside: bool) {
        self.set_aside -= usize::from(self.last[self.next]);
        self.set_aside += usize::from(set_aside);
        self.last[self.next] = set_aside;
        self.next = (self.next + 1) % WINDOW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(breaker: &mut Breaker, times: usize, set_aside: bool) {
        for _ in 0..times {
            assert!(!set_aside || breaker.is_closed());
            breaker.count(set_aside);
        }
    }

    #[test]
    fn it_opens_at_the_201st_letter_of_a_new_lane() {
        let mut breaker = Breaker::default();
        count(&mut breaker, 200, true);
        assert!(!breaker.is_closed());
    }

    #[test]
    fn a_fifth_may_be_set_aside_for_ever() {
        let mut breaker = Breaker::default();
        for _ in 0..1000 {
            count(&mut breaker, 1, true);
            count(&mut breaker, 4, false);
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn it_closes_when_enough_letters_are_a_thousand_messages_ago() {
        let mut breaker = Breaker::default();
        count(&mut breaker, 100, true);
        count(&mut breaker, 50, false);
        count(&mut breaker, 100, true);
        // The first of all is still among the last 1,000, and makes room for one when it leaves them.
        count(&mut breaker, 749, false);
        assert!(!breaker.is_closed());
        count(&mut breaker, 1, false);
        count(&mut breaker, 100, true);
        assert!(!breaker.is_closed());
    }
}
