//! Avro bytes ↔ domain. Values are written in Avro's single-object encoding (Avro 1.12
//! specification, "Single-object encoding": `C3 01`, the schema's CRC-64-AVRO fingerprint, the
//! datum). They are read with the schema that they were written with, which their header names: one
//! of ours, or one of `topics.writer_schemas`.

mod codec;
mod datum;
mod error;
mod events;
mod fingerprint;
mod json;
mod writer_schema;

pub(crate) use error::WireError;
pub(crate) use events::check_writer_schemas;
pub use events::{OrderEventCodec, OrderStatusCodec};
pub(crate) use writer_schema::{SchemaError, WriterSchema};
