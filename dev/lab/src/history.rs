//! Orders that are in the stores before a run begins: refused ones, and ones that hold their stock.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, MySqlConnection, QueryBuilder};
use stocklock::{commands::bench::Site, domain::OrderId};

/// Rows of an INSERT.
const MAX_ROWS: usize = 10_000;

/// Adds `count` refused orders of the past to both stores, one a millisecond until now.
pub(crate) async fn add_refused(site: &Site, count: u32) -> anyhow::Result<()> {
    let now = Utc::now();
    let mut orders = MySqlConnection::connect(site.config.order_store.url.expose()).await?;
    let mut stock = MySqlConnection::connect(site.config.stock_store.url.expose()).await?;
    for chunk in ids_until(now, count).chunks(MAX_ROWS) {
        tokio::try_join!(
            add_refused_orders(&mut orders, chunk, now),
            add_refusals(&mut stock, chunk, now)
        )?;
    }
    Ok(())
}

/// Adds `count` orders that hold a unit of a product of their own each, and end in a day. Their ids
/// are those of one order a millisecond until now.
pub(crate) async fn add_open_holds(site: &Site, count: u32) -> anyhow::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let now = Utc::now();
    let mut orders = MySqlConnection::connect(site.config.order_store.url.expose()).await?;
    let mut stock = MySqlConnection::connect(site.config.stock_store.url.expose()).await?;
    add_held_product(&mut stock, count, now).await?;
    for chunk in ids_until(now, count).chunks(MAX_ROWS) {
        let orders = async {
            add_reserved(&mut orders, chunk, now).await?;
            add_holds(&mut orders, chunk, now + TimeDelta::days(1)).await
        };
        tokio::try_join!(orders, add_held_outcomes(&mut stock, chunk, now))?;
    }
    Ok(())
}

/// Ids of orders, one a millisecond until `now`.
fn ids_until(now: DateTime<Utc>, count: u32) -> Vec<OrderId> {
    let ages = (1..=count).rev().map(|age| TimeDelta::milliseconds(age.into()));
    ages.map(|age| OrderId::first_of(now - age)).collect()
}

/// A product whose units are all held.
async fn add_held_product(
    conn: &mut MySqlConnection,
    units: u32,
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO products (product_id, name, available, updated_at) VALUES ('held', '', 0, ?)",
    )
    .bind(at)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT INTO stock_movements (product_id, kind, quantity, created_at)
        VALUES ('held', 'IMPORT', ?, ?)",
    )
    .bind(units)
    .bind(at)
    .execute(conn)
    .await
    .map(drop)
}

async fn add_reserved(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::new(
        "INSERT INTO orders (order_id, status, hold_seconds, `lines`, created_at, updated_at) ",
    );
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice())
            .push("'RESERVED', 86400, '[[\"held\",1]]'")
            .push_bind(at)
            .push_bind(at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}

async fn add_holds(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    expires_at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::new("INSERT INTO holds (order_id, expires_at) ");
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice()).push_bind(expires_at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}

async fn add_held_outcomes(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert =
        QueryBuilder::new("INSERT INTO order_outcomes (order_id, outcome, `lines`, decided_at) ");
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice()).push("'COMPLETED', '[[\"held\",1]]'").push_bind(at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}

async fn add_refused_orders(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::new(
        "INSERT INTO orders (order_id, status, reason, `lines`, created_at, updated_at) ",
    );
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice())
            .push("'FAILED', 'INSUFFICIENT_STOCK', '[[\"sku-1\",1],[\"sku-2\",2]]'")
            .push_bind(at)
            .push_bind(at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}

async fn add_refusals(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::new(
        "INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at) ",
    );
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice())
            .push("'FAILED', 'INSUFFICIENT_STOCK', '[]'")
            .push_bind(at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}
