//! Header parsing and TCP state of the kernel programs, testable on the host.
//!
//! The programs themselves are the binary `flow-ebpf` of this crate, built for `bpfel-unknown-none` by
//! `cargo xtask build-ebpf`; on the host only this library means something.
#![cfg_attr(target_arch = "bpf", no_std)]
#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::arithmetic_side_effects
)]

#[cfg(not(target_arch = "bpf"))]
pub mod frames;
pub mod origin;
pub mod parse;
pub mod tcp;
