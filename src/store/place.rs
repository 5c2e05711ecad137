//! Placing orders: writes those that are new, and recognizes those that were placed before.
//!
//! Most orders are new, so the insert is plain. The primary keys of `orders` and
//! `idempotency_keys` show the others.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};
use tokio::time::Instant;

use super::{
    OrderStore, StoreError,
    database::on_connection,
    deadline::{CommitSent, by_deadline},
    error::Conflict,
    idempotency,
    orders::summary,
    pending,
    placement::{
        Found, Identity, MAX_ID_SKEW, NewOrder, PlaceTerms, Placed, Placement, PresentOrder,
        leaders,
    },
    rows::{ascii, datetime, hex, json, order_ids, text, wanted_orders},
    statuses::lock_states,
    transaction::transaction,
};
use crate::domain::{OrderId, TracedOrders};

/// `head` is the id in hex, and behind it the time. A value of the JSON costs the server as much as
/// a column, so a row has few of them.
const INSERT_ORDERS: &str = "
    INSERT INTO orders
        (order_id, reference, customer_id, `lines`, created_at, updated_at, hold_seconds)
    SELECT UNHEX(LEFT(head, 32)), reference, customer_id, `lines`,
           SUBSTR(head, 33), SUBSTR(head, 33), hold_seconds
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        head         VARCHAR(64) CHARACTER SET ascii PATH '$[0]',
        `lines`      TEXT CHARACTER SET ascii PATH '$[1]',
        reference    VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[2]',
        customer_id  VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[3]',
        hold_seconds INT UNSIGNED PATH '$[4]')) AS placed";

const READ_PRESENT: &str = concat!(
    "SELECT o.order_id, o.status, o.reason, o.reference, o.customer_id, o.`lines`, o.created_at,
            o.hold_seconds, h.expires_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id
    LEFT JOIN holds AS h FORCE INDEX (PRIMARY)
        ON o.status = 'RESERVED' AND h.order_id = o.order_id",
);

impl OrderStore {
    /// Writes orders and their outbox rows in one transaction, all of them or none. The outbox rows
    /// are leased to the caller for `lease`, who publishes them.
    ///
    /// An order that an earlier attempt has written stays as it is: no two orders have one id.
    /// Fails with [`StoreError::CommitUnknown`] if the orders may be written, and with the other
    /// errors of a transaction if they are not.
    pub async fn place(&self, orders: &[NewOrder], lease: Duration) -> Result<(), StoreError> {
        let placement =
            |order: &NewOrder| Placement { order: order.clone(), identity: None, trace: None };
        let placements: Vec<_> = orders.iter().map(placement).collect();
        let terms = PlaceTerms { lease, max_id_skew: MAX_ID_SKEW, is_repeated: false };
        self.place_all(&placements.iter().collect::<Vec<_>>(), terms).await?;
        Ok(())
    }

    /// Places a group in one transaction, all of its new orders or none. Returns what became of
    /// each placement, in their order. Equal placements make one order, also across processes.
    ///
    /// Fails as [`OrderStore::place`] does.
    pub async fn place_all(
        &self,
        group: &[&Placement],
        terms: PlaceTerms,
    ) -> Result<Vec<Placed>, StoreError> {
        self.place_noting(group, terms, &CommitSent::default()).await
    }

    /// [`OrderStore::place_all`] with a deadline, after which no COMMIT is sent. A COMMIT that was
    /// sent before is awaited for 1 s more.
    ///
    /// After the deadline this fails with [`StoreError::Unavailable`] if no COMMIT was sent, and
    /// with [`StoreError::CommitUnknown`] if one was.
    pub(crate) async fn place_by(
        &self,
        group: &[&Placement],
        terms: PlaceTerms,
        deadline: Instant,
    ) -> Result<Vec<Placed>, StoreError> {
        let commit_sent = CommitSent::default();
        let placing = self.place_noting(group, terms, &commit_sent);
        by_deadline(deadline, &commit_sent, placing).await
    }

    /// [`OrderStore::place_all`], which keeps `commit_sent` up to date. After a COMMIT of unknown
    /// outcome it tries once more, and finds what was written.
    async fn place_noting(
        &self,
        group: &[&Placement],
        terms: PlaceTerms,
        commit_sent: &CommitSent,
    ) -> Result<Vec<Placed>, StoreError> {
        let written = self.write_group(group, terms, commit_sent).await;
        let Err(doubt @ StoreError::CommitUnknown(_)) = written else { return written };
        let again = PlaceTerms { is_repeated: true, ..terms };
        self.write_group(group, again, commit_sent).await.map_err(|_| doubt)
    }

    async fn write_group(
        &self,
        group: &[&Placement],
        terms: PlaceTerms,
        commit_sent: &CommitSent,
    ) -> Result<Vec<Placed>, StoreError> {
        let leaders = leaders(group);
        let firsts = group.iter().zip(&leaders).enumerate();
        let firsts: Vec<_> = firsts
            .filter(|(at, (_, leader))| at == *leader)
            .map(|(_, (first, _))| *first)
            .collect();
        let rows = Rows::of(&firsts, terms)?;
        let found = transaction!(self.db, Place, |conn, _| {
            if !terms.is_repeated {
                commit_sent.set(false);
            }
            let found = write_new(conn, &firsts, &rows, terms).await?;
            commit_sent.set(true);
            Ok(found)
        })?;
        let placed = group.iter().zip(leaders).enumerate().map(|(at, (placement, leader))| {
            let leader = group.get(leader).copied().filter(|_| leader != at);
            found.outcome(placement, leader, terms)
        });
        Ok(placed.collect())
    }

    /// What became of the earlier request whose key or id the placement has. `None` if there is
    /// none.
    pub(crate) async fn find_placed(
        &self,
        placement: &Placement,
    ) -> Result<Option<Placed>, StoreError> {
        let keys = self.find_bound(placement).await?;
        let mut orders = HashMap::new();
        if placement.identity == Some(Identity::OrderId) {
            let query = sqlx::query(READ_PRESENT).bind(order_ids([placement.order.order_id])?);
            let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
            orders = present_orders(&rows)?;
        }
        let found = Found { keys, orders };
        let terms =
            PlaceTerms { lease: Duration::ZERO, max_id_skew: MAX_ID_SKEW, is_repeated: false };
        Ok(match found.outcome(placement, None, terms) {
            Placed::New => None,
            known @ (Placed::Replayed(_) | Placed::OtherRequest) => Some(known),
        })
    }
}

/// A row of [`INSERT_ORDERS`]. What a row lacks is NULL.
#[derive(Serialize)]
#[serde(untagged)]
enum OrderRow<'a> {
    Plain(String, String),
    Full(String, String, Option<&'a str>, Option<&'a str>, Option<u32>),
}

impl<'a> OrderRow<'a> {
    fn of(order: &'a NewOrder) -> Result<Self, StoreError> {
        let head = hex(order.order_id) + &datetime(order.accepted_at);
        let lines = json(&order.lines)?;
        let NewOrder { reference, customer_id, hold_seconds, .. } = order;
        Ok(match (reference.as_deref(), customer_id.as_deref(), *hold_seconds) {
            (None, None, None) => Self::Plain(head, lines),
            (reference, customer_id, hold) => Self::Full(head, lines, reference, customer_id, hold),
        })
    }
}

/// The rows of new orders, as the parameters of their statements.
struct Rows {
    orders: String,
    ids: Vec<OrderId>,
    keys: Option<String>,
    unscanned: Option<String>,
    /// The traces of those that are sampled.
    traces: Option<String>,
    lease: Duration,
}

impl Rows {
    fn of(placements: &[&Placement], terms: PlaceTerms) -> Result<Self, StoreError> {
        let mut orders: Vec<_> = placements.iter().map(|placement| &placement.order).collect();
        // All transactions lock orders in this order.
        orders.sort_unstable_by_key(|order| order.order_id);
        let rows = orders.iter().map(|order| OrderRow::of(order));
        let mut traced = TracedOrders::default();
        for placement in placements {
            if let Some(context) = &placement.trace {
                traced.insert(placement.order.order_id, (**context).clone());
            }
        }
        let unscanned = orders.iter().filter(|order| order.is_unscanned(terms.max_id_skew));
        let unscanned: Vec<_> =
            unscanned.map(|order| (hex(order.order_id), datetime(order.accepted_at))).collect();
        Ok(Self {
            orders: json(&rows.collect::<Result<Vec<_>, StoreError>>()?)?,
            ids: orders.iter().map(|order| order.order_id).collect(),
            keys: idempotency::rows_json(placements.iter().copied())?,
            unscanned: if unscanned.is_empty() { None } else { Some(json(&unscanned)?) },
            traces: traced.to_text(),
            lease: terms.lease,
        })
    }

    async fn insert_keys(&self, conn: &mut MySqlConnection) -> Result<(), StoreError> {
        match &self.keys {
            Some(keys) => idempotency::insert(conn, keys).await,
            None => Ok(()),
        }
    }

    async fn insert_orders(&self, conn: &mut MySqlConnection) -> Result<(), StoreError> {
        sqlx::query(INSERT_ORDERS).bind(&self.orders).execute(conn).await?;
        Ok(())
    }

    async fn insert_others(&self, conn: &mut MySqlConnection) -> Result<(), StoreError> {
        super::outbox::insert(conn, &self.ids, self.traces.as_deref(), self.lease).await?;
        if let Some(unscanned) = &self.unscanned {
            pending::insert_unscanned(conn, unscanned).await?;
        }
        Ok(())
    }
}

/// Writes the orders of the placements that the store does not have. `rows` are those of all
/// placements. All transactions write keys before orders.
///
/// Fails with [`StoreError::Conflict`] if another transaction writes one of them at the same time.
async fn write_new(
    conn: &mut MySqlConnection,
    placements: &[&Placement],
    mut rows: &Rows,
    terms: PlaceTerms,
) -> Result<Found, StoreError> {
    let keys = idempotency::find_of_before(conn, placements).await?;
    let mut found = Found { keys, ..Found::default() };
    let unknown = |found: &Found| -> Vec<&Placement> {
        placements.iter().copied().filter(|placement| !found.has(placement)).collect()
    };
    let (unplaced, unbound);
    if !found.keys.is_empty() {
        unplaced = Rows::of(&unknown(&found), terms)?;
        rows = &unplaced;
    }
    match rows.insert_keys(conn).await {
        Err(StoreError::Duplicate(_)) => {
            found.keys = idempotency::find_or_free(conn, placements).await?;
            unbound = Rows::of(&unknown(&found), terms)?;
            rows = &unbound;
            let inserted = rows.insert_keys(conn).await;
            inserted.map_err(|error| error.duplicate_as(Conflict::Bound))?;
        }
        inserted => inserted?,
    }
    match rows.insert_orders(conn).await {
        Err(StoreError::Duplicate(_)) => {}
        inserted => {
            inserted?;
            rows.insert_others(conn).await?;
            return Ok(found);
        }
    }
    // The locks wait for the transactions that write these orders.
    let ids = order_ids(rows.ids.iter().copied())?;
    lock_states(conn, &ids).await?;
    let present = sqlx::query(READ_PRESENT).bind(&ids).fetch_all(&mut *conn).await?;
    found.orders = present_orders(&present)?;
    let new = Rows::of(&unknown(&found), terms)?;
    new.insert_orders(conn).await.map_err(|error| error.duplicate_as(Conflict::Placed))?;
    new.insert_others(conn).await?;
    Ok(found)
}

fn present_orders(rows: &[MySqlRow]) -> Result<HashMap<OrderId, PresentOrder>, StoreError> {
    let present = |row: &MySqlRow| {
        let present = PresentOrder {
            summary: summary(row)?,
            reference: text(row, "reference")?,
            customer_id: text(row, "customer_id")?,
            hold_seconds: row.try_get("hold_seconds")?,
            lines: ascii(row, "lines")?.to_owned(),
            accepted_at: row.try_get("created_at")?,
        };
        Ok((present.summary.order_id, present))
    };
    rows.iter().map(present).collect()
}
