//! Accounts for each line of an import, and prints the summary.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::super::{Answer, Output};

/// Most lines of each kind that are printed. The others are counted.
const MAX_SHOWN: u64 = 10;

/// The result of one line.
pub(super) enum LineResult {
    Accepted,
    Completed,
    /// The order has failed, for this reason.
    Failed(String),
    /// The server answered with a client error: the line is not an order.
    Refused(StatusCode, String),
    /// The order is surely not saved.
    Unplaced(String),
    /// The order may be saved or not.
    Unknown(String),
}

/// Numbers of lines by result. Each line counts once in `accepted`, `completed`, `failed`,
/// `refused`, `unplaced` or `unknown`.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) read: u64,
    accepted: u64,
    completed: u64,
    failed: BTreeMap<String, u64>,
    /// Orders that an earlier import had placed. They count in one of the three above too.
    pub(super) replayed: u64,
    refused: BTreeMap<u16, u64>,
    /// The first refused lines of each status.
    refusals: Vec<Value>,
    /// Not sent, or surely not saved.
    pub(super) unplaced: u64,
    unknown: u64,
    complaints: u64,
}

impl Tally {
    pub(super) fn add(&mut self, line: u64, result: LineResult, progress: &ProgressBar) {
        let text = match result {
            LineResult::Accepted => return self.accepted += 1,
            LineResult::Completed => return self.completed += 1,
            LineResult::Failed(reason) => return *self.failed.entry(reason).or_default() += 1,
            LineResult::Refused(status, detail) => {
                let count = self.refused.entry(status.as_u16()).or_default();
                *count += 1;
                if *count > MAX_SHOWN {
                    return;
                }
                let refusal = json!({"line": line, "status": status.as_u16(), "detail": detail});
                self.refusals.push(refusal);
                let separator = if detail.is_empty() { "" } else { ": " };
                format!("{status}{separator}{detail}")
            }
            LineResult::Unplaced(why) => {
                self.unplaced += 1;
                self.complaints += 1;
                format!("not placed: {why}")
            }
            LineResult::Unknown(why) => {
                self.unknown += 1;
                self.complaints += 1;
                format!("perhaps placed: {why}")
            }
        };
        if self.complaints <= MAX_SHOWN {
            progress.suspend(|| eprintln!("line {line}: {text}"));
        }
    }

    /// `Unknown` if the server could not place an order, or perhaps placed it. `No` if a line is
    /// no order at all. An invalid order (422) is only counted.
    pub(super) fn answer(&self) -> Answer {
        match (self.unplaced + self.unknown, self.errors()) {
            (0, 0) => Answer::Done,
            (0, _) => Answer::No,
            _ => Answer::Unknown,
        }
    }

    fn invalid(&self) -> u64 {
        let code = StatusCode::UNPROCESSABLE_ENTITY.as_u16();
        self.refused.get(&code).copied().unwrap_or_default()
    }

    fn errors(&self) -> u64 {
        self.refused.values().sum::<u64>() - self.invalid()
    }

    pub(super) fn print(
        &self,
        elapsed: Duration,
        latencies: &Histogram<u64>,
        key_prefix: &str,
        output: Output,
    ) {
        let millis = |quantile| {
            let micros = u32::try_from(latencies.value_at_quantile(quantile)).unwrap_or(u32::MAX);
            (f64::from(micros) / 1000.0 * 100.0).round() / 100.0
        };
        let (p50, p99, seconds) = (millis(0.5), millis(0.99), elapsed.as_secs_f64());
        let failed: u64 = self.failed.values().sum();
        let placed = self.accepted + self.completed + failed;
        if output == Output::Json {
            println!(
                "{}",
                json!({
                    "read": self.read, "placed": placed, "accepted": self.accepted,
                    "completed": self.completed, "failed": self.failed,
                    "replayed": self.replayed, "invalid": self.invalid(),
                    "errors": self.errors(), "refused": self.refused, "refusals": self.refusals,
                    "unplaced": self.unplaced, "unknown": self.unknown, "key_prefix": key_prefix,
                    "seconds": (seconds * 1000.0).round() / 1000.0, "p50_ms": p50, "p99_ms": p99,
                })
            );
            return;
        }
        println!(
            "{placed} of {} orders placed in {seconds:.1} s: \
             {} accepted, {} completed, {failed} failed",
            self.read, self.accepted, self.completed
        );
        for (reason, count) in &self.failed {
            println!("  failed {count:>8}  {reason}");
        }
        if self.replayed > 0 {
            println!("  {} of them were placed before, and not a second time", self.replayed);
        }
        if placed < self.read {
            println!(
                "  the others: {} invalid, {} errors, {} not placed, {} perhaps placed",
                self.invalid(),
                self.errors(),
                self.unplaced,
                self.unknown
            );
            for (status, count) in &self.refused {
                println!("  refused {count:>7}  {status}{}", self.first_lines(*status));
            }
            println!("  to import the corrected file: --key-prefix {key_prefix}");
        }
        println!("  answered in p50 {p50} ms, p99 {p99} ms");
    }

    /// Where the first lines of a status are.
    fn first_lines(&self, status: u16) -> String {
        let refusals = self.refusals.iter().filter(|refusal| refusal["status"] == status);
        let lines: Vec<_> = refusals.map(|refusal| refusal["line"].to_string()).collect();
        let more = self.refused.get(&status).is_some_and(|count| *count > MAX_SHOWN);
        format!("  line {}{}", lines.join(", "), if more { ", …" } else { "" })
    }
}
