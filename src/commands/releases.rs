use std::collections::BTreeSet;

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;
use serde_json::json;

use super::{Answer, Output, process};
use crate::{
    config::Config,
    domain::OrderId,
    store::{OrderStore, OwedRelease},
    verify::{LostReleases, find_lost_releases},
};

/// Releases that one query reads, or one transaction writes.
const PAGE: u32 = 1_000;

#[derive(Debug, Subcommand)]
pub(super) enum ReleasesCommand {
    /// List releases that are owed: no worker has reported the stock of these orders as released
    List,
    /// Owe lost releases again: the order failed or was cancelled, its stock was not released, and
    /// no release is owed; exit status 1 if one of these orders is too old
    Owe {
        /// Only list these orders
        #[arg(long)]
        dry_run: bool,
    },
    /// Forget releases of orders beyond the horizon, after `stock restock` returned their units
    Dismiss {
        /// Ids of orders that are beyond the horizon and whose release is owed
        #[arg(required = true)]
        ids: Vec<OrderId>,
    },
}

pub(super) async fn run(
    command: ReleasesCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let orders = process::open_order_store(config, &process::metrics()?)?;
    match command {
        ReleasesCommand::List => list(&orders, config, output).await,
        ReleasesCommand::Owe { dry_run } => owe(&orders, config, dry_run, output).await,
        ReleasesCommand::Dismiss { ids } => dismiss(&orders, config, &ids, output).await,
    }
}

async fn list(orders: &OrderStore, config: &Config, output: Output) -> anyhow::Result<Answer> {
    let decidable_from = config.retention.horizon.decidable(Utc::now()).start;
    let mut after = None;
    loop {
        let page = orders.page_of_owed_releases(after, PAGE).await?;
        after = page.last().map(|owed| owed.order_id);
        for owed in &page {
            let is_expired = owed.due_at.is_none() || owed.order_id < decidable_from;
            print_owed(owed, is_expired, output);
        }
        if page.len() < PAGE as usize {
            return Ok(Answer::Done);
        }
    }
}

fn print_owed(owed: &OwedRelease, is_expired: bool, output: Output) {
    let OwedRelease { order_id, owed_at, sent, due_at } = owed;
    let due_at = due_at.filter(|_| !is_expired).map(rfc3339);
    match output {
        Output::Json => println!(
            "{}",
            json!({
                "order_id": order_id.to_string(), "owed_at": rfc3339(*owed_at), "sent": sent,
                "due_at": due_at, "expired": is_expired,
            })
        ),
        Output::Text => {
            let next = due_at.map_or_else(
                || "too old to be done".to_owned(),
                |due_at| format!("due at {due_at}"),
            );
            println!(
                "{order_id}  owed since {}, published {sent} times, {next}",
                rfc3339(*owed_at)
            );
        }
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

async fn owe(
    orders: &OrderStore,
    config: &Config,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<Answer> {
    let stock = process::open_stock_store(config, &process::metrics()?)?;
    let LostReleases { owable, expired } =
        find_lost_releases(orders, &stock, config.retention.horizon).await?;
    let mut owed = 0;
    for ids in owable.chunks(PAGE as usize).filter(|_| !dry_run) {
        owed += orders.owe_releases(ids, Utc::now()).await?;
    }
    match output {
        Output::Json => {
            let texts = |ids: &[OrderId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
            println!(
                "{}",
                json!({"lost": texts(&owable), "too_old": texts(&expired), "owed": owed})
            );
        }
        Output::Text => {
            for id in &owable {
                println!("{id}  {}", if dry_run { "lost" } else { "owed again" });
            }
            for id in &expired {
                println!("{id}  too old: `stocklock stock restock` returns its units");
            }
            println!(
                "{} lost, {owed} owed again, {} too old",
                owable.len() + expired.len(),
                expired.len()
            );
        }
    }
    Ok(if expired.is_empty() { Answer::Done } else { Answer::No })
}

async fn dismiss(
    orders: &OrderStore,
    config: &Config,
    ids: &[OrderId],
    output: Output,
) -> anyhow::Result<Answer> {
    let decidable_from = config.retention.horizon.decidable(Utc::now()).start;
    if let Some(young) = ids.iter().find(|id| **id >= decidable_from) {
        bail!("order {young} is not beyond the horizon: a worker will still do its release");
    }
    let dismissed = orders.dismiss_releases(ids, decidable_from).await?;
    let named = ids.iter().collect::<BTreeSet<_>>().len();
    match output {
        Output::Json => println!("{}", json!({"dismissed": dismissed})),
        Output::Text => println!("{dismissed} of {named} releases were owed, and are dismissed"),
    }
    Ok(if u64::try_from(named).is_ok_and(|named| named == dismissed) {
        Answer::Done
    } else {
        Answer::No
    })
}
