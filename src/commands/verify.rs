use std::{sync::Arc, time::Duration};

use clap::Args;
use serde_json::json;

use super::{Answer, Output, process};
use crate::{
    config::Config,
    verify::{Checks, OpenOrder, Report, verify},
};

/// Rows of a kind that are printed; the others are counted.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// How long to wait for orders that are in flight
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// Leave an invariant out: 6 (needs the privilege PROCESS, and Redis under redlock) or 7 (needs
    /// Kafka)
    #[arg(long, value_name = "INVARIANT", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(6..=7))]
    without: Vec<u8>,
}

pub(super) async fn run(
    args: &VerifyArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let metrics = process::metrics()?;
    let (orders, stock) = (
        process::open_order_store(config, &metrics)?,
        process::open_stock_store(config, &metrics)?,
    );
    let (events, statuses) = process::codecs(config)?;
    let report = verify(&Checks {
        orders: &orders,
        stock: &stock,
        config,
        events: Arc::new(events),
        statuses: Arc::new(statuses),
        without: &args.without,
        settle: args.settle,
    })
    .await?;
    let answer = match (report.violations.is_empty(), report.is_complete()) {
        (false, _) => Answer::No,
        (true, false) => Answer::Unknown,
        (true, true) => Answer::Done,
    };
    match output {
        Output::Json => {
            let mut body = serde_json::to_value(&report)?;
            body["holds"] = json!(answer == Answer::Done);
            println!("{body}");
        }
        Output::Text => print(&report, answer),
    }
    Ok(answer)
}

fn print(report: &Report, answer: Answer) {
    let Report { orders, outcomes, products, events, .. } = report;
    println!(
        "checked {orders} orders, {outcomes} outcomes, {products} products, {events} events that workers have passed"
    );
    for violation in report.violations.iter().take(SHOWN) {
        println!(
            "VIOLATED invariant {}: {}: {}",
            violation.invariant, violation.subject, violation.detail
        );
    }
    for what in report.unchecked.iter().chain(&report.forbidden) {
        println!("NOT CHECKED {what}");
    }
    for what in &report.left_out {
        println!("left out: {what}");
    }
    for OpenOrder { order_id, why } in report.unsettled.iter().take(SHOWN) {
        println!("NOT SETTLED order {order_id}: {why}");
    }
    for OpenOrder { order_id, why } in report.dead_lettered.iter().take(SHOWN) {
        println!("DEAD-LETTERED order {order_id}: {why}");
    }
    let more = report.dead_lettered.len().saturating_sub(SHOWN)
        + report.violations.len().saturating_sub(SHOWN)
        + report.unsettled.len().saturating_sub(SHOWN);
    if more > 0 {
        println!("… and {more} more");
    }
    println!(
        "{}",
        match answer {
            Answer::Done if report.dead_lettered.is_empty() => "all invariants hold",
            Answer::Done => "all invariants hold; dead-lettered orders wait for people",
            Answer::No => "an invariant is violated",
            Answer::Unknown => "not checked in full",
        }
    );
}
