//! What the databases can do at all: the statements of the same batches, on as many bare
//! connections as serve them best, without Kafka and without locks in Redis.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::Utc;
use tokio::{sync::mpsc, task::JoinSet};

use stocklock::{
    domain::{Horizon, OrderEvent, OrderStatus},
    relay::COMMITTER_LEASE,
    store::{Guard, OrderStore, StockStore},
};

/// Connections to each store that are tried.
pub(crate) const CONNECTIONS: [usize; 3] = [1, 2, 4];

/// Orders a second.
pub(crate) async fn measure(
    orders: &OrderStore,
    stock: &StockStore,
    events: &[OrderEvent],
    batch_max: usize,
    connections: usize,
) -> anyhow::Result<f64> {
    let batches: Vec<Vec<_>> = events.chunks(batch_max).map(<[_]>::to_vec).collect();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let share = batches.iter().skip(connection).step_by(connections).cloned().collect();
        let (decided, statuses) = mpsc::channel(1);
        tasks.spawn(deduct(stock.clone(), share, decided));
        tasks.spawn(bring_back(orders.clone(), statuses));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection's task panicked")??;
    }
    Ok(f64::from(u32::try_from(events.len())?) / begun.elapsed().as_secs_f64())
}

async fn deduct(
    stock: StockStore,
    batches: Vec<Vec<OrderEvent>>,
    decided: mpsc::Sender<Vec<OrderStatus>>,
) -> anyhow::Result<()> {
    for batch in batches {
        let decisions = stock.decide(&batch, Guard::RowLocks, Utc::now(), || true).await?;
        decided.send(decisions.statuses).await.context("nobody brings the statuses back")?;
    }
    Ok(())
}

async fn bring_back(
    orders: OrderStore,
    mut decided: mpsc::Receiver<Vec<OrderStatus>>,
) -> anyhow::Result<()> {
    while let Some(statuses) = decided.recv().await {
        orders.apply(&statuses, Utc::now(), Horizon::new(Duration::MAX), COMMITTER_LEASE).await?;
    }
    Ok(())
}
