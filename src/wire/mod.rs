//! The values of the topics: Avro bytes to domain types and back.
//!
//! A value is written in one of these encodings. Encoding cannot fail.
//!
//! - By default, Avro's single-object encoding (Avro 1.12 specification, "Single-object encoding"):
//!   `C3 01`, the CRC-64-AVRO fingerprint of the schema, the datum.
//! - With `schema_registry.url`, the framing of schema registries: 0, the id of the schema in 4
//!   bytes, big-endian, the datum.
//! - With `topics.status_format = "json"`, on `order-status`: a JSON object.
//!
//! A value is read with the schema that it was written with. Its header names that schema: one of
//! this crate, one of `topics.writer_schemas`, or one of the registry. A status or a request may
//! also be a JSON object.
//!
//! | file | content |
//! | --- | --- |
//! | `events.rs` | the codec of each topic: a record to a domain type and back |
//! | `adjustments.rs` | requests to adjust stock |
//! | `requests.rs` | the codec of order requests |
//! | `stock_level.rs` | the codec of `stock-levels` |
//! | `features.rs` | what the values contain, and which version reads it first |
//! | `codec.rs` | the header of a value, and its schema |
//! | `datum.rs` | writes the fields of a record |
//! | `json.rs` | JSON objects |
//! | `status_object.rs` | a status as a JSON object |
//! | `registered.rs` | what is known of the schemas in a registry |
//! | `writer_schema.rs` | schemas of other systems |
//! | `bounded_schema.rs` | refuses schemas whose values may cost any amount of memory |
//! | `fingerprint.rs` | the fingerprint of a schema |

mod adjustments;
mod bounded_schema;
mod codec;
mod datum;
mod error;
mod events;
mod features;
mod fingerprint;
#[cfg(test)]
mod fuzz;
mod json;
mod registered;
mod requests;
mod status_object;
mod stock_level;
mod writer_schema;

pub use adjustments::StockAdjustmentCodec;
pub(crate) use error::WireError;
pub use events::OrderEventCodec;
pub use events::OrderStatusCodec;
pub(crate) use events::{StatusHeaders, check_writer_schemas};
pub(crate) use features::check_readable;
pub(crate) use registered::{RegisteredSchemas, Subject};
pub use requests::OrderRequestCodec;
pub use stock_level::StockLevelCodec;
pub(crate) use writer_schema::SchemaError;
pub use writer_schema::WriterSchema;
