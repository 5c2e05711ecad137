use std::{sync::Arc, time::Duration};

use chrono::Utc;
use clap::Args;
use serde_json::json;

use super::{
    Answer, Output,
    process::{self, Codecs, SchemaRegistry},
    since::{Since, parse_since},
};
use crate::{
    config::Config,
    verify::{Checks, OpenOrder, Progress, Report, verify},
};

/// Most rows of a kind that are printed. The others are counted.
const MAX_SHOWN_ROWS: usize = 20;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Most time to wait for orders in flight
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// Skip an invariant: 6 (needs the privilege PROCESS, and Redis under redlock) or 7 (needs
    /// Kafka)
    #[arg(long, value_name = "INVARIANT", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u8).range(6..=7))]
    without: Vec<u8>,
    /// Check invariants 3, 5 and 7 of orders made since then alone: an RFC 3339 time, or an age
    /// such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Since>,
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
    let registry = SchemaRegistry::open_for_command(config).await?;
    let Codecs { events, statuses, .. } = Codecs::open(config, registry.as_ref())?;
    let report = verify(&Checks {
        orders: &orders,
        stock: &stock,
        config,
        events: Arc::new(events),
        statuses: Arc::new(statuses),
        without: &args.without,
        settle: args.settle,
        since: args.since.map(|since| since.at(Utc::now())),
        progress: Progress::new()?,
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
            body["totals"] = json!({
                "violations": report.violations.count(),
                "unsettled": report.unsettled.count(),
                "dead_lettered": report.dead_lettered.count(),
            });
            println!("{body}");
        }
        Output::Text => print(&report, answer),
    }
    Ok(answer)
}

fn print(report: &Report, answer: Answer) {
    let Report { orders, outcomes, products, events, .. } = report;
    println!(
        "checked {orders} orders, {outcomes} outcomes, {products} products, \
         {events} events that workers have passed"
    );
    for violation in report.violations.first().iter().take(MAX_SHOWN_ROWS) {
        println!(
            "VIOLATED invariant {}: {}: {}",
            violation.invariant, violation.subject, violation.detail
        );
    }
    for what in report.unchecked.iter().chain(&report.forbidden) {
        println!("NOT CHECKED {what}");
    }
    for what in &report.left_out {
        println!("skipped: {what}");
    }
    for OpenOrder { order_id, why } in report.unsettled.first().iter().take(MAX_SHOWN_ROWS) {
        println!("NOT SETTLED order {order_id}: {why}");
    }
    for OpenOrder { order_id, why } in report.dead_lettered.first().iter().take(MAX_SHOWN_ROWS) {
        println!("DEAD-LETTERED order {order_id}: {why}");
    }
    let shown = |listed: usize| listed.min(MAX_SHOWN_ROWS) as u64;
    let more = report.violations.count() - shown(report.violations.first().len())
        + report.unsettled.count()
        - shown(report.unsettled.first().len())
        + report.dead_lettered.count()
        - shown(report.dead_lettered.first().len());
    if more > 0 {
        println!("… and {more} more");
    }
    println!(
        "{}",
        match answer {
            Answer::Done if report.dead_lettered.is_empty() => "all invariants hold",
            Answer::Done => "all invariants hold; dead-lettered orders need an operator",
            Answer::No => "an invariant is violated",
            Answer::Unknown => "not checked in full",
        }
    );
}
