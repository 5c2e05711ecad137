//! How the orders ended, by the rows of both stores.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, MySqlConnection, Row as _, mysql::MySqlRow};
use stocklock::{commands::bench::Site, domain::OrderId};

use super::clients::{Answers, Told};

const MAX_WRONG_SHOWN: usize = 5;

/// A connection to each store.
pub(super) struct Ends {
    orders: MySqlConnection,
    stock: MySqlConnection,
}

/// What the rows say.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) confirmed: usize,
    pub(super) expired: usize,
    pub(super) earliest_s: f64,
    pub(super) latest_s: f64,
    /// What is not as it should be, the first few.
    pub(super) wrong: Vec<String>,
}

/// An order as its row has it.
struct Order {
    status: String,
    reason: Option<String>,
    hold: Option<TimeDelta>,
    updated_at: DateTime<Utc>,
}

impl Ends {
    pub(super) async fn open(site: &Site) -> anyhow::Result<Self> {
        let connect = |url| MySqlConnection::connect(url);
        Ok(Self {
            orders: connect(site.config.order_store.url.expose()).await?,
            stock: connect(site.config.stock_store.url.expose()).await?,
        })
    }

    /// Orders that are pending or reserved, and holds.
    pub(super) async fn count_open(&mut self) -> sqlx::Result<i64> {
        sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM orders WHERE status IN ('PENDING', 'RESERVED'))
                + (SELECT COUNT(*) FROM holds)",
        )
        .fetch_one(&mut self.orders)
        .await
    }

    /// Compares each order with what its client was told. A hold begins when a worker decides the
    /// order, so the stock store says when it ended.
    pub(super) async fn judge(
        &mut self,
        answers: &Answers,
        late_max: Duration,
    ) -> anyhow::Result<Found> {
        let decided = self.decided_at().await?;
        let (mut found, mut seen, mut lateness) = (Found::default(), HashSet::new(), Vec::new());
        for row in sqlx::query(
            "SELECT order_id, CAST(status AS CHAR) AS status, reason, hold_seconds, updated_at
            FROM orders",
        )
        .fetch_all(&mut self.orders)
        .await?
        {
            let (id, order) = (order_id(&row)?, order(&row)?);
            seen.insert(id);
            let is_expired =
                order.status == "CANCELLED" && order.reason.as_deref() == Some("EXPIRED");
            match answers.told.get(&id) {
                Some(Told::WillComplete) if order.status == "COMPLETED" => {}
                Some(Told::Confirmed) if order.status == "COMPLETED" => found.confirmed += 1,
                Some(Told::Held | Told::TooLate) if is_expired => {
                    let hold = order.hold.context("an order without a hold has expired")?;
                    let began = *decided.get(&id).context("an expired order is not decided")?;
                    found.expired += 1;
                    lateness.push((order.updated_at - began - hold).as_seconds_f64());
                }
                told => found.add(format!("{id}: told {told:?}, found {}", order.status)),
            }
        }
        for id in answers.told.keys().filter(|id| !seen.contains(id)) {
            found.add(format!("{id}: acknowledged, and not in the order store"));
        }
        found.judge_lateness(&lateness, late_max);
        Ok(found)
    }

    async fn decided_at(&mut self) -> anyhow::Result<HashMap<OrderId, DateTime<Utc>>> {
        let rows = sqlx::query("SELECT order_id, decided_at FROM order_outcomes")
            .fetch_all(&mut self.stock)
            .await?;
        rows.iter().map(|row| Ok((order_id(row)?, row.try_get("decided_at")?))).collect()
    }
}

impl Found {
    fn add(&mut self, wrong: String) {
        if self.wrong.len() < MAX_WRONG_SHOWN {
            self.wrong.push(wrong);
        }
    }

    /// `lateness` has the seconds from the end of each expired hold until its order was cancelled.
    fn judge_lateness(&mut self, lateness: &[f64], late_max: Duration) {
        self.earliest_s = lateness.iter().copied().reduce(f64::min).unwrap_or_default();
        self.latest_s = lateness.iter().copied().reduce(f64::max).unwrap_or_default();
        if self.earliest_s < 0.0 {
            self.add(format!("a hold ended {} s too early", -self.earliest_s));
        }
        if self.latest_s > late_max.as_secs_f64() {
            self.add(format!("a hold ended {} s after it was due", self.latest_s));
        }
    }
}

fn order_id(row: &MySqlRow) -> anyhow::Result<OrderId> {
    Ok(uuid::Uuid::from_slice(row.try_get("order_id")?)?.to_string().parse()?)
}

fn order(row: &MySqlRow) -> anyhow::Result<Order> {
    Ok(Order {
        status: row.try_get("status")?,
        reason: row.try_get("reason")?,
        hold: row.try_get::<Option<u32>, _>("hold_seconds")?.map(|s| TimeDelta::seconds(s.into())),
        updated_at: row.try_get("updated_at")?,
    })
}
