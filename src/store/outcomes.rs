//! The ledger of orders: the outcome of each decided order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    StoreError,
    error::{Conflict, Corrupt},
    retention::purged_below,
    rows::{ascii, expect_rows, hex, json, order_id, order_ids, parse_json, text, wanted_orders},
};
use crate::domain::{
    Demand, OrderId, Reason,
    fold::{Outcome, Recorded},
};

/// Takes no locks. The stock is read before, so this sees the outcomes of each rival that had those
/// rows locked before us.
pub(super) const READ: &str = concat!(
    "SELECT o.order_id, o.outcome, o.reason, o.`lines`, o.decided_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN order_outcomes AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

/// A plain insert. If the row exists, a rival has decided the order, and the insert must fail.
///
/// `head` is the id in hex, and behind it the outcome. A value of the JSON costs the server as much
/// as a column, so a row has few of them.
const INSERT: &str = "
    INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at)
    SELECT UNHEX(LEFT(head, 32)), SUBSTR(head, 33), reason, `lines`, ?
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        head    VARCHAR(48) CHARACTER SET ascii PATH '$[0]',
        `lines` TEXT CHARACTER SET ascii PATH '$[1]',
        reason  VARCHAR(64) CHARACTER SET ascii PATH '$[2]')) AS decided";

/// A row of [`INSERT`]. What a row lacks is NULL.
#[derive(Serialize)]
#[serde(untagged)]
enum OutcomeRow<'a> {
    Plain(String, String),
    Failed(String, String, &'a str),
}

impl<'a> OutcomeRow<'a> {
    fn of(id: OrderId, outcome: &'a Outcome) -> Result<Self, StoreError> {
        let head = |name| hex(id) + name;
        Ok(match outcome {
            Outcome::Completed(demand) => Self::Plain(head("COMPLETED"), json(demand)?),
            Outcome::Released(demand) => Self::Plain(head("RELEASED"), json(demand)?),
            Outcome::Failed(reason) => {
                Self::Failed(head("FAILED"), json(&Demand::default())?, reason.as_str())
            }
        })
    }
}

const RELEASE: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (order_id VARCHAR(32) CHARACTER SET ascii PATH '$'))
        AS released
    STRAIGHT_JOIN order_outcomes AS o FORCE INDEX (PRIMARY)
        ON o.order_id = UNHEX(released.order_id) AND o.outcome = 'COMPLETED'
    SET o.outcome = 'RELEASED', o.released_at = ?";

pub(super) async fn read(
    conn: &mut MySqlConnection,
    ids: impl IntoIterator<Item = OrderId>,
) -> Result<HashMap<OrderId, Recorded>, StoreError> {
    let rows = sqlx::query(READ).bind(order_ids(ids)?).fetch_all(conn).await?;
    let recorded = |row: &MySqlRow| {
        let outcome = outcome(row)?;
        Ok((order_id(row)?, Recorded { outcome, decided_at: row.try_get("decided_at")? }))
    };
    rows.iter().map(recorded).collect()
}

/// The outcome of a row. Fails with [`StoreError::Corrupt`].
pub(super) fn outcome(row: &MySqlRow) -> Result<Outcome, StoreError> {
    let lines = || parse_json("order_outcomes.lines", ascii(row, "lines")?);
    match ascii(row, "outcome")? {
        "COMPLETED" => Ok(Outcome::Completed(lines()?)),
        "RELEASED" => Ok(Outcome::Released(lines()?)),
        "FAILED" => Ok(Outcome::Failed(Reason::parse(
            text::<Option<&str>>(row, "reason")?.unwrap_or_default(),
        ))),
        other => Err(Corrupt::Outcome(other.to_owned()).into()),
    }
}

/// Records outcomes of orders that had none.
///
/// Fails with [`StoreError::Conflict`] if another worker decided one of the orders, or if an
/// earlier outcome of one may have been purged.
pub(super) async fn insert(
    conn: &mut MySqlConnection,
    outcomes: &BTreeMap<OrderId, Outcome>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let Some(oldest) = outcomes.keys().next() else { return Ok(()) };
    let rows = outcomes.iter().map(|(id, outcome)| OutcomeRow::of(*id, outcome));
    let rows = json(&rows.collect::<Result<Vec<_>, StoreError>>()?)?;
    let inserted = sqlx::query(INSERT).bind(now).bind(rows).execute(&mut *conn).await;
    let inserted =
        inserted.map_err(|error| StoreError::from(error).duplicate_as(Conflict::Decided))?;
    expect_rows("outcomes inserted", outcomes.len(), inserted.rows_affected())?;
    // A statement of its own sees a purge that the insert had to wait for.
    if *oldest < purged_below(conn).await? {
        return Err(Conflict::OutcomePurged(*oldest).into());
    }
    Ok(())
}

/// Moves outcomes from `COMPLETED` to `RELEASED`.
///
/// Fails with [`StoreError::Conflict`] unless all of them were `COMPLETED`.
pub(super) async fn release(
    conn: &mut MySqlConnection,
    released: &BTreeSet<OrderId>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if released.is_empty() {
        return Ok(());
    }
    let ids = order_ids(released.iter().copied())?;
    let updated = sqlx::query(RELEASE).bind(ids).bind(now).execute(conn).await?;
    expect_rows("outcomes released", released.len(), updated.rows_affected())
}
