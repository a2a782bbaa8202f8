//! Kinds table, codecs, patches, selectors, Table and Status of the Kubernetes API. Pure: no I/O, no clock of its own.
//!
//! Objects are `serde_json::Value` in the core. A request passes through here in this order:
//! `codec` (bytes to a checked, pruned, normalised object) -> `kinds` (defaults, strategy, validation) -> store (elsewhere)
//! -> `table` or the object itself. Patches go through `patch`, selections through `selector`, every failure is an `ApiError`.
#![forbid(unsafe_code)]

pub mod codec;
pub mod continue_token;
pub mod duration;
pub mod error;
pub mod field;
pub mod kinds;
pub mod list;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod table;
pub mod time;
pub mod value;

pub use error::ApiError;
pub use kinds::Kind;

/// An API object in the core: a JSON object with `apiVersion`, `kind` and `metadata`.
pub type Object = serde_json::Value;
