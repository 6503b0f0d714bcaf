//! The aggregator: collects the agents' records, joins both halves of a connection, delivers the result.

pub mod aggregate;
pub mod api;
pub mod certs;
pub mod cli;
pub mod collector;
pub mod config;
pub mod correlate;
pub mod input;
pub mod join;
pub mod metrics;
pub mod outlets;
pub mod pipeline;
pub mod reload;
pub mod sinks;
