//! The kernel programs as they are shipped, packet by packet through BPF_PROG_TEST_RUN: what is counted, where, and what is not.
//!
//! Needs root and the built kernel programs; says so where either is missing.

#[path = "programs/agreement.rs"]
mod agreement;
#[path = "programs/harness.rs"]
mod harness;
#[path = "programs/headers.rs"]
mod headers;
#[path = "programs/owners.rs"]
mod owners;
#[path = "programs/tcp.rs"]
mod tcp;
