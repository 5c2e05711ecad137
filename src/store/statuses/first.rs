use chrono::{DateTime, Utc};
use sqlx::MySqlConnection;

use crate::{
    domain::{OrderState, OrderStatus, ReportedStatus},
    store::{
        StoreError,
        changes::MovedOrders,
        releases,
        rows::{expect_rows, hex, json, order_ids, wanted_orders},
    },
};

const COMPLETE_PENDING: &str = concat!(
    "UPDATE ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id
    SET o.status = 'COMPLETED', o.updated_at = ?
    WHERE o.status = 'PENDING' AND (o.hold_seconds IS NULL OR o.is_hold_confirmed)",
);

const FAIL_PENDING: &str = "
    UPDATE (SELECT UNHEX(hex) AS order_id, reason FROM JSON_TABLE(?, '$[*]' COLUMNS (
        hex    VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        reason VARCHAR(512) CHARACTER SET utf8mb4 PATH '$[1]')) AS refusals) AS refused
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = refused.order_id
    SET o.status = 'FAILED', o.reason = refused.reason, o.updated_at = ?
    WHERE o.status = 'PENDING'";

/// The orders of a batch of which a worker reports its first decision, or that a release is done.
///
/// They are changed without a read before. The statements move pending orders alone, so another
/// state shows as a row that was not written.
pub(super) struct FirstDecisions {
    completed: OrdersParameter,
    failed: OrdersParameter,
    released: OrdersParameter,
}

/// The parameter of a statement about distinct orders.
struct OrdersParameter {
    /// The number of the orders.
    count: usize,
    text: String,
}

impl FirstDecisions {
    /// Splits a batch, which is in the order of the orders' ids, and returns the other statuses
    /// too. An order belongs to the first decisions if it has only one status, and that is a
    /// worker's `COMPLETED` or `FAILED`, or if it has no status but `RELEASED`.
    pub(super) fn split<'a>(
        statuses: &[&'a OrderStatus],
    ) -> Result<(Self, Vec<&'a OrderStatus>), StoreError> {
        let (mut completed, mut failed) = (Vec::with_capacity(statuses.len()), Vec::new());
        let (mut released, mut others) = (Vec::new(), Vec::new());
        for of_order in statuses.chunk_by(|one, next| one.order_id == next.order_id) {
            let is_released = |status: &&OrderStatus| status.status == ReportedStatus::Released;
            match (of_order, &of_order[0].status) {
                // A worker may repeat this status.
                (_, ReportedStatus::Released) if of_order.iter().all(is_released) => {
                    released.push(of_order[0].order_id);
                }
                ([only], ReportedStatus::Completed) if only.is_from_worker() => {
                    completed.push(only.order_id);
                }
                ([only], ReportedStatus::Failed(reason)) if only.is_from_worker() => {
                    failed.push((hex(only.order_id), reason.as_str()));
                }
                _ => others.extend_from_slice(of_order),
            }
        }
        let first = Self {
            failed: OrdersParameter { count: failed.len(), text: json(&failed)? },
            completed: OrdersParameter { count: completed.len(), text: order_ids(completed)? },
            released: OrdersParameter { count: released.len(), text: order_ids(released)? },
        };
        Ok((first, others))
    }

    /// Fails with [`StoreError::Conflict`] if one of the orders is not pending or not there, or if
    /// a release that is done was not owed.
    pub(super) async fn apply(
        &self,
        conn: &mut MySqlConnection,
        now: DateTime<Utc>,
    ) -> Result<Vec<MovedOrders>, StoreError> {
        let mut moved = Vec::with_capacity(2);
        for (statement, to, parameter) in [
            (COMPLETE_PENDING, OrderState::Completed, &self.completed),
            (FAIL_PENDING, OrderState::Failed, &self.failed),
        ] {
            if parameter.count > 0 {
                let moving = sqlx::query(statement).bind(&parameter.text).bind(now);
                let written = moving.execute(&mut *conn).await?.rows_affected();
                expect_rows("pending orders moved", parameter.count, written)?;
                moved.push(MovedOrders { to, count: parameter.count });
            }
        }
        if self.released.count > 0 {
            let ended = releases::end(conn, &self.released.text).await?;
            expect_rows("releases ended", self.released.count, ended)?;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrderId, Reason, WORKER_SOURCE};

    /// How many statuses of a batch are applied without a read before, and after one.
    fn split(reported: &[(OrderId, ReportedStatus, &str)]) -> (usize, usize) {
        let status = |(order_id, status, source): &(OrderId, ReportedStatus, &str)| OrderStatus {
            order_id: *order_id,
            status: status.clone(),
            source: (*source).to_owned(),
            occurred_at: DateTime::UNIX_EPOCH,
            reference: None,
        };
        let statuses: Vec<_> = reported.iter().map(status).collect();
        let mut sorted: Vec<_> = statuses.iter().collect();
        sorted.sort_by_key(|status| status.order_id);
        let (first, others) = FirstDecisions::split(&sorted).unwrap();
        (first.completed.count + first.failed.count + first.released.count, others.len())
    }

    #[test]
    fn only_orders_with_one_first_decision_are_changed_without_a_read() {
        let [one, two, three] = [(); 3].map(|()| OrderId::generate());
        let completed = |id| (id, ReportedStatus::Completed, WORKER_SOURCE);
        let reserved = |id| (id, ReportedStatus::Reserved, WORKER_SOURCE);
        let released = |id| (id, ReportedStatus::Released, WORKER_SOURCE);
        let failed = |id, source| (id, ReportedStatus::Failed(Reason::InsufficientStock), source);
        let by_worker = failed(two, WORKER_SOURCE);

        assert_eq!(split(&[completed(one), by_worker, released(three), released(three)]), (3, 0));
        assert_eq!(split(&[completed(one), released(one), released(two)]), (1, 2));
        assert_eq!(split(&[completed(one), completed(one), released(two)]), (1, 2));
        assert_eq!(split(&[completed(one), failed(two, "payments"), reserved(three)]), (1, 2));
    }
}
