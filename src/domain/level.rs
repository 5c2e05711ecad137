use chrono::{DateTime, Utc};

use super::ProductId;

/// The stock of a product at a version. Of two levels of a product, the higher version is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockLevel {
    pub product_id: ProductId,
    pub available: i64,
    /// Rises with each write of the product.
    pub version: i64,
    /// When the stock was read from the database.
    pub as_of: DateTime<Utc>,
}
