//! Avro bytes ↔ domain. Values are written in Avro's single-object encoding (Avro 1.12 specification, "Single-object
//! encoding": `C3 01`, the schema's CRC-64-AVRO fingerprint, the datum).

mod codec;
mod events;

pub use codec::{Codec, WireError};
pub use events::{OrderEventCodec, OrderStatusCodec};
