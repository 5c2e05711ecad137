//! Asks the schema registry: registers the own schemas, and looks up those of other systems.
//!
//! The codecs of `wire` never ask. They share what this room has found out, in
//! [`RegisteredSchemas`](crate::wire::RegisteredSchemas). A value whose schema nobody has looked up
//! yet waits for it.
//!
//! | file | what it does |
//! | --- | --- |
//! | `client.rs` | the HTTP API of the registry |
//! | `lookups.rs` | finds the ids of the own schemas, and the schemas of other ids |
//! | `look.rs` | looks at the registry, for `stocklock doctor` |
//! | `registration.rs` | registers the own schemas, for `setup` |
//!
//! # Why its own client
//!
//! The crate `schema_registry_converter` decodes and looks up in one asynchronous call for each
//! value. It keeps an id that is unknown for ever, and resolves each value without a cached reader.
//! Here `decode` is synchronous and fast, and an outage of the registry stops no other message.

mod client;
#[cfg(test)]
mod fuzz;
mod look;
mod lookups;
mod registration;

pub(crate) use client::{RegistryClient, RegistryError, with_attempts};
pub(crate) use look::look_at_registry;
pub(crate) use lookups::{Lookups, OwnIdError, find_own_ids};
pub(crate) use registration::{Registration, register};
