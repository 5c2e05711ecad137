//! Adjustments of stock: each request once, and all of its adjustments or none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

use chrono::{DateTime, SubsecRound as _, Utc};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::{MySqlConnection, Row as _};

use super::{
    StockStore, StoreError, VersionedProduct,
    database::on_connection,
    error::Conflict,
    movements::{Movement, ProductWrite, Versions},
    products::lock_products,
    retention::Purged,
    rows::{ascii, expect_rows, json as parameter, parse_json, product_ids},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{
        ProductId,
        adjustment::{
            Adjustment, AdjustmentRefusal, AdjustmentRequest, Applied, Level, StockChange,
        },
    },
};

/// The form of the text that is digested. Digests of another form may be compared beside these.
const FORM: &str = "stocklock adjustment request 1\n";

/// What became of a request to adjust stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Adjusted {
    /// The levels of its products after it, in the order of its adjustments.
    Done {
        levels: Vec<Level>,
        /// Whether it was done before, and not now.
        is_repeated: bool,
    },
    /// Another request with this id was done before. Nothing was changed.
    OtherContent,
    /// The stock does not allow these adjustments. Nothing was changed, nor recorded.
    Refused(Vec<AdjustmentRefusal>),
}

/// A request that was done before.
struct Recorded {
    sha256: Vec<u8>,
    levels: Vec<Level>,
}

/// What a batch of requests does.
struct Batch<'a> {
    results: Vec<Adjusted>,
    movements: Vec<Movement<'a>>,
    /// The requests that are done now, by their ids: digest and levels.
    done: BTreeMap<&'a str, (&'a [u8; 32], Vec<Level>)>,
}

const READ_REQUESTS: &str = "
    SELECT r.request_id, r.request_sha256, r.levels
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        request_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS wanted
    STRAIGHT_JOIN adjustment_requests AS r FORCE INDEX (PRIMARY)
        ON r.request_id = wanted.request_id";

/// A plain insert. If the row exists, a rival has done the request, and the insert must fail.
const INSERT_REQUESTS: &str = "
    INSERT INTO adjustment_requests (request_id, request_sha256, levels, created_at)
    SELECT request_id, UNHEX(sha256), levels, ?
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        request_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        sha256     VARCHAR(64) CHARACTER SET ascii PATH '$[1]',
        levels     MEDIUMTEXT CHARACTER SET ascii PATH '$[2]')) AS done";

const PURGE_REQUESTS: &str =
    "DELETE FROM adjustment_requests WHERE created_at < ? ORDER BY created_at LIMIT ?";

impl StockStore {
    /// Does requests in one transaction, one after the other. A refused request changes nothing,
    /// and does not bind its id: it may be sent again.
    ///
    /// The rows of all products are locked in key order, as workers lock them. So a rival that does
    /// one of the requests has ended before the requests are read. A worker without row locks finds
    /// another version of the product than it read, and decides again.
    ///
    /// Fails with [`StoreError::Refused`] if the server refuses a value, and with the errors of a
    /// transaction. It may be repeated: no request is done twice.
    pub(crate) async fn adjust(
        &self,
        requests: &[&AdjustmentRequest],
        now: DateTime<Utc>,
    ) -> Result<Vec<Adjusted>, StoreError> {
        let now = now.trunc_subsecs(3);
        let digests: Vec<_> = requests.iter().map(|request| digest(request)).collect();
        let ids: BTreeSet<_> =
            requests.iter().flat_map(|r| r.adjustments()).map(|a| &a.product_id).collect();
        let keys = product_ids(ids)?;
        let request_ids: BTreeSet<_> = requests.iter().map(|r| r.request_id()).collect();
        let request_ids = parameter(&request_ids)?;
        transaction!(self.db, Adjust, |conn, _| {
            let products = lock_products(conn, &keys).await?;
            let recorded = read_requests(conn, &request_ids).await?;
            let mut stock: BTreeMap<_, _> = products.iter().map(level).collect();
            let batch = fold(requests, &digests, &recorded, &mut stock);
            let writes = writes(&products, &stock);
            self.write_changes(conn, &writes, &batch.movements, now).await?;
            insert_requests(conn, &batch, now).await?;
            crash_point("adjust.written");
            Ok(batch.results)
        })
    }

    /// What a request would do now. Nothing is locked, and nothing is written.
    ///
    /// Fails with the errors of a statement.
    pub(crate) async fn preview_adjustment(
        &self,
        request: &AdjustmentRequest,
    ) -> Result<Adjusted, StoreError> {
        let request_ids = parameter(&[request.request_id()])?;
        let recorded = on_connection!(self.db, |conn| read_requests(conn, &request_ids).await)?;
        let ids = request.adjustments().iter().map(|adjustment| &adjustment.product_id);
        let products = self.find_versioned(ids.collect()).await?;
        let mut stock: BTreeMap<_, _> = products.iter().map(level).collect();
        let digests = [digest(request)];
        let batch = fold(&[request], &digests, &recorded, &mut stock);
        Ok(batch.results.into_iter().next().unwrap_or(Adjusted::OtherContent))
    }

    /// Deletes up to `limit` of the oldest requests that were done before `before`.
    ///
    /// Fails with the errors of a statement.
    pub(crate) async fn purge_adjustment_requests(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Purged, StoreError> {
        let query = sqlx::query(PURGE_REQUESTS).bind(before).bind(limit);
        let rows = on_connection!(self.db, |conn| query.execute(conn).await)?.rows_affected();
        Ok(Purged::Done { rows, has_more: rows == u64::from(limit) })
    }
}

/// Applies the requests to `stock`, one after the other.
fn fold<'a>(
    requests: &[&'a AdjustmentRequest],
    digests: &'a [[u8; 32]],
    recorded: &HashMap<String, Recorded>,
    stock: &mut BTreeMap<ProductId, Level>,
) -> Batch<'a> {
    let mut batch = Batch { results: Vec::new(), movements: Vec::new(), done: BTreeMap::new() };
    for (request, digest) in requests.iter().zip(digests) {
        let id = request.request_id();
        let now = batch.done.get(id).map(|(sha256, levels)| (&sha256[..], levels));
        let before = recorded.get(id).map(|known| (&known.sha256[..], &known.levels));
        let result = match now.or(before) {
            Some((sha256, levels)) if *sha256 == *digest => {
                Adjusted::Done { levels: levels.clone(), is_repeated: true }
            }
            Some(_) => Adjusted::OtherContent,
            None => match request.apply(stock) {
                Err(refusals) => Adjusted::Refused(refusals),
                Ok(applied) => {
                    batch.movements.extend(movements(request, &applied));
                    let levels: Vec<_> = applied.iter().map(|applied| applied.level).collect();
                    batch.done.insert(id, (digest, levels.clone()));
                    Adjusted::Done { levels, is_repeated: false }
                }
            },
        };
        batch.results.push(result);
    }
    batch
}

fn movements<'a>(
    request: &'a AdjustmentRequest,
    applied: &[Applied],
) -> impl Iterator<Item = Movement<'a>> {
    let adjusted = request.adjustments().iter().zip(applied);
    adjusted.map(|(adjustment, applied)| Movement {
        product_id: adjustment.product_id.as_str(),
        kind: "ADJUST",
        quantity: applied.units,
        reason: Some(&adjustment.reason),
        reference: adjustment.reference.as_deref(),
        request_id: Some(request.request_id()),
    })
}

/// The products that have another version than the one read.
fn writes<'a>(
    products: &'a [VersionedProduct],
    stock: &BTreeMap<ProductId, Level>,
) -> Vec<ProductWrite<'a>> {
    let write = |read: &'a VersionedProduct| {
        let level = stock.get(&read.product.id).filter(|level| level.version != read.version)?;
        Some(ProductWrite {
            id: &read.product.id,
            name: &read.product.name,
            available: level.available,
            versions: Versions::Raised { from: read.version, to: level.version },
        })
    };
    products.iter().filter_map(write).collect()
}

fn level(read: &VersionedProduct) -> (ProductId, Level) {
    let level = Level { available: read.product.available, version: read.version };
    (read.product.id.clone(), level)
}

async fn read_requests(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<HashMap<String, Recorded>, StoreError> {
    let rows = sqlx::query(READ_REQUESTS).bind(ids).fetch_all(conn).await?;
    let recorded = |row| {
        let text = ascii(row, "levels")?;
        let levels: Vec<(i64, i64)> = parse_json("adjustment_requests.levels", text)?;
        let levels = levels.into_iter().map(|(available, version)| Level { available, version });
        let sha256 = row.try_get("request_sha256")?;
        Ok((ascii(row, "request_id")?.to_owned(), Recorded { sha256, levels: levels.collect() }))
    };
    rows.iter().map(recorded).collect()
}

/// Records the requests that are done, in the order of their ids: all transactions lock these rows
/// in the same order.
///
/// Fails with [`StoreError::Conflict`] if a rival has done one of them.
async fn insert_requests(
    conn: &mut MySqlConnection,
    batch: &Batch<'_>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if batch.done.is_empty() {
        return Ok(());
    }
    let rows = batch.done.iter().map(|(id, (sha256, levels))| {
        let levels: Vec<_> = levels.iter().map(|level| (level.available, level.version)).collect();
        Ok((id, hex(sha256), parameter(&levels)?))
    });
    let rows = parameter(&rows.collect::<Result<Vec<_>, StoreError>>()?)?;
    let inserted = sqlx::query(INSERT_REQUESTS).bind(now).bind(rows).execute(conn).await;
    let inserted =
        inserted.map_err(|error| StoreError::from(error).duplicate_as(Conflict::Adjusted))?;
    expect_rows("requests inserted", batch.done.len(), inserted.rows_affected())
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _always_fits = write!(hex, "{byte:02x}");
        hex
    })
}

/// The digest of what a request asks for. The order of the adjustments counts, since the answer has
/// it; the order of fields and the white space of the request do not.
fn digest(request: &AdjustmentRequest) -> [u8; 32] {
    let content = request.adjustments().iter().map(|adjustment| {
        let (delta, set) = match adjustment.change {
            StockChange::Delta(delta) => (Some(delta), None),
            StockChange::Set(set) => (None, Some(set)),
        };
        let Adjustment { product_id, if_version, reason, reference, .. } = adjustment;
        json!([product_id.as_str(), delta, set, if_version, reason, reference])
    });
    let content = content.collect::<serde_json::Value>();
    Sha256::new().chain_update(FORM).chain_update(content.to_string()).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str, adjustment: Adjustment) -> AdjustmentRequest {
        AdjustmentRequest::new(id.to_owned(), vec![adjustment]).unwrap()
    }

    fn adjustment() -> Adjustment {
        Adjustment {
            product_id: ProductId::parse("sku-1").unwrap(),
            change: StockChange::Delta(2),
            if_version: None,
            reason: "count".to_owned(),
            reference: None,
        }
    }

    /// Stored digests must stay comparable.
    #[test]
    fn the_digest_of_a_request_does_not_change_with_the_version() {
        let text = "stocklock adjustment request 1\n[[\"sku-1\",2,null,null,\"count\",null]]";

        let digest = digest(&request("r", adjustment()));

        assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(text)));
    }

    #[test]
    fn each_part_of_an_adjustment_is_in_the_digest() {
        let text = || "x".to_owned();
        let parts = [
            adjustment(),
            Adjustment { product_id: ProductId::parse("sku-2").unwrap(), ..adjustment() },
            Adjustment { change: StockChange::Delta(3), ..adjustment() },
            Adjustment { change: StockChange::Set(2), ..adjustment() },
            Adjustment { if_version: Some(2), ..adjustment() },
            Adjustment { reason: text(), ..adjustment() },
            Adjustment { reference: Some(text()), ..adjustment() },
        ];

        let digests: BTreeSet<_> =
            parts.iter().map(|part| digest(&request("r", part.clone()))).collect();

        assert_eq!(digests.len(), parts.len());
    }

    #[test]
    fn a_request_is_done_once_within_a_batch() {
        let (first, other) = (
            request("r", adjustment()),
            Adjustment { change: StockChange::Delta(7), ..adjustment() },
        );
        let other = request("r", other);
        let requests = [&first, &first, &other];
        let digests: Vec<_> = requests.iter().map(|request| digest(request)).collect();
        let mut stock =
            BTreeMap::from([(adjustment().product_id, Level { available: 1, version: 1 })]);

        let batch = fold(&requests, &digests, &HashMap::new(), &mut stock);

        let levels = vec![Level { available: 3, version: 2 }];
        let done = |is_repeated| Adjusted::Done { levels: levels.clone(), is_repeated };
        assert_eq!(batch.results, [done(false), done(true), Adjusted::OtherContent]);
        assert_eq!((batch.movements.len(), batch.done.len()), (1, 1));
    }
}
