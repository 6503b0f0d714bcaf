//! What becomes of a drop: counted by reason, interface and place, and for some reasons in its flow.

use crate::maps::{COUNTERS, DROPPED, DROPS, REASONS, SITES};
use crate::skb::{Headers, Skb};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use flow_common::abi::Count;
use flow_common::abi::drop::{BY_RULE, DropCounters, DropEvent, DropKey, Dropped, Site};
use flow_ebpf::parse::{self, Fragment, Packet};

/// BPF_NOEXIST.
const NO_EXIST: u64 = 1;
/// BPF_RB_NO_WAKEUP.
const NO_WAKEUP: u64 = aya_ebpf::bindings::BPF_RB_NO_WAKEUP as u64;

/// Counts a packet that was dropped for this reason at this place.
#[inline(always)]
pub(crate) fn count(skb: Skb, location: u64, reason: u32) {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return };
    let Some(ifindex) = skb.interface() else {
        return bump(counters, |counters| unsafe { &raw mut (*counters).elsewhere });
    };
    bump(counters, |counters| unsafe { &raw mut (*counters).seen });
    let headers = skb.headers();
    let bytes = headers.map_or(0, |headers| headers.frame.length);
    let site = Site { location, reason, ifindex };
    at_site(counters, &site, bytes as u64);
    let Some(class) = REASONS.get_ptr(reason) else { return };
    bump(counters, |counters| unsafe { &raw mut (*counters).wanted });
    let Some(headers) = headers else { return bump(counters, |counters| unsafe { &raw mut (*counters).unreadable }) };
    // SAFETY: the agent alone writes it.
    in_flow(counters, skb, &headers, &site, unsafe { *class });
}

/// Adds to the site's count, which begins with its first drop.
#[inline(always)]
fn at_site(counters: *mut DropCounters, site: &Site, bytes: u64) {
    // Twice, because another CPU may be first.
    for _ in 0..2 {
        if let Some(sum) = SITES.get_ptr_mut(site) {
            return add(sum, bytes);
        }
        if SITES.insert(site, Count { packets: 1, bytes }, NO_EXIST).is_ok() {
            return;
        }
    }
    bump(counters, |counters| unsafe { &raw mut (*counters).sites_full });
}

/// Adds to what of the packet's flow was dropped.
#[inline(always)]
fn in_flow(counters: *mut DropCounters, skb: Skb, headers: &Headers, site: &Site, class: u32) {
    let mut packet = Packet::default();
    if parse::packet(headers, headers.frame, &mut packet).is_err() {
        return bump(counters, |counters| unsafe { &raw mut (*counters).unreadable });
    }
    if packet.fragment == Fragment::Later {
        return bump(counters, |counters| unsafe { &raw mut (*counters).fragments });
    }
    skb.as_it_came(&mut packet);
    let key = DropKey { key: packet.key, family: packet.family, spare: 0 };
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut is_new = false;
    // Once to find it, once more after an insertion, another CPU's or ours.
    for _ in 0..2 {
        if let Some(dropped) = DROPPED.get_ptr_mut(&key) {
            // SAFETY: elements of a preallocated map stay memory; the agent deletes only quiet ones. Whole words, of which
            // any written value is right.
            unsafe {
                add(sum(dropped, class, packet.direction), packet.bytes as u64);
                (*dropped).last_ns = now_ns;
                (*dropped).site = *site;
                if is_new && DROPS.output::<DropEvent>(&DropEvent { key, dropped: *dropped }, NO_WAKEUP).is_err() {
                    bump(counters, |counters| &raw mut (*counters).events_lost);
                }
            }
            return;
        }
        // Nothing yet: kernel 5.10 takes no stores to a place on the stack that is computed.
        is_new = DROPPED.insert(&key, &Dropped { last_ns: now_ns, ..NOTHING }, NO_EXIST).is_ok();
    }
    bump(counters, |counters| unsafe { &raw mut (*counters).flows_full });
}

const NONE: Count = Count { packets: 0, bytes: 0 };
const NOTHING: Dropped = Dropped {
    by_rule: [NONE; 2],
    by_failure: [NONE; 2],
    last_ns: 0,
    site: Site { location: 0, reason: 0, ifindex: 0 },
};

/// The sum that a packet of this class and direction adds to.
#[inline(always)]
unsafe fn sum(dropped: *mut Dropped, class: u32, direction: u32) -> *mut Count {
    // SAFETY: both lie within the value; the masks tell the verifier. `by_failure` follows `by_rule`.
    unsafe {
        let first = (&raw mut (*dropped).by_rule).cast::<Count>();
        first.add(((class != BY_RULE) as usize) << 1 | (direction & 1) as usize)
    }
}

/// Adds a packet to what other CPUs add to.
#[inline(always)]
fn add(sum: *mut Count, bytes: u64) {
    // SAFETY: a value of a preallocated map; without use of the result it is an instruction that kernel 5.10 knows.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*sum).packets, 1);
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*sum).bytes, bytes);
    }
}

/// Adds one to a counter of this CPU. Atomic, because an interrupt's drop may come between.
#[inline(always)]
fn bump(counters: *mut DropCounters, field: impl FnOnce(*mut DropCounters) -> *mut u64) {
    // SAFETY: a field of a value that stays where it is.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(field(counters), 1) };
}
