//! The kernel programs: four tc hooks a Node, in two forms each, and the clock's calibration.
//!
//! Built for `bpfel-unknown-none` by `cargo xtask build-ebpf`; on the host it is an empty program, so that the whole
//! workspace builds with one command.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "atomic_xadd: BPF has no other atomic add on stable")
)]

#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod object;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod words;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
