//! The HTTP API. It takes orders, saves them in groups, and answers questions about orders and
//! products.
//!
//! The files in the order in which a `POST /v1/orders` passes them:
//!
//! | file | step |
//! | --- | --- |
//! | `auth/` | decides who sends a request, and whether the client may |
//! | `api.rs` | routes, handlers, responses |
//! | `body.rs` | reads the body, with bounds on its size, time and memory |
//! | `request.rs`, `json.rs` | parse the body into an [`OrderRequest`], or name the wrong fields |
//! | `idempotency.rs` | reads the `Idempotency-Key`, and digests the request |
//! | `catalog.rs` | finds out which of its products exist |
//! | `committer.rs`, `groups.rs` | save the orders of many clients in one transaction |
//! | `prefer.rs`, `outcomes.rs`, `subscriptions.rs` | let a client wait for the outcome |
//! | `problem.rs` | errors as RFC 9457 wants them |
//!
//! An order that comes as a record of `order-requests` passes `intake.rs` in place of the first
//! three steps, and needs no answer. `intake_preview.rs` says what such a record would do.
//!
//! A request that changes an order passes `changes.rs` in place of `committer.rs`.

mod api;
mod auth;
mod body;
mod catalog;
mod changes;
mod committer;
#[cfg(test)]
mod fuzz;
mod groups;
mod idempotency;
mod intake;
mod intake_preview;
mod intake_record;
mod json;
mod outcomes;
mod prefer;
mod problem;
mod request;
mod subscriptions;

pub(crate) use api::{AdjustTerms, Api, BatchSlots, serve};
pub(crate) use auth::{Access, NAME_RULE, NewToken, Scope, is_name, look_at_provider, new_token};
pub(crate) use catalog::Catalog;
pub(crate) use changes::{ChangeTask, Changer};
pub(crate) use committer::{Committer, SaveError};
pub(crate) use intake::Intake;
pub(crate) use intake_preview::{IntakePreview, Previewed};
pub(crate) use intake_record::RecordOrigin;
pub(crate) use outcomes::OutcomeWatch;
pub(crate) use request::{MAX_BODY_BYTES, OrderRequest};
