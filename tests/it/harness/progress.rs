//! Waiting for what the roles of a world have done.

use super::{World, wait_for};

impl World {
    /// Waits until exactly so many orders are completed.
    pub(crate) async fn completed(&self, orders: i64) {
        wait_for(async || match self.count_orders("COMPLETED").await {
            completed if completed == orders => Ok(()),
            completed => Err(format!("{completed} orders are completed, not {orders}")),
        })
        .await;
    }

    /// Waits until exactly so many units of each product are available.
    pub(crate) async fn has_available(&self, stock: &[(&str, i64)]) {
        wait_for(async || {
            let found: Vec<_> = stock.iter().map(|(id, _)| (*id, self.available(id))).collect();
            if found == stock { Ok(()) } else { Err(format!("{found:?} available, not {stock:?}")) }
        })
        .await;
    }
}
