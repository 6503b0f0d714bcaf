//! The first packet of a flow.

use super::{Passing, count, lose, side};
use crate::maps::{EVENTS, FLOWS4, FLOWS6, SCRATCH, send};
use crate::packet::Whole;
use crate::words;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use flow_common::abi::{EVENT_NEW, FLAG_FIN, FLAG_RST, FRESH, Flow, HookCounters, Reason, STATE_FRAGMENTED};
use flow_ebpf::tcp::{self, Segment};

/// Begins the flow with the packet that was staged. Where another CPU did so at the same time, counts in its entry.
#[inline(never)]
pub(super) fn first(skb: *mut __sk_buff, hook: *mut HookCounters) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's scratch.
    let (event, passing) = unsafe { (&mut (*scratch).event, (*scratch).passing) };
    event.kind = EVENT_NEW;
    begin(skb, passing, &mut event.flow);
    let inserted = if event.family == 4 {
        FLOWS4.insert(event.key.to_key4(), &event.flow, NO_EXIST)
    } else {
        FLOWS6.insert(&event.key, &event.flow, NO_EXIST)
    };
    if inserted.is_ok() {
        // SAFETY: this CPU's counters.
        unsafe { (*hook).events_lost += !send(&EVENTS, event) as u64 };
        return;
    }
    if counted(skb, hook) == 0 {
        lose(hook, Reason::MapFull, passing.bytes as u64);
    }
}

/// Counts the packet that was staged in its flow; 0 if there is none. A function of its own: its room on the stack counts for every
/// caller.
#[inline(never)]
pub(super) fn counted(skb: *mut __sk_buff, hook: *mut HookCounters) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's scratch.
    let (event, passing) = unsafe { (&(*scratch).event, (*scratch).passing) };
    let flow = if event.family == 4 { FLOWS4.get_ptr_mut(event.key.to_key4()) } else { FLOWS6.get_ptr_mut(&event.key) };
    let Some(flow) = flow else { return 0 };
    // SAFETY: elements of a preallocated map stay memory; the agent deletes only quiet ones.
    unsafe {
        // Of the whole word other CPUs change other bits rarely; a mark that is lost comes with the next fragment.
        if passing.fragment != 0 && (*flow).state & STATE_FRAGMENTED == 0 {
            (*flow).state |= STATE_FRAGMENTED;
        }
        count(skb, hook, passing, flow, &event.key, event.family);
    }
    1
}

/// BPF_NOEXIST.
const NO_EXIST: u64 = 1;

#[inline(always)]
fn begin(skb: *mut __sk_buff, passing: Passing, flow: &mut Flow) {
    // SAFETY: helpers without arguments.
    let (jiffies, now_ns) = unsafe { (bpf_jiffies64() as u32, bpf_ktime_get_ns()) };
    let state = flow.state;
    // SAFETY: this CPU's scratch.
    unsafe { words::clear(flow) };
    flow.first_ns = now_ns;
    flow.state = state;
    // SAFETY: a flow of our own.
    let own = unsafe { &mut *side(flow, passing.direction) };
    own.packets = 1;
    own.bytes = passing.bytes as u64;
    own.last = jiffies;
    own.owner = passing.point;
    own.pending_packets = FRESH;
    own.flags = passing.flags;
    if passing.flags & (FLAG_FIN | FLAG_RST) != 0
        && let Some(segment) = Segment::load(&Whole(skb), passing.transport, passing.end)
    {
        // What it begins with may be what is left of a connection that is over.
        tcp::advance(flow, passing.direction & 1 != 0, &segment, || now_ns);
    }
}
