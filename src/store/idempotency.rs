//! The orders that idempotency keys stand for. A key is written in the transaction of its order.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
};

use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    database::on_connection,
    orders::{OrderSummary, summary},
    placement::{Identity, Placement},
    rows::{ascii, datetime, hex, json, text},
};

/// The key that a caller gave to a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey {
    /// Empty if the caller is not authenticated.
    pub caller: String,
    pub key: String,
}

impl IdempotencyKey {
    /// The same key of a caller without authentication. `None` if that is no key of its own.
    ///
    /// An authenticated caller may have sent its request before authentication was turned on. The
    /// intake, whose name has a colon, never was such a caller.
    fn of_before(&self) -> Option<Self> {
        let may_be = !self.caller.is_empty() && !self.caller.contains(':');
        may_be.then(|| Self { caller: String::new(), key: self.key.clone() })
    }
}

/// A request that has a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedRequest {
    pub key: IdempotencyKey,
    /// The content of the request. Equal requests have equal digests.
    pub sha256: [u8; 32],
}

/// The request and the order that a key stands for.
#[derive(Debug, Clone)]
pub(super) struct BoundKey {
    pub(super) sha256: Vec<u8>,
    pub(super) order: OrderSummary,
}

/// The keys that stand for an order.
pub(super) type BoundKeys = HashMap<IdempotencyKey, BoundKey>;

/// A table of the keys of a parameter, `wanted`, joined to the keys of the store, `k`.
macro_rules! wanted_keys {
    () => {
        "JSON_TABLE(?, '$[*]' COLUMNS (
            caller VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
            idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]'))
            AS wanted
        STRAIGHT_JOIN idempotency_keys AS k FORCE INDEX (PRIMARY)
            ON k.caller = wanted.caller AND k.idempotency_key = wanted.idempotency_key "
    };
}

const FIND: &str = concat!(
    "SELECT k.caller, k.idempotency_key, k.request_sha256, k.order_id, o.status, o.reason,
            h.expires_at
    FROM ",
    wanted_keys!(),
    "LEFT JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = k.order_id
    LEFT JOIN holds AS h FORCE INDEX (PRIMARY)
        ON o.status = 'RESERVED' AND h.order_id = o.order_id",
);

const INSERT: &str = "
    INSERT INTO idempotency_keys (caller, idempotency_key, request_sha256, order_id, created_at)
    SELECT caller, idempotency_key, UNHEX(request_sha256), UNHEX(order_id), created_at
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        caller          VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]',
        request_sha256  VARCHAR(64) CHARACTER SET ascii PATH '$[2]',
        order_id        VARCHAR(32) CHARACTER SET ascii PATH '$[3]',
        created_at      DATETIME(3) PATH '$[4]')) AS bound";

/// Deletes a key only if its order does not exist.
const FREE: &str = concat!(
    "DELETE k FROM ",
    wanted_keys!(),
    "LEFT JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = k.order_id
    WHERE o.order_id IS NULL",
);

/// The keys of placements, with those of before authentication.
fn all_keys<'p>(placements: impl IntoIterator<Item = &'p Placement>) -> BTreeSet<IdempotencyKey> {
    let keys = keyed(placements).into_iter().map(|(request, _)| &request.key);
    keys.flat_map(|key| [Some(key.clone()), key.of_before()]).flatten().collect()
}

/// Keys as a parameter.
fn keys_json(keys: &BTreeSet<IdempotencyKey>) -> Result<String, StoreError> {
    json(&keys.iter().map(|key| (&key.caller, &key.key)).collect::<Vec<_>>())
}

/// The rows of keys as a parameter, sorted: all transactions lock these rows in the same order.
/// `None` if no placement has a key.
///
/// A key is as old as its order, so it is purged no later than its order.
pub(super) fn rows_json<'p>(
    placements: impl IntoIterator<Item = &'p Placement>,
) -> Result<Option<String>, StoreError> {
    let rows = keyed(placements).into_iter().map(|(KeyedRequest { key, sha256 }, placement)| {
        let (order_id, created_at) = (placement.order.order_id, placement.order.accepted_at);
        let sha256 = sha256.iter().fold(String::new(), |mut hex, byte| {
            let _always_fits = write!(hex, "{byte:02x}");
            hex
        });
        (&key.caller, &key.key, sha256, hex(order_id), datetime(created_at))
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() { Ok(None) } else { json(&rows).map(Some) }
}

/// The placements with a key, in the order of their keys.
fn keyed<'p>(
    placements: impl IntoIterator<Item = &'p Placement>,
) -> Vec<(&'p KeyedRequest, &'p Placement)> {
    let keyed = placements.into_iter().filter_map(|placement| match &placement.identity {
        Some(Identity::Key(request)) => Some((&**request, placement)),
        Some(Identity::OrderId) | None => None,
    });
    let mut keyed: Vec<_> = keyed.collect();
    keyed.sort_unstable_by_key(|(request, _)| &request.key);
    keyed
}

/// The keys of placements that stand for an order. Frees those whose orders are purged.
pub(super) async fn find_or_free(
    conn: &mut MySqlConnection,
    placements: &[&Placement],
) -> Result<BoundKeys, StoreError> {
    let keys = keys_json(&all_keys(placements.iter().copied()))?;
    let rows = sqlx::query(FIND).bind(&keys).fetch_all(&mut *conn).await?;
    let bound = bound_keys(&rows)?;
    if bound.len() < rows.len() {
        sqlx::query(FREE).bind(&keys).execute(conn).await?;
    }
    Ok(with_keys_of_before(bound, placements.iter().copied()))
}

/// The keys that stood for an order before authentication was turned on. A caller's own key wins.
/// Costs nothing if no caller is authenticated.
///
/// Nothing is locked: no caller binds a key of before any more, and an own key that a rival binds
/// meanwhile is found by its insert.
pub(super) async fn find_of_before(
    conn: &mut MySqlConnection,
    placements: &[&Placement],
) -> Result<BoundKeys, StoreError> {
    let keys = all_keys(placements.iter().copied());
    let is_authenticated = |key: &IdempotencyKey| key.of_before().is_some();
    if !keys.iter().any(is_authenticated) {
        return Ok(BoundKeys::new());
    }
    let rows = sqlx::query(FIND).bind(keys_json(&keys)?).fetch_all(conn).await?;
    Ok(with_keys_of_before(bound_keys(&rows)?, placements.iter().copied()))
}

/// Adds each key that is bound under its name of before authentication alone.
fn with_keys_of_before<'p>(
    mut bound: BoundKeys,
    placements: impl IntoIterator<Item = &'p Placement>,
) -> BoundKeys {
    for (request, _) in keyed(placements) {
        let before = request.key.of_before();
        if let Some(found) = before.and_then(|before| bound.get(&before).cloned()) {
            bound.entry(request.key.clone()).or_insert(found);
        }
    }
    bound
}

/// Binds keys to their orders. Fails with [`StoreError::Duplicate`] if one of them is bound.
pub(super) async fn insert(conn: &mut MySqlConnection, rows: &str) -> Result<(), StoreError> {
    sqlx::query(INSERT).bind(rows).execute(conn).await?;
    Ok(())
}

impl OrderStore {
    /// The request and the order that the key of a placement stands for.
    pub(super) async fn find_bound(&self, placement: &Placement) -> Result<BoundKeys, StoreError> {
        let query = sqlx::query(FIND).bind(keys_json(&all_keys([placement]))?);
        let bound = bound_keys(&on_connection!(self.db, |conn| query.fetch_all(conn).await)?)?;
        Ok(with_keys_of_before(bound, [placement]))
    }
}

/// The keys of the rows, without those whose orders are purged.
fn bound_keys(rows: &[MySqlRow]) -> Result<BoundKeys, StoreError> {
    let mut bound = BoundKeys::new();
    for row in rows {
        if text::<Option<&str>>(row, "status")?.is_none() {
            continue;
        }
        let (caller, key) = (ascii(row, "caller")?, ascii(row, "idempotency_key")?);
        let key = IdempotencyKey { caller: caller.to_owned(), key: key.to_owned() };
        bound
            .insert(key, BoundKey { sha256: row.try_get("request_sha256")?, order: summary(row)? });
    }
    Ok(bound)
}
