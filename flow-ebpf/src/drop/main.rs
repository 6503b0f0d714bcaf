//! The drop programs: why the kernel freed a packet that did not arrive. An object of its own, because where the kernel refuses
//! it the tc programs go on.
//!
//! One tracepoint in four forms, of which the agent attaches the first that the kernel takes. Counts every drop with a reason by
//! reason, interface and place, and those that say why a connection failed by its flow; changes nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "atomic_xadd: BPF has no other atomic add on stable")
)]

#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod skb;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
