//! What the agent, the aggregator and the kernel programs share.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod abi;
#[cfg(not(target_arch = "bpf"))]
pub mod cidr;
#[cfg(not(target_arch = "bpf"))]
pub mod cli;
#[cfg(not(target_arch = "bpf"))]
pub mod config;
#[cfg(not(target_arch = "bpf"))]
pub mod daemon;
#[cfg(not(target_arch = "bpf"))]
pub mod expiry;
#[cfg(not(target_arch = "bpf"))]
pub mod filter;
#[cfg(not(target_arch = "bpf"))]
pub mod ipfix;
#[cfg(not(target_arch = "bpf"))]
pub mod k8s;
#[cfg(not(target_arch = "bpf"))]
pub mod net;
#[cfg(not(target_arch = "bpf"))]
pub mod record;
#[cfg(not(target_arch = "bpf"))]
pub mod row;
#[cfg(not(target_arch = "bpf"))]
pub mod time;
#[cfg(not(target_arch = "bpf"))]
pub mod watch;
