//! Whether a store can be used, tried as the roles use it and without a change of any row.

use std::time::Duration;

use sqlx::{Executor as _, mysql::MySqlDatabaseError};
use tokio::time::timeout;

use super::{
    Database, OrderStore, StockStore,
    database::STATEMENT_DEADLINE,
    error::raised_by_server,
    session::address,
    tls_advice::{Advised, is_failure_of_tls},
    transaction::TransactionName,
};
use crate::telemetry::Lack;

/// The longest time for the connection that finds the cause of a failure.
const DIAL_DEADLINE: Duration = Duration::from_secs(2);

/// How a role uses a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreUse {
    /// Ingest places orders, changes them on request, and publishes what they owe.
    Place,
    /// The compensator changes orders, and ends holds.
    Compensate,
    /// Ingest reads products, and adjusts them where it has the right to.
    Read,
    /// The worker writes products and outcomes.
    Deduct,
    /// The worker also adjusts stock, as a topic asks for it.
    DeductAndAdjust,
    /// The worker publishes the levels of products.
    PublishLevels,
}

/// The statements of the roles that change orders: ingest on request, and the compensator.
const CHANGE_ORDERS: &str = "
    UPDATE orders SET status = status, reason = reason, updated_at = updated_at,
           is_hold_confirmed = is_hold_confirmed WHERE FALSE;
    INSERT INTO holds (order_id, expires_at) SELECT order_id, expires_at FROM holds WHERE FALSE;
    UPDATE holds SET expires_at = expires_at WHERE FALSE;
    DELETE FROM holds WHERE FALSE;
    INSERT INTO owed_releases (order_id, owed_at, due_at)
        SELECT order_id, owed_at, due_at FROM owed_releases WHERE FALSE;
    UPDATE owed_releases SET sent = sent, due_at = due_at WHERE FALSE;
    UPDATE announcements SET visible_at = visible_at WHERE FALSE;
    INSERT INTO announcements (order_id, status, source, occurred_at, visible_at)
        SELECT order_id, status, source, occurred_at, visible_at FROM announcements WHERE FALSE;
    DELETE FROM announcements WHERE FALSE";

/// The statements of a worker that adjusts stock, beside those that deduct it.
const ADJUST_STOCK: &str = ";
    INSERT INTO stock_movements
        (product_id, kind, quantity, reason, reference, request_id, created_at)
        SELECT product_id, kind, quantity, reason, reference, request_id, created_at
        FROM stock_movements WHERE FALSE;
    INSERT INTO adjustment_requests (request_id, request_sha256, levels, created_at)
        SELECT request_id, request_sha256, levels, created_at
        FROM adjustment_requests WHERE FALSE";

impl StoreUse {
    /// Statements that need the rights of this use and match no row. A server that is read-only, or
    /// lacks a table, a column or a right, refuses them all the same.
    pub(super) fn statements(self) -> String {
        match self {
            Self::Place => {
                "INSERT INTO orders
                     (order_id, reference, customer_id, `lines`, created_at, updated_at,
                      hold_seconds)
                     SELECT order_id, reference, customer_id, `lines`, created_at, updated_at,
                            hold_seconds
                     FROM orders WHERE FALSE;
                 INSERT INTO outbox_groups
                     (group_id, order_ids, orders, created_at, visible_at)
                     SELECT group_id, order_ids, orders, created_at, visible_at
                     FROM outbox_groups WHERE FALSE;
                 UPDATE outbox_groups SET visible_at = visible_at WHERE FALSE;
                 DELETE FROM outbox_groups WHERE FALSE;
                 INSERT INTO idempotency_keys
                     (caller, idempotency_key, request_sha256, order_id, created_at)
                     SELECT caller, idempotency_key, request_sha256, order_id, created_at
                     FROM idempotency_keys WHERE FALSE;
                 DELETE FROM idempotency_keys WHERE FALSE;
                 INSERT INTO unscanned_orders (order_id, created_at)
                     SELECT order_id, created_at FROM unscanned_orders WHERE FALSE;
                 DELETE FROM unscanned_orders WHERE FALSE;
                 UPDATE owed_releases SET due_at = due_at WHERE FALSE;
                 UPDATE announcements SET visible_at = visible_at WHERE FALSE;"
                    .to_owned()
                    + CHANGE_ORDERS
            }
            Self::Compensate => CHANGE_ORDERS.to_owned() + ";DELETE FROM owed_releases WHERE FALSE",
            Self::Read => {
                "SELECT product_id, name, available, version FROM products WHERE FALSE".to_owned()
            }
            Self::DeductAndAdjust => Self::Deduct.statements() + ADJUST_STOCK,
            Self::Deduct => {
                "UPDATE products SET available = available, version = version WHERE FALSE;
                 INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at)
                     SELECT order_id, outcome, reason, `lines`, decided_at
                     FROM order_outcomes WHERE FALSE;
                 UPDATE order_outcomes SET outcome = outcome, released_at = released_at WHERE FALSE"
                    .to_owned()
            }
            Self::PublishLevels => "INSERT INTO level_notes (product_id, note_id)
                     SELECT product_id, note_id FROM level_notes WHERE FALSE;
                 UPDATE level_notes SET note_id = note_id WHERE FALSE;
                 DELETE FROM level_notes WHERE FALSE"
                .to_owned(),
        }
    }

    /// Whether the role deletes old rows of the store.
    pub(super) fn purges(self) -> bool {
        match self {
            Self::Compensate | Self::Deduct | Self::DeductAndAdjust => true,
            Self::Place | Self::Read | Self::PublishLevels => false,
        }
    }

    /// The transactions that a role runs at the store.
    fn transactions(self) -> &'static [TransactionName] {
        use TransactionName::{
            Adjust, ApplyStatuses, ChangeOrders, ClaimAnnouncements, ClaimOutbox, ClaimReleases,
            Decide, EndHolds, ExpireReleases, ForgetAnnouncements, ForgetLevelNotes,
            ForgetPublished, NoteLevels, Place, PurgeMovements, PurgeOrders, PurgeOutcomes,
            ScheduleReleases,
        };
        match self {
            Self::Place => &[
                Place,
                ClaimOutbox,
                ForgetPublished,
                ClaimReleases,
                ScheduleReleases,
                ExpireReleases,
                ChangeOrders,
                ClaimAnnouncements,
                ForgetAnnouncements,
            ],
            Self::Compensate => {
                &[ApplyStatuses, EndHolds, ScheduleReleases, ForgetAnnouncements, PurgeOrders]
            }
            Self::Read => &[Adjust],
            Self::Deduct => &[Decide, PurgeOutcomes, PurgeMovements],
            Self::DeductAndAdjust => &[Decide, PurgeOutcomes, PurgeMovements, Adjust],
            Self::PublishLevels => &[NoteLevels, ForgetLevelNotes],
        }
    }
}

impl OrderStore {
    /// Tries each use of the store, in one round trip that changes nothing.
    ///
    /// Fails with [`Lack`], which says whether the server refused.
    pub(crate) async fn probe(&self, uses: &[StoreUse]) -> Result<(), Lack> {
        probe(&self.db, uses).await
    }

    /// Shows at 0 the metrics of a role that uses the store so.
    pub(crate) fn begin_metrics(&self, store_use: StoreUse) {
        self.db.begin_transactions(store_use.transactions());
    }
}

impl StockStore {
    /// Tries each use of the store, in one round trip that changes nothing.
    ///
    /// Fails with [`Lack`], which says whether the server refused.
    pub(crate) async fn probe(&self, uses: &[StoreUse]) -> Result<(), Lack> {
        probe(&self.db, uses).await
    }

    /// Shows at 0 the metrics of a role that uses the store so.
    pub(crate) fn begin_metrics(&self, store_use: StoreUse) {
        self.db.begin_transactions(store_use.transactions());
    }
}

async fn probe(db: &Database, uses: &[StoreUse]) -> Result<(), Lack> {
    // The role itself has closed it, at its stop.
    if db.sessions().are_closed() {
        return Ok(());
    }
    let Err(failure) = try_uses(db, uses).await else { return Ok(()) };
    let failure = if failure.is_refusal { failure } else { find_cause(db, failure).await };
    let why = format!("{}: {}", address(db.sessions().options()), failure.why);
    Err(Lack { why, is_refusal: failure.is_refusal })
}

/// Why a probe failed.
struct ProbeFailure {
    why: String,
    /// Whether the server refuses the user, the database, or its tables and columns.
    is_refusal: bool,
}

impl ProbeFailure {
    fn outage(error: impl ToString) -> Self {
        Self { why: error.to_string(), is_refusal: false }
    }

    /// Errors of the SQLSTATE classes 28 and 42 are refusals, and failures of TLS are.
    fn of_statement(error: &sqlx::Error) -> Self {
        let raised = raised_by_server(error);
        let state = raised.and_then(MySqlDatabaseError::code).unwrap_or_default();
        let is_refusal =
            state.starts_with("28") || state.starts_with("42") || is_failure_of_tls(error);
        Self { why: Advised(error).to_string(), is_refusal }
    }
}

/// Fails with the error of the connection or of a statement. The session of a failed statement is
/// closed: so the next attempt dials again, and finds a server that took over.
async fn try_uses(db: &Database, uses: &[StoreUse]) -> Result<(), ProbeFailure> {
    let mut in_use = db.acquire().await.map_err(ProbeFailure::outage)?;
    let statements = uses.iter().map(|each| each.statements()).collect::<Vec<_>>().join(";");
    let tried = timeout(STATEMENT_DEADLINE, in_use.conn().execute(&*statements)).await;
    match tried {
        Ok(Ok(_)) => in_use.end(Ok(())).map_err(ProbeFailure::outage),
        Ok(Err(error)) => Err(ProbeFailure::of_statement(&error)),
        Err(_) => Err(ProbeFailure::outage(in_use.give_up(STATEMENT_DEADLINE))),
    }
}

/// Opens a session beside the pool, which shows whether the server refuses the user or the
/// database. Returns `pooled` if it does not, or if all places of the pool are taken.
async fn find_cause(db: &Database, pooled: ProbeFailure) -> ProbeFailure {
    if db.sessions().are_all_in_use() {
        return pooled;
    }
    match timeout(DIAL_DEADLINE, db.sessions().dial_plainly()).await {
        Ok(Ok(dialled)) => {
            let _closed = timeout(DIAL_DEADLINE, sqlx::Connection::close(dialled)).await;
            pooled
        }
        Ok(Err(error)) => ProbeFailure::of_statement(&error),
        Err(_) => {
            ProbeFailure::outage(format!("no answer to a new connection within {DIAL_DEADLINE:?}"))
        }
    }
}
