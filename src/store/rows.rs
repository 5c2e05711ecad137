//! Domain values ↔ columns and JSON parameters.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Decode, MySql, Row as _, mysql::MySqlRow};

use super::{
    StoreError,
    error::{Conflict, Corrupt},
};
use crate::domain::{Invalid, OrderId, OrderState, ProductId};

/// A table of the order ids of a parameter. (A derived table, since MySQL refuses a locking
/// clause where `JSON_TABLE` stands alone.)
macro_rules! wanted_orders {
    () => {
        "(SELECT UNHEX(hex) AS order_id FROM JSON_TABLE(?, '$[*]' COLUMNS (
            hex VARCHAR(32) CHARACTER SET ascii PATH '$')) AS ids) AS wanted"
    };
}
pub(super) use wanted_orders;

/// A table of the product ids of a parameter. (Its column must have the collation of the stored
/// column, or the server reads every row.)
macro_rules! wanted_products {
    () => {
        "(SELECT product_id FROM JSON_TABLE(?, '$[*]' COLUMNS (
            product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS ids)
            AS wanted"
    };
}
pub(super) use wanted_products;

/// The parameter of a `JSON_TABLE`. Fails with [`StoreError::Unencodable`].
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::Unencodable)
}

/// An order id as `UNHEX` of the statements takes it.
pub(super) fn hex(id: OrderId) -> String {
    id.uuid().simple().to_string()
}

/// A time as `DATETIME(3)` of the statements takes it.
pub(super) fn datetime(time: DateTime<Utc>) -> String {
    time.format("%F %T%.3f").to_string()
}

/// A duration as `INTERVAL ? MICROSECOND` of the statements takes it.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The order ids of a batch, as a parameter.
pub(super) fn order_ids(ids: impl IntoIterator<Item = OrderId>) -> Result<String, StoreError> {
    json(&ids.into_iter().map(hex).collect::<Vec<_>>())
}

/// The product ids of a batch, as a parameter. Their order matters: the server locks rows in the
/// order of the JSON.
pub(super) fn product_ids<'a>(
    ids: impl IntoIterator<Item = &'a ProductId>,
) -> Result<String, StoreError> {
    json(&ids.into_iter().map(ProductId::as_str).collect::<Vec<_>>())
}

/// The order id of a row. Fails with [`StoreError::Corrupt`], as the functions below do.
pub(super) fn order_id(row: &MySqlRow) -> Result<OrderId, StoreError> {
    order_id_of(row, "order_id")
}

/// The order id in a column.
pub(super) fn order_id_of(row: &MySqlRow, column: &'static str) -> Result<OrderId, StoreError> {
    valid(column, OrderId::from_slice(row.try_get(column)?))
}

/// The state of an order's row.
pub(super) fn order_state(row: &MySqlRow) -> Result<OrderState, StoreError> {
    valid("orders.status", OrderState::parse(ascii(row, "status")?))
}

/// The product id of a row.
pub(super) fn product_id(row: &MySqlRow) -> Result<ProductId, StoreError> {
    valid("product_id", ProductId::parse(ascii(row, "product_id")?))
}

fn valid<T>(column: &'static str, parsed: Result<T, Invalid>) -> Result<T, StoreError> {
    parsed.map_err(|source| Corrupt::Value { column, source }.into())
}

/// The text of one of our ASCII columns, such as the name of a state.
pub(super) fn ascii<'r>(row: &'r MySqlRow, column: &str) -> Result<&'r str, sqlx::Error> {
    text(row, column)
}

/// A text, or an optional one, whatever the collation of the column is. (sqlx reads the text of a
/// binary collation as bytes, and a database's default may be a binary collation.)
pub(super) fn text<'r, T: Decode<'r, MySql>>(
    row: &'r MySqlRow,
    column: &str,
) -> Result<T, sqlx::Error> {
    row.try_get_unchecked(column)
}

/// Parses the JSON of a column. Fails with [`StoreError::Corrupt`], which names the column.
pub(super) fn parse_json<T: DeserializeOwned>(
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|source| Corrupt::Json { column, text: text.to_owned(), source }.into())
}

/// Fails with [`StoreError::Conflict`] unless exactly `expected` rows were written. `statement` is
/// a name for the error.
pub(super) fn expect_rows(
    statement: &'static str,
    expected: usize,
    written: u64,
) -> Result<(), StoreError> {
    if u64::try_from(expected).is_ok_and(|expected| expected == written) {
        return Ok(());
    }
    Err(Conflict::RowCount { statement, expected, written }.into())
}
