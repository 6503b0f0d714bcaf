//! The tracepoint `skb:kfree_skb` in its forms: with BTF or raw, with the reason or (below kernel 5.17) without.
//!
//! A program that reads an argument which the kernel does not give is refused, so the forms are programs of their own.

use crate::count::count;
use crate::maps::{is_netfilter, not_specified};
use crate::skb::Skb;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use flow_common::abi::drop::REASON_NETFILTER;

/// Needs the kernel's types.
#[btf_tracepoint(function = "kfree_skb")]
fn drop_btf(context: BtfTracePointContext) -> i32 {
    with_reason(context.arg(0), context.arg(1), context.arg::<u64>(2) as u32)
}

/// Needs nothing but the tracepoint.
#[raw_tracepoint(tracepoint = "kfree_skb")]
fn drop_raw(context: RawTracePointContext) -> i32 {
    with_reason(context.arg(0), context.arg(1), context.arg::<u64>(2) as u32)
}

/// Below 5.17.
#[btf_tracepoint(function = "kfree_skb")]
fn place_btf(context: BtfTracePointContext) -> i32 {
    by_place(context.arg(0), context.arg(1))
}

/// Below 5.17.
#[raw_tracepoint(tracepoint = "kfree_skb")]
fn place_raw(context: RawTracePointContext) -> i32 {
    by_place(context.arg(0), context.arg(1))
}

#[inline(always)]
fn with_reason(skb: u64, location: u64, reason: u32) -> i32 {
    if reason > not_specified() {
        count(Skb(skb), location, reason);
    }
    0
}

#[inline(always)]
fn by_place(skb: u64, location: u64) -> i32 {
    if is_netfilter(location) {
        count(Skb(skb), location, REASON_NETFILTER);
    }
    0
}
