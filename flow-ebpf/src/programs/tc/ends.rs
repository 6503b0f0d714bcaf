//! Beginnings and ends of TCP connections, and every event of a flow that is in its map.

use super::side;
use crate::maps::{ENDS, EVENTS, SCRATCH, send};
use crate::packet::Whole;
use crate::words;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use flow_common::abi::{EVENT_CLOSED, EVENT_TAKEOVER, Flow, HookCounters};
use flow_ebpf::tcp::{self, Segment};

/// Takes a segment with SYN, FIN, RST or an awaited acknowledgement into account; gives the kind of event to send, or 0.
#[inline(never)]
pub(super) unsafe fn advance(skb: *mut __sk_buff, flow: *mut Flow, direction: u32, transport: u32, end: u32) -> u32 {
    let Some(segment) = Segment::load(&Whole(skb), transport, end) else { return 0 };
    // SAFETY: the caller's flow; written by other CPUs as well, in whole words of which any is right.
    unsafe { tcp::advance(&mut *flow, direction & 1 != 0, &segment, || bpf_ktime_get_ns()) }
}

/// Sends an event with all of the flow, whose key was staged.
#[inline(always)]
pub(super) unsafe fn emit(flow: *const Flow, kind: u32, hook: *mut HookCounters) {
    // SAFETY: the caller's flow and this CPU's counters.
    unsafe {
        if kind == EVENT_CLOSED {
            (*hook).ends_lost += 1 - tell(flow, kind, 0);
        } else {
            (*hook).events_lost += 1 - tell(flow, kind, 0);
        }
    }
}

/// The same without counting a loss; gives 1 if it is on its ring, else 0. Of a take-over `next` is who takes the direction.
#[inline(never)]
pub(super) unsafe fn tell(flow: *const Flow, kind: u32, next: u32) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: the caller's flow, this CPU's scratch.
    let event = unsafe {
        let event = &mut (*scratch).event;
        event.kind = kind;
        words::copy(flow, &mut event.flow);
        if kind & !1 == EVENT_TAKEOVER {
            (*side(&mut event.flow, kind)).candidate = next;
        }
        event
    };
    send(if kind == EVENT_CLOSED { &ENDS } else { &EVENTS }, event) as u64
}
