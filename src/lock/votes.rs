use std::time::Duration;

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, timeout_at};

/// The least time that masters get after a majority has decided.
const MIN_GRACE: Duration = Duration::from_millis(1);

/// Collects the answers to a question to all masters, in the order of `asked`.
///
/// `vote` says what an answer counts as: yes, no, or `None` for a master that failed. The vote is
/// decided once `needed` masters say yes, or once `needed` masters voted and too few others are
/// open to reach `needed`. From then on the other masters may take as long again, at least
/// [`MIN_GRACE`]. An answer that is still open after that is `None`. So the slowest master never
/// sets the pace.
pub(super) async fn collect_votes<T>(
    asked: impl IntoIterator<Item = impl Future<Output = T>>,
    needed: usize,
    vote: impl Fn(&T) -> Option<bool>,
) -> Vec<Option<T>> {
    let begun = Instant::now();
    let numbered =
        asked.into_iter().enumerate().map(|(number, answer)| async move { (number, answer.await) });
    let mut open: FuturesUnordered<_> = numbered.collect();
    let mut answers: Vec<_> = std::iter::repeat_with(|| None).take(open.len()).collect();
    let (mut yes, mut no) = (0, 0);
    let mut closes_at = None;
    while let Ok(Some((number, answer))) = match closes_at {
        Some(at) => timeout_at(at, open.next()).await,
        None => Ok(open.next().await),
    } {
        match vote(&answer) {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => {}
        }
        answers[number] = Some(answer);
        let is_decided = yes >= needed || (yes + no >= needed && yes + open.len() < needed);
        if is_decided && closes_at.is_none() {
            closes_at = Some(Instant::now() + begun.elapsed().max(MIN_GRACE));
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const YES: Option<bool> = Some(true);
    const NO: Option<bool> = Some(false);
    const FAILED: Option<bool> = None;

    /// The votes of three masters of which two are needed. Each answers after some milliseconds;
    /// `None` never answers.
    async fn collected(votes: [(Option<bool>, Option<u64>); 3]) -> Vec<Option<Option<bool>>> {
        let asked = votes.map(|(vote, after_ms)| async move {
            match after_ms {
                Some(after_ms) => sleep(Duration::from_millis(after_ms)).await,
                None => std::future::pending().await,
            }
            vote
        });
        collect_votes(asked, 2, |vote| *vote).await
    }

    #[tokio::test]
    async fn the_slowest_is_not_waited_for_once_a_majority_has_decided() {
        let granted = collected([(YES, Some(0)), (YES, Some(1)), (YES, None)]).await;
        let refused = collected([(NO, Some(0)), (NO, Some(1)), (YES, None)]).await;

        assert_eq!(granted, [Some(YES), Some(YES), None]);
        assert_eq!(refused, [Some(NO), Some(NO), None]);
    }

    #[tokio::test]
    async fn a_master_that_fails_does_not_count_against_the_others() {
        let refused = collected([(FAILED, Some(0)), (NO, Some(1)), (YES, Some(50))]).await;
        let granted = collected([(FAILED, Some(0)), (YES, Some(1)), (YES, Some(50))]).await;

        assert_eq!(refused, [Some(FAILED), Some(NO), Some(YES)]);
        assert_eq!(granted, [Some(FAILED), Some(YES), Some(YES)]);
    }
}
