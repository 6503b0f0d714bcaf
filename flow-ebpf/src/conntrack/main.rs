//! The programs on connection tracking: an object of its own, because a kernel may refuse each of them while it takes those on tc
//! hooks. The agent loads from it what the kernel takes, program by program.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "atomic_xadd: BPF has no other atomic add on stable")
)]

#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
#[cfg(target_arch = "bpf")]
#[path = "../programs/conntrack.rs"]
mod programs;
#[cfg(target_arch = "bpf")]
#[path = "../words.rs"]
mod words;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
