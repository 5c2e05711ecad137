use anyhow::Context as _;
use chrono::Utc;
use clap::{Args, builder::NonEmptyStringValueParser};
use serde_json::json;
use uuid::Uuid;

use super::{Answer, Output, print::complaint};
use crate::{
    domain::{
        Invalid, MAX_AVAILABLE, ProductId,
        adjustment::{Adjustment, AdjustmentRequest, Level, StockChange},
    },
    store::{Adjusted, StockStore},
};

#[derive(Debug, Args)]
pub(super) struct AdjustArgs {
    /// Id of an existing product
    #[arg(value_parser = ProductId::parse)]
    id: ProductId,
    /// Units to add, such as +5, or to remove, such as -5
    #[arg(
        allow_negative_numbers = true,
        required_unless_present = "to",
        conflicts_with = "to",
        value_parser = clap::value_parser!(i64).range(-MAX_AVAILABLE..=MAX_AVAILABLE)
    )]
    delta: Option<i64>,
    /// Set the available units to this number
    #[arg(
        long,
        value_name = "UNITS",
        value_parser = clap::value_parser!(i64).range(0..=MAX_AVAILABLE)
    )]
    to: Option<i64>,
    /// Why the stock changes
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    reason: String,
    /// Your own name of the cause, such as the number of a document
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    reference: Option<String>,
    /// Adjust only if the product has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<i64>,
    /// Id of the request, by which it is done once, however often it is repeated; by default a new
    /// one
    #[arg(long, value_name = "ID", value_parser = request_id)]
    request_id: Option<String>,
}

fn request_id(text: &str) -> Result<String, Invalid> {
    AdjustmentRequest::check_id(text).map(|()| text.to_owned())
}

/// Adjusts a product. The answer is no if the stock does not allow it.
///
/// Fails with the error of the store, which names the request's id: with it the command may be
/// repeated.
pub(super) async fn run(
    store: &StockStore,
    args: AdjustArgs,
    output: Output,
) -> anyhow::Result<Answer> {
    let AdjustArgs { id, delta, to, reason, reference, if_version, request_id } = args;
    let request_id = request_id.unwrap_or_else(|| Uuid::now_v7().to_string());
    Adjustment::check_reason(&reason)?;
    reference.as_deref().map(Adjustment::check_reference).transpose()?;
    let change = StockChange::new(delta, to).context("the units")?;
    let adjustment = Adjustment { product_id: id.clone(), change, if_version, reason, reference };
    let request = AdjustmentRequest::new(request_id.clone(), vec![adjustment])?;
    let adjusted = store.adjust(&[&request], Utc::now()).await.with_context(|| {
        format!("it is safe to repeat the command with --request-id {request_id}")
    })?;
    match adjusted.into_iter().next() {
        Some(Adjusted::Done { levels, .. }) => {
            for level in levels {
                print(&id, &request_id, level, output);
            }
            Ok(Answer::Done)
        }
        Some(Adjusted::Refused(refusals)) => {
            for refusal in refusals {
                complaint(&refusal.detail, output);
            }
            Ok(Answer::No)
        }
        Some(Adjusted::OtherContent) | None => {
            complaint(&format!("another request {request_id} was done before"), output);
            Ok(Answer::No)
        }
    }
}

fn print(id: &ProductId, request_id: &str, level: Level, output: Output) {
    let Level { available, version } = level;
    match output {
        Output::Json => println!(
            "{}",
            json!({
                "product_id": id.as_str(),
                "available": available,
                "version": version,
                "request_id": request_id,
            })
        ),
        Output::Text => println!("{id}: {available} available, version {version}"),
    }
}
