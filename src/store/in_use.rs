//! A session of the pool while it works.

use std::{sync::Arc, time::Duration};

use sqlx::{Executor as _, MySqlConnection};
use tokio::time::Instant;

use super::{
    StoreError,
    sessions::{Ending, Shared},
};

/// A session at work. Unless its work came to an end, the server ends it when this is dropped: a
/// statement may still run in it, half a transaction or half an answer may be left in it.
#[derive(Debug)]
pub(super) struct InUse {
    held: Option<Ending>,
    shared: Arc<Shared>,
    is_clean: bool,
}

impl InUse {
    pub(super) fn new(held: Ending, shared: Arc<Shared>) -> Self {
        Self { held: Some(held), shared, is_clean: false }
    }

    #[expect(clippy::panic, reason = "it holds its session until it is dropped")]
    pub(super) fn conn(&mut self) -> &mut MySqlConnection {
        match &mut self.held {
            Some(held) => &mut held.session.conn,
            None => panic!("a session is used after its end"),
        }
    }

    /// Ends the work. The session is used again, unless the work failed for a reason that may lie
    /// in the server.
    pub(super) fn end<T>(mut self, worked: Result<T, StoreError>) -> Result<T, StoreError> {
        match &worked {
            Err(StoreError::Unavailable(_) | StoreError::CommitUnknown(_)) => {
                self.shared.distrust();
            }
            _ => self.is_clean = true,
        }
        worked
    }

    /// Gives the work up: the server did not answer in time.
    pub(super) fn give_up(self, limit: Duration) -> String {
        self.shared.distrust();
        format!("{}: no answer within {}", self.shared.name, humantime::format_duration(limit))
    }

    /// Lets one read take as long as it takes. The session is not used again.
    pub(super) async fn without_limit(&mut self) -> Result<(), StoreError> {
        let lift = "SET SESSION sql_auto_is_null = 0 /*!80000 , max_execution_time = 0 */ /*M! , max_statement_time = 0 */";
        self.conn().execute(lift).await?;
        if let Some(held) = &mut self.held {
            held.session.expires_at = Instant::now();
        }
        Ok(())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        if self.is_clean {
            self.shared.give_back(held);
        } else {
            let _no_ender = self.shared.ending.send(held);
        }
    }
}
