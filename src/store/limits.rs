use std::time::Duration;

/// The longest time for one attempt at a transaction, its commit aside. The server gives a
/// statement outside of transactions as long.
const MAX_WORK: Duration = Duration::from_secs(30);
const MAX_LOCK_WAIT: Duration = Duration::from_secs(5);
/// The longest time for a commit. Replicas and disks have pauses.
const MAX_COMMIT: Duration = Duration::from_secs(5);

/// The time limits of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The server ends a session whose client is silent for as long.
    pub(crate) silence: Duration,
    /// The work of one attempt at a transaction, its commit aside.
    pub(crate) work: Duration,
    /// The commit of one attempt. `work + commit` is at most `silence`.
    pub(crate) commit: Duration,
    /// One wait for a row or a table, in whole seconds.
    lock_wait: Duration,
}

impl Limits {
    /// Limits by which the row locks of a session end within `lock_limit`. It counts in whole
    /// seconds, as the server does, and as 2 s at least.
    pub(super) fn within(lock_limit: Duration) -> Self {
        let silence = Duration::from_secs(lock_limit.as_secs().max(2));
        let commit = (silence * 2 / 5).min(MAX_COMMIT);
        let work = silence.saturating_sub(commit).min(MAX_WORK);
        let lock_wait = Duration::from_secs((work / 2).min(MAX_LOCK_WAIT).as_secs().max(1));
        Self { silence, work, commit, lock_wait }
    }

    /// The statement that a session begins with, whatever the server's defaults are.
    ///
    /// `max_execution_time` bounds reads in MySQL, and `max_statement_time` bounds every
    /// statement in MariaDB. For the other server each is a comment.
    pub(super) fn session(&self) -> String {
        let Self { silence, work, lock_wait, .. } = self;
        let (silence, lock_wait) = (silence.as_secs(), lock_wait.as_secs());
        format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
             SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
             time_zone = '+00:00', autocommit = 1, completion_type = 0, sql_safe_updates = 0, \
             sql_big_selects = 1, sql_select_limit = 18446744073709551615, \
             innodb_lock_wait_timeout = {lock_wait}, lock_wait_timeout = {lock_wait}, \
             net_read_timeout = {silence}, net_write_timeout = {silence}, \
             wait_timeout = {silence} \
             /*!80000 , max_execution_time = {} */ /*M! , max_statement_time = {} */",
            work.as_millis(),
            work.as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_locks_end_within_the_limit_that_the_server_can_count() {
        for seconds in [1, 2, 3, 10, 600] {
            let limits = Limits::within(Duration::from_secs(seconds));

            assert!(limits.work + limits.commit <= Duration::from_secs(seconds.max(2)));
            assert!(limits.lock_wait < limits.work);
        }
    }
}
