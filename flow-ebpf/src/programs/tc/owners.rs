//! Who counts a direction of a flow: exactly one attachment point at a time.
//!
//! The point that first saw the direction owns it; the others annotate. Each time the owner counts it marks the direction
//! [`FRESH`]; the first other point that sees a packet then becomes the candidate and adds up what it sees until the owner counts again.
//! An owner that is silent for [`silence`] while others see packets is taken over, and what the candidate added up moves from
//! `annotated` to `takeover`: seen, counted by nobody. A Pod's own point takes over from any other at once, but not in the middle of a
//! datagram: conntrack lets fragments go on only when it has all of them, so the owner has counted those that are still to come.
//!
//! No take-over goes untold: where its event finds the ring full, the owner stays and a later packet tries again. The agent thus always
//! knows which packets were whose. Only a SYN that begins a new generation does not wait: the generation's base tells nearly as well.

use super::{Passing, add, hook};
use crate::maps::silence;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use flow_common::abi::{Count, Direction, FLAG_SYN, FRESH, Flow, Reason, owner, ticks_since};
use flow_ebpf::tcp;

/// Whether a point that does not own the direction counts this packet: because it owns the direction from now on. `tell` is
/// called before the owner changes; false if nobody would hear of it.
#[inline(always)]
pub(super) unsafe fn counts(
    passing: Passing,
    flow: *mut Flow,
    own: *mut Direction,
    now: u32,
    tell: impl FnOnce() -> bool,
) -> bool {
    // SAFETY: the caller's flow.
    unsafe {
        let current = (*own).owner;
        let senior = current != 0 && (!owner::is_pod(passing.point) || owner::is_pod(current) || passing.fragment != 0);
        let pending = (*own).pending_packets;
        // Most packets; only a SYN needs the flow's state, which is in another cache line.
        if pending == FRESH && senior && passing.flags & FLAG_SYN == 0 {
            claim(own, current, passing.point, passing.bytes, now);
            return false;
        }
        let reopens = tcp::reopens(passing.flags, (*flow).state);
        // The owner may have counted since `now` was read, on another CPU and in a later tick.
        let silent = ticks_since((*own).last, now) >= silence() as i64;
        let may_take = !senior || reopens || (silent && pending != FRESH);
        if may_take && (current == 0 || tell() || reopens) {
            return take(own, passing.point, passing.bytes, silent) != 0;
        }
        if pending == FRESH {
            claim(own, current, passing.point, passing.bytes, now);
        } else if (*own).candidate == passing.point {
            if pending == 0 {
                (*own).pending_bytes = 0;
            }
            atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(&raw mut (*own).pending_packets, 1);
            add(&raw mut (*own).pending_bytes, passing.bytes as u64);
        }
        false
    }
}

/// Becomes the candidate. The packet at hand is pending unless the owner has counted it: an ingress hook comes before an egress
/// hook; of two hooks of one kind the owner came first if it counted within this jiffy or, as one may begin between the two, the last.
#[inline(always)]
unsafe fn claim(own: *mut Direction, current: u32, point: u32, bytes: u32, now: u32) {
    // SAFETY: the caller's direction.
    unsafe {
        let counted = if owner::is_egress(current) == owner::is_egress(point) {
            ticks_since((*own).last, now) <= 1
        } else {
            owner::is_egress(point)
        };
        (*own).candidate = point;
        (*own).pending_packets = !counted as u32;
        if !counted {
            (*own).pending_bytes = bytes as u64;
        }
    }
}

/// Takes a direction over; 0 if the packet at hand is not to be counted although.
#[inline(never)]
unsafe fn take(own: *mut Direction, point: u32, bytes: u32, silent: bool) -> u64 {
    // SAFETY: the caller's direction.
    unsafe {
        let current = (*own).owner;
        let pending = (*own).pending_packets;
        let missed = pending != FRESH && pending != 0;
        let to_pod = owner::is_pod(point) && owner::is_egress(point) && !owner::is_pod(current);
        let mut counts = 1;
        if current != 0 && to_pod {
            // The last point of a packet's way. An owner that has missed nothing and is not silent has counted this one; where
            // it has missed some, this one is among them.
            if missed {
                moved((*own).candidate, pending - 1, (*own).pending_bytes.wrapping_sub(bytes as u64));
            } else if !silent {
                counts = 0;
            }
        } else if current != 0 && missed {
            moved((*own).candidate, pending, (*own).pending_bytes);
        }
        (*own).pending_packets = FRESH;
        (*own).pending_bytes = 0;
        core::ptr::write_volatile(&raw mut (*own).owner, point);
        // Two points may do this at the same time; the one that wrote last has it.
        if core::ptr::read_volatile(&raw const (*own).owner) != point {
            counts = 0;
        }
        counts
    }
}

/// Moves what a candidate annotated to `takeover`.
#[inline(always)]
unsafe fn moved(candidate: u32, packets: u32, bytes: u64) {
    let Some(hook) = hook(candidate) else { return };
    // SAFETY: this CPU's counters; the index is the reason's.
    unsafe {
        let lost = (&raw mut (*hook).lost).cast::<Count>().add(Reason::Takeover as usize);
        (*lost).packets += packets as u64;
        (*lost).bytes += bytes;
    }
}
