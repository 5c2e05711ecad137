//! Domain values ↔ columns and JSON parameters.

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Decode, MySql, Row as _, mysql::MySqlRow};

use super::StoreError;
use crate::domain::{Invalid, OrderId, ProductId};

/// A table of the order ids of a parameter. (A derived table: MySQL refuses a locking clause where `JSON_TABLE` stands alone.)
macro_rules! wanted_orders {
    () => {
        "(SELECT UNHEX(hex) AS order_id FROM JSON_TABLE(?, '$[*]' COLUMNS (
            hex VARCHAR(32) CHARACTER SET ascii PATH '$')) AS ids) AS wanted"
    };
}
pub(super) use wanted_orders;

/// A table of the product ids of a parameter. (Its column must have the collation of the table's, or every row is read.)
macro_rules! wanted_products {
    () => {
        "(SELECT product_id FROM JSON_TABLE(?, '$[*]' COLUMNS (
            product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS ids) AS wanted"
    };
}
pub(super) use wanted_products;

/// The parameter of a `JSON_TABLE`.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|e| StoreError::Refused(format!("does not serialize: {e}")))
}

/// An order id as the statements' `UNHEX` takes it.
pub(super) fn hex(id: OrderId) -> String {
    id.uuid().simple().to_string()
}

/// The order ids of a batch, as a parameter.
pub(super) fn order_ids(ids: impl IntoIterator<Item = OrderId>) -> Result<String, StoreError> {
    json(&ids.into_iter().map(hex).collect::<Vec<_>>())
}

/// The product ids of a batch, as a parameter: in their order, since rows are locked in the order of the JSON.
pub(super) fn product_ids<'a>(
    ids: impl IntoIterator<Item = &'a ProductId>,
) -> Result<String, StoreError> {
    json(&ids.into_iter().map(ProductId::as_str).collect::<Vec<_>>())
}

/// The order id of a row.
pub(super) fn order_id(row: &MySqlRow) -> Result<OrderId, StoreError> {
    Ok(OrderId::from_slice(row.try_get("order_id")?)?)
}

/// The text of a column of ours that is ASCII, a name of a state among them.
pub(super) fn ascii<'r>(row: &'r MySqlRow, column: &str) -> Result<&'r str, sqlx::Error> {
    text(row, column)
}

/// A text, or an optional one, whatever the column's collation: sqlx takes the text of a binary
/// collation for bytes, and a database's default may be one.
pub(super) fn text<'r, T: Decode<'r, MySql>>(
    row: &'r MySqlRow,
    column: &str,
) -> Result<T, sqlx::Error> {
    row.try_get_unchecked(column)
}

pub(super) fn parse_json<T: DeserializeOwned>(column: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::Damaged(format!("{column}: {e}: {text:.200}")))
}

/// Where as many rows were written as were meant, fine; a conflict else.
pub(super) fn expect_rows(what: &str, meant: usize, written: u64) -> Result<(), StoreError> {
    if u64::try_from(meant).is_ok_and(|meant| meant == written) {
        return Ok(());
    }
    Err(StoreError::Conflict(format!("{what}: {meant} rows meant, {written} written")))
}

impl From<Invalid> for StoreError {
    fn from(error: Invalid) -> Self {
        Self::Damaged(error.to_string())
    }
}
