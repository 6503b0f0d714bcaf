//! IPFIX (RFC 7011, with RFC 5103's reverse elements): messages in and out of bytes. No I/O and no clock: bytes and
//! times are passed in. What the elements mean is `record`.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::cast_possible_truncation))]

pub mod accounting;
pub mod collector;
mod element;
pub mod exporter;
pub mod message;
pub mod wire;

pub use accounting::Accounting;
