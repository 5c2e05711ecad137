use chrono::{DateTime, Utc};
use sqlx::MySqlConnection;

use crate::{
    domain::{OrderState, OrderStatus, Reason, ReportedStatus},
    store::{
        StoreError,
        changes::MovedOrders,
        releases,
        rows::{hex, json, order_ids, wanted_orders},
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
/// They are changed without a read before. The statements change pending orders and owed releases
/// alone, so another state shows as a row that was not written.
pub(super) struct FirstDecisions<'a> {
    completed: Group<'a>,
    failed: Group<'a>,
    released: Group<'a>,
}

/// Statuses of one kind, one of each order, and the parameter of the statement about the orders.
struct Group<'a> {
    statuses: Vec<&'a OrderStatus>,
    parameter: String,
}

/// What became of first decisions.
pub(super) struct AppliedFirst<'a> {
    pub(super) moved: Vec<MovedOrders>,
    /// The statuses of each kind of which some met another state than the usual one.
    pub(super) unusual: Vec<&'a OrderStatus>,
}

impl<'a> FirstDecisions<'a> {
    /// Splits a batch, which is in the order of the orders' ids, and returns the other statuses
    /// too. An order belongs to the first decisions if it has only one status, and that is a
    /// worker's `COMPLETED` or `FAILED`, or if it has no status but `RELEASED`.
    pub(super) fn split(
        statuses: &[&'a OrderStatus],
    ) -> Result<(Self, Vec<&'a OrderStatus>), StoreError> {
        let (mut completed, mut failed) = (Vec::with_capacity(statuses.len()), Vec::new());
        let (mut released, mut others) = (Vec::new(), Vec::new());
        for of_order in statuses.chunk_by(|one, next| one.order_id == next.order_id) {
            let is_released = |status: &&OrderStatus| status.status == ReportedStatus::Released;
            match (of_order, &of_order[0].status) {
                // A worker may repeat this status.
                (_, ReportedStatus::Released) if of_order.iter().all(is_released) => {
                    released.push(of_order[0]);
                }
                ([only], ReportedStatus::Completed) if only.is_from_worker() => {
                    completed.push(*only);
                }
                ([only], ReportedStatus::Failed(_)) if only.is_from_worker() => failed.push(*only),
                _ => others.extend_from_slice(of_order),
            }
        }
        let refusals = failed
            .iter()
            .map(|status| (hex(status.order_id), status.status.reason().map(Reason::as_str)));
        let refusals = json(&refusals.collect::<Vec<_>>())?;
        let first = Self {
            completed: Group::of(completed)?,
            failed: Group { parameter: refusals, statuses: failed },
            released: Group::of(released)?,
        };
        Ok((first, others))
    }

    /// Changes the orders.
    pub(super) async fn apply(
        &self,
        conn: &mut MySqlConnection,
        now: DateTime<Utc>,
    ) -> Result<AppliedFirst<'a>, StoreError> {
        let mut applied = AppliedFirst { moved: Vec::with_capacity(2), unusual: Vec::new() };
        for (statement, to, group) in [
            (COMPLETE_PENDING, OrderState::Completed, &self.completed),
            (FAIL_PENDING, OrderState::Failed, &self.failed),
        ] {
            if !group.statuses.is_empty() {
                let moving = sqlx::query(statement).bind(&group.parameter).bind(now);
                let written = moving.execute(&mut *conn).await?.rows_affected();
                let count = usize::try_from(written).unwrap_or(usize::MAX);
                applied.moved.push(MovedOrders { to, count });
                applied.unusual.extend(group.unless_all(count));
            }
        }
        if !self.released.statuses.is_empty() {
            let ended = releases::end(conn, &self.released.parameter).await?;
            let count = usize::try_from(ended).unwrap_or(usize::MAX);
            applied.unusual.extend(self.released.unless_all(count));
        }
        Ok(applied)
    }
}

impl<'a> Group<'a> {
    fn of(statuses: Vec<&'a OrderStatus>) -> Result<Self, StoreError> {
        let parameter = order_ids(statuses.iter().map(|status| status.order_id))?;
        Ok(Self { statuses, parameter })
    }

    /// The statuses, unless the statement has changed all orders.
    fn unless_all(&self, changed: usize) -> &[&'a OrderStatus] {
        if changed < self.statuses.len() { &self.statuses } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrderId, WORKER_SOURCE};

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
        let groups = [&first.completed, &first.failed, &first.released];
        (groups.map(|group| group.statuses.len()).iter().sum(), others.len())
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
