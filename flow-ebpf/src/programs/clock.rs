//! Reads both clocks at one moment, run by the agent through BPF_PROG_TEST_RUN to learn how they stand to each other.

use crate::maps::CLOCKS;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Writes the reading to the map `clocks`.
#[classifier]
fn clock(_context: TcContext) -> i32 {
    if let Some(reading) = CLOCKS.get_ptr_mut(0) {
        // SAFETY: a value of an array stays where it is; only this program writes it.
        unsafe { *reading = [bpf_jiffies64(), bpf_ktime_get_ns()] };
    }
    0
}
