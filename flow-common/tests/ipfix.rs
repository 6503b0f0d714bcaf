//! The IPFIX codec through its public functions: bytes of the RFC, laws, and everything a sender may do wrong.

#[path = "ipfix/build.rs"]
mod build;
#[path = "ipfix/collector.rs"]
mod collector;
#[path = "ipfix/exporter.rs"]
mod exporter;
#[path = "ipfix/foreign.rs"]
mod foreign;
#[path = "ipfix/golden.rs"]
mod golden;
#[path = "ipfix/laws.rs"]
mod laws;
