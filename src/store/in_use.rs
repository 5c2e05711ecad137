//! A session of the pool while a caller works with it.

use std::{sync::Arc, time::Duration};

use sqlx::{Executor as _, MySqlConnection};
use tokio::time::Instant;

use super::{
    StoreError,
    error::Outage,
    sessions::{PooledSession, SessionPool},
};

/// A session while a caller works with it.
///
/// Unless [`InUse::end`] was called, the server ends the session when this is dropped: a statement
/// may still run in it, or it may hold half a transaction or half an answer.
#[derive(Debug)]
pub(super) struct InUse {
    pooled: Option<PooledSession>,
    pool: Arc<SessionPool>,
    is_reusable: bool,
}

impl InUse {
    pub(super) fn new(pooled: PooledSession, pool: Arc<SessionPool>) -> Self {
        Self { pooled: Some(pooled), pool, is_reusable: false }
    }

    #[expect(clippy::panic, reason = "it holds its session until it is dropped")]
    pub(super) fn conn(&mut self) -> &mut MySqlConnection {
        match &mut self.pooled {
            Some(pooled) => &mut pooled.session.conn,
            None => panic!("a session is used after its end"),
        }
    }

    /// Ends the work, and returns its result. The pool uses the session again, unless the error may
    /// lie in the server.
    pub(super) fn end<T>(self, worked: Result<T, StoreError>) -> Result<T, StoreError> {
        match worked {
            Ok(value) => {
                self.reuse();
                Ok(value)
            }
            Err(error) => Err(self.end_failed(error)),
        }
    }

    /// [`InUse::end`] for work that failed. Returns the error.
    pub(super) fn end_failed(self, error: StoreError) -> StoreError {
        match error {
            StoreError::Unavailable(_) | StoreError::CommitUnknown(_) => self.pool.distrust(),
            _ => self.reuse(),
        }
        error
    }

    /// Gives the work up: the server did not answer within `limit`.
    pub(super) fn give_up(self, limit: Duration) -> Outage {
        self.pool.distrust();
        Outage::NoAnswer { server: self.pool.server.clone(), limit }
    }

    /// Lifts the time limits, for one read of a whole store. The session is not used again.
    ///
    /// Fails with [`StoreError::Unavailable`] if the server does not do so.
    pub(super) async fn without_limit(&mut self) -> Result<(), StoreError> {
        let lift = "SET SESSION sql_auto_is_null = 0 \
                    /*!80000 , max_execution_time = 0 */ /*M! , max_statement_time = 0 */";
        self.conn().execute(lift).await?;
        if let Some(pooled) = &mut self.pooled {
            pooled.session.expires_at = Instant::now();
        }
        Ok(())
    }

    fn reuse(mut self) {
        self.is_reusable = true;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        if self.is_reusable {
            self.pool.put_back(pooled);
        } else {
            self.pool.end_in_server(pooled);
        }
    }
}
