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

pub use api::{Api, serve};
pub use catalog::Catalog;
pub use committer::{Committer, Rejected};
pub use desk::Desk;
pub use request::{MAX_BODY_BYTES, OrderRequest};
