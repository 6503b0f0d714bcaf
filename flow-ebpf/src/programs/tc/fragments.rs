//! Gives later fragments the ports of their datagram's first.

use crate::maps::{FRAGMENTS, FirstFragment};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use flow_common::abi::{FRAGMENTS_NS, HookCounters, Key6, STATE_GUESSED};
use flow_ebpf::parse::{Fragment, Packet};

/// Remembers a first fragment; gives a later one the ports of its datagram.
#[inline(never)]
pub(super) fn join(packet: &mut Packet, hook: *mut HookCounters) {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if packet.fragment == Fragment::First {
        let first = FirstFragment {
            at_ns: now_ns,
            ports: packet.key.ports(),
            protocol: packet.protocol,
            direction: packet.direction as u8,
            spare: 0,
        };
        // An LRU map makes room; if it cannot, the later fragments count themselves as alone.
        let _ = FRAGMENTS.insert(&packet.datagram, first, 0);
        return;
    }
    if let Some(first) = FRAGMENTS.get_ptr(&packet.datagram) {
        // SAFETY: an element may be recycled while it is read: its time is then as new as the ports.
        let first = unsafe { *first };
        if now_ns.wrapping_sub(first.at_ns) < FRAGMENTS_NS {
            packet.key = Key6::new(packet.key.addr, first.ports, first.protocol);
            packet.direction = first.direction as u32;
            packet.state = first.direction as u32 | STATE_GUESSED;
            return;
        }
    }
    // SAFETY: this CPU's counters.
    unsafe { (*hook).fragments_alone += 1 };
}
