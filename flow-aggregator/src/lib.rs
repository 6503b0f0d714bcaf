//! The aggregator: collects the agents' records, joins both halves of a connection, delivers the result.

pub mod aggregate;
pub mod certs;
pub mod config;
pub mod correlate;
