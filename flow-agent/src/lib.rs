//! The agent, one per Node: joins what the kernel counts into connections, names them and exports IPFIX.

pub mod addresses;
pub mod api;
pub mod cli;
pub mod config;
pub mod conntrack;
pub mod doctor;
pub mod enrich;
pub mod export;
pub mod flows;
pub mod kernel;
pub mod metrics;
pub mod pipeline;
pub mod sources;
pub mod table;
pub mod verify;
