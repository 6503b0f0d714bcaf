//! The agent, one per Node: joins what the kernel counts into connections, names them and exports IPFIX.

pub mod config;
pub mod conntrack;
pub mod export;
pub mod kernel;
