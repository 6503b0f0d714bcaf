//! What the agent, the aggregator and the kernel programs share.

#[cfg(not(target_arch = "bpf"))]
pub mod config;
#[cfg(not(target_arch = "bpf"))]
pub mod daemon;
#[cfg(not(target_arch = "bpf"))]
pub mod net;
