//! What the benchmark compares with: an empty program, and a flow counter as textbooks have it.
//!
//! One 40-byte key for both families, an LRU hash, two atomic adds and the precise clock; IPv4 without options only.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "atomic_xadd: BPF has no other atomic add on stable")
)]

#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
