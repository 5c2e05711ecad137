//! The values of the topics: Avro bytes to domain types and back.
//!
//! A value is written in Avro's single-object encoding (Avro 1.12 specification, "Single-object
//! encoding"): `C3 01`, the CRC-64-AVRO fingerprint of the schema, the datum. Encoding cannot fail.
//!
//! A value is read with the schema that it was written with. Its header names that schema: one of
//! this crate, or one of `topics.writer_schemas`. A status may also be a JSON object.
//!
//! | file | content |
//! | --- | --- |
//! | `events.rs` | the codec of each topic: a record to a domain type and back |
//! | `stock_level.rs` | the codec of `stock-levels` |
//! | `codec.rs` | the header of a value, and its schema |
//! | `datum.rs` | writes the fields of a record |
//! | `json.rs` | JSON objects |
//! | `writer_schema.rs` | schemas of other systems |
//! | `fingerprint.rs` | the fingerprint of a schema |

mod codec;
mod datum;
mod error;
mod events;
mod fingerprint;
mod json;
mod stock_level;
mod writer_schema;

pub(crate) use error::WireError;
pub use events::OrderEventCodec;
pub use events::OrderStatusCodec;
pub(crate) use events::check_writer_schemas;
pub use stock_level::StockLevelCodec;
pub(crate) use writer_schema::{SchemaError, WriterSchema};
