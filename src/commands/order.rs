mod args;
mod batch;
mod client;
mod events;
mod fail;
#[cfg(test)]
mod fuzz;
mod place;
mod shown;
mod watch;

use std::time::Duration;

use clap::Subcommand;
use reqwest::{Method, StatusCode};
use serde_json::json;

pub(super) use self::{
    args::{key_prefix, wait},
    batch::{BatchStream, LineAnswer, StreamFailure, batch_client},
};
use self::{
    client::{ApiClient, Request},
    place::PlaceArgs,
    watch::WatchArgs,
};
use super::{Answer, Output, import};
use crate::{config::Config, domain::OrderId};

#[derive(Debug, Subcommand)]
pub(super) enum OrderCommand {
    /// Place one order
    ///
    /// The command makes the order's id itself. It sends the order again if no answer comes, and
    /// makes no second order by that.
    Place(PlaceArgs),
    /// Show an order
    Show {
        /// Id of the order
        id: OrderId,
    },
    /// Confirm an order that holds its stock: it is completed
    ///
    /// A pending order is completed once a worker has deducted its stock. Exit status 1 if the
    /// order has failed, was cancelled, or its hold has ended.
    Confirm {
        /// Id of the order
        id: OrderId,
    },
    /// Cancel an order and release its stock; exit status 1 if the order has failed, or is too old
    Cancel {
        /// Id of the order
        id: OrderId,
    },
    /// Extend the hold of an order; exit status 1 unless the order is RESERVED
    Extend {
        /// Id of the order
        id: OrderId,
        /// New time until the end of the hold, from now on, such as 15m
        #[arg(value_name = "TIME", value_parser = args::hold)]
        hold: Duration,
    },
    /// Print each change of an order's status until it is COMPLETED, FAILED or CANCELLED
    ///
    /// The first line is the present status. The command connects again if the connection breaks.
    Watch(WatchArgs),
    /// Place the orders of an NDJSON file, one request body per line; invalid lines are counted and
    /// skipped
    ///
    /// The command sends the lines as a stream, and accounts for each. If ingest is away, it waits,
    /// and sends the lines without an answer again. If it is broken off, start it again with the
    /// same file: it makes no second order. A line without `order_id` and `idempotency_key` gets a
    /// key of the file's content, the line's number and the line's content.
    Import(import::ImportArgs),
    /// Report that an order failed, as a downstream system does
    ///
    /// The command produces a FAILED to the order-status topic. It cannot know whether the order
    /// exists or may still fail; `stocklock order show` tells that later.
    Fail {
        /// Id of the order
        id: OrderId,
        /// Reason that is stored with the order
        #[arg(long)]
        reason: String,
        /// Name of the reporting system
        #[arg(long, default_value = "stocklock-cli")]
        source: String,
    },
}

pub(super) async fn run(
    command: OrderCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let path = |id: OrderId, what: &str| format!("/v1/orders/{id}{what}");
    let request = match command {
        OrderCommand::Place(args) => return place::run(args, config, output).await,
        OrderCommand::Watch(args) => return watch::run(args, config, output).await,
        OrderCommand::Import(args) => return import::run(&args, config, output).await,
        OrderCommand::Fail { id, reason, source } => {
            return fail::run(config, id, &reason, source, output).await;
        }
        OrderCommand::Show { id } => Request::new(Method::GET, path(id, "")),
        OrderCommand::Confirm { id } => Request::new(Method::POST, path(id, "/confirm")),
        OrderCommand::Cancel { id } => Request::new(Method::POST, path(id, "/cancel")),
        OrderCommand::Extend { id, hold } => Request {
            body: Some(json!({"hold_seconds": hold.as_secs()})),
            ..Request::new(Method::POST, path(id, "/extend"))
        },
    };
    ask(&ApiClient::new(config)?, &request, output).await
}

/// Sends a request that does no harm when it is repeated, and prints the answer.
async fn ask(client: &ApiClient, request: &Request, output: Output) -> anyhow::Result<Answer> {
    let answered = client.send(request).await.map_err(|unanswered| match request.method {
        Method::GET => unanswered.error,
        _ if unanswered.is_maybe_done => unanswered
            .error
            .context("the request was perhaps carried out, and may safely be repeated"),
        _ => unanswered.error.context("nothing was changed"),
    })?;
    let answer = match answered.status {
        StatusCode::OK | StatusCode::ACCEPTED => Answer::Done,
        StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
            Answer::No
        }
        _ => return Err(client.unexpected(request, &answered)),
    };
    shown::print(&answered.body, output);
    Ok(answer)
}
