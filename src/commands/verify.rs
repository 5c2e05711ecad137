use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{Answer, Output, process};
use crate::{
    config::Config,
    verify::{Report, verify},
};

/// Rows of a kind that are printed; the others are counted.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// How long to wait for orders that are in flight
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    settle: Duration,
}

pub async fn run(args: &VerifyArgs, config: &Config, output: Output) -> anyhow::Result<Answer> {
    let metrics = process::metrics()?;
    let (orders, stock) = (process::open_order_store(config, &metrics)?, process::open_stock_store(config, &metrics)?);
    let report = verify(&orders, &stock, config, args.settle).await?;
    let answer = match (report.violations.is_empty(), report.unsettled.is_empty() && report.unchecked.is_empty()) {
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
    println!("checked {} orders, {} outcomes, {} products", report.orders, report.outcomes, report.products);
    for violation in report.violations.iter().take(SHOWN) {
        println!("VIOLATED invariant {}: {}: {}", violation.invariant, violation.subject, violation.detail);
    }
    for what in &report.unchecked {
        println!("NOT CHECKED {what}");
    }
    for what in &report.forbidden {
        println!("not checked: {what}");
    }
    for (order, why) in report.unsettled.iter().take(SHOWN) {
        println!("NOT SETTLED order {order}: {why}");
    }
    let more = report.violations.len().saturating_sub(SHOWN) + report.unsettled.len().saturating_sub(SHOWN);
    if more > 0 {
        println!("… and {more} more");
    }
    println!(
        "{}",
        match answer {
            Answer::Done => "all invariants hold",
            Answer::No => "an invariant is violated",
            Answer::Unknown => "not checked in full",
        }
    );
}
