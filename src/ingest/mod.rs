//! The HTTP API: orders in, answers out.

mod api;
mod body;
mod catalog;
mod committer;
mod desk;
mod json;
mod prefer;
mod problem;
mod request;

pub(crate) use api::{Api, serve};
pub(crate) use catalog::Catalog;
pub(crate) use committer::{Committer, Rejected};
pub(crate) use desk::Desk;
pub(crate) use request::{MAX_BODY_BYTES, OrderRequest};
