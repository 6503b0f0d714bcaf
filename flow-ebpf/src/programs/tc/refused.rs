//! Flows of which an ICMP error says that their packets do not arrive.

use super::{ends, stage};
use crate::maps::{FLOWS4, FLOWS6, SCRATCH};
use crate::packet::Whole;
use aya_ebpf::bindings::__sk_buff;
use flow_common::abi::{EVENT_REFUSED, HookCounters, STATE_REFUSED};
use flow_ebpf::parse;

/// Marks the flow that an ICMP error is about, and tells of it the first time.
#[inline(never)]
pub(super) fn note(skb: *mut __sk_buff, hook: *mut HookCounters) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's scratch; two parts of it.
    let (error, about) = unsafe { (&(*scratch).packet, &mut (*scratch).refused) };
    if !parse::refused(&Whole(skb), error, about) {
        return 0;
    }
    let flow = if about.family == 4 { FLOWS4.get_ptr_mut(about.key.to_key4()) } else { FLOWS6.get_ptr_mut(&about.key) };
    let Some(flow) = flow else { return 0 };
    // SAFETY: elements of a preallocated map stay memory; a whole word, of which other CPUs change other bits rarely.
    unsafe {
        if (*flow).state & STATE_REFUSED != 0 {
            return 0;
        }
        (*flow).state |= STATE_REFUSED;
        stage(&about.key, about.family);
        ends::emit(flow, EVENT_REFUSED, hook);
    }
    1
}
