//! Counts every packet that passes a tc hook in the flow it belongs to, at the one point that owns its direction.
//!
//! One program for each hook, role and kind of device, so that these are constants on the packet path. Never changes a
//! packet nor its fate: the verdict is always TC_ACT_UNSPEC (TCX_NEXT), so other programs run as if ours were not there.

use crate::maps::{COUNTERS, ETHERTYPES, FLOWS4, FLOWS6, LEASE, SCRATCH, SLOT_OF};
use crate::packet::{Direct, Whole};
use crate::words;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use flow_common::abi::{
    ACKED_FIN, Count, Direction, EVENT_TAKEOVER, FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, FRESH, Flow, HookCounters,
    Key6, Reason, SLOTS, STATE_FRAGMENTED, owner,
};
use flow_ebpf::origin;
use flow_ebpf::parse::{self, Fragment, Frame, Packet, Plain, Refusal};

mod ends;
mod fragments;
mod insert;
mod owners;
mod refused;

/// Go on with the next program, or with the packet's way.
const NEXT: i32 = -1;
/// Length of an Ethernet header.
const ETHERNET: u32 = 14;
/// A layer-3 device has none.
const NONE: u32 = 0;
const INGRESS: u32 = 0;
const EGRESS: u32 = owner::EGRESS;
const POD: u32 = owner::POD;
const UPLINK: u32 = 0;

/// Declares the program of a hook, a role and a link-layer header length.
macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $hook:ident $role:ident $link:ident;)*) => {$(
        $(#[$doc])*
        #[classifier]
        fn $name(context: TcContext) -> i32 {
            run::<{ $hook | $role }, $link>(context.skb.skb);
            NEXT
        }
    )*};
}

programs! {
    /// From a Pod.
    pod_ingress: INGRESS POD ETHERNET;
    /// To a Pod.
    pod_egress: EGRESS POD ETHERNET;
    /// From outside.
    uplink_ingress: INGRESS UPLINK ETHERNET;
    /// To outside.
    uplink_egress: EGRESS UPLINK ETHERNET;
    /// From a Pod on a layer-3 device.
    pod_ingress_l3: INGRESS POD NONE;
    /// To a Pod on a layer-3 device.
    pod_egress_l3: EGRESS POD NONE;
    /// From outside on a layer-3 device.
    uplink_ingress_l3: INGRESS UPLINK NONE;
    /// To outside on a layer-3 device.
    uplink_egress_l3: EGRESS UPLINK NONE;
}

/// What of a packet is counted, and by whom.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Passing {
    /// See [`owner`].
    point: u32,
    bytes: u32,
    flags: u32,
    /// Offset of the transport header.
    transport: u32,
    /// Offset behind the packet.
    end: u32,
    /// Index of its direction.
    direction: u32,
    /// 1 for a fragment.
    fragment: u32,
}

#[inline(always)]
fn run<const POINT: u32, const LINK: u32>(skb: *mut __sk_buff) {
    // SAFETY: the context is valid for the program's whole run.
    let (ifindex, length, protocol, segments) =
        unsafe { ((*skb).ifindex, (*skb).len, (*skb).protocol as u16, (*skb).gso_segs) };
    if is_left_alone() {
        return;
    }
    let point = ifindex << 2 | POINT;
    let Some(hook) = hook(point) else { return };
    // SAFETY: this CPU's counters; no other program runs on it meanwhile.
    unsafe {
        (*hook).seen.packets += 1;
        (*hook).segments += if segments == 0 { 1 } else { segments as u64 };
    }
    let load = Direct::new(skb);
    // The key alone must lie in memory: taken out of the rest, the rest stays in registers.
    if protocol == parse::IPV4
        && let Some(plain) = parse::plain4(&load, LINK, length)
    {
        let (key, passing) = (plain.key, Passing::plain(point, LINK, &plain));
        // SAFETY: as above.
        unsafe { (*hook).seen.bytes += passing.bytes as u64 };
        match FLOWS4.get_ptr_mut(&key) {
            // SAFETY: elements of a preallocated map stay memory; the agent deletes only quiet ones.
            Some(flow) => unsafe { count(skb, hook, passing, flow, &key, 4) },
            None => begin(skb, hook, passing, &key, 4, origin::of(passing.flags, passing.direction != 0)),
        }
        return;
    }
    if protocol == parse::IPV6
        && let Some(plain) = parse::plain6(&load, LINK, length)
    {
        let (key, passing) = (plain.key, Passing::plain(point, LINK, &plain));
        // SAFETY: as above.
        unsafe { (*hook).seen.bytes += passing.bytes as u64 };
        match FLOWS6.get_ptr_mut(&key) {
            // SAFETY: as above.
            Some(flow) => unsafe { count(skb, hook, passing, flow, &key, 6) },
            None => begin(skb, hook, passing, &key, 6, origin::of(passing.flags, passing.direction != 0)),
        }
        return;
    }
    uncommon(skb, hook, point, LINK);
}

/// Whether no agent has been there for so long that nobody will read what is counted.
#[inline(always)]
fn is_left_alone() -> bool {
    // SAFETY: a helper without arguments.
    LEASE.get(0).is_some_and(|until| *until != 0 && unsafe { bpf_jiffies64() } > *until)
}

impl Passing {
    #[inline(always)]
    fn plain<K>(point: u32, link: u32, plain: &Plain<K>) -> Self {
        Self {
            point,
            bytes: plain.bytes,
            flags: plain.flags,
            transport: plain.transport,
            end: link + plain.bytes,
            direction: plain.reversed as u32,
            fragment: 0,
        }
    }
}

/// Begins a flow in this state.
#[inline(always)]
fn begin<K: Copy + Into<Key6>>(
    skb: *mut __sk_buff,
    hook: *mut HookCounters,
    passing: Passing,
    key: &K,
    family: u32,
    state: u32,
) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: this CPU's scratch.
        unsafe {
            (*scratch).passing = passing;
            (*scratch).event.flow.state = state;
        }
        stage(key, family);
        insert::first(skb, hook);
    }
}

/// Leaves a key where events are made of it. A call, because the copy's room on the stack counts for every caller.
#[inline(never)]
fn stage<K: Copy + Into<Key6>>(key: &K, family: u32) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: this CPU's scratch.
        unsafe {
            (*scratch).event.family = family;
            words::copy(&(*key).into(), &mut (*scratch).event.key);
        }
    }
}

/// Counters of a point on this CPU.
#[inline(always)]
fn hook(point: u32) -> Option<*mut HookCounters> {
    let slot = SLOT_OF.get_ptr(owner::ifindex(point) & (SLOTS - 1))?;
    // SAFETY: values of arrays stay where they are.
    let counters = COUNTERS.get_ptr_mut(unsafe { *slot })?;
    // SAFETY: both hooks lie within the value.
    unsafe { Some((&raw mut (*counters).hook).cast::<HookCounters>().add((point & owner::EGRESS) as usize)) }
}

/// Every packet that the plain paths leave.
#[inline(never)]
fn uncommon(skb: *mut __sk_buff, hook: *mut HookCounters, point: u32, link: u32) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's scratch.
    let packet = unsafe { &mut (*scratch).packet };
    if classify(skb, hook, link, packet) == 0 {
        return;
    }
    if parse::is_icmp(packet) {
        refused::note(skb, hook);
    }
    let passing = Passing {
        point,
        bytes: packet.bytes,
        flags: packet.flags,
        transport: packet.transport,
        end: packet.end,
        direction: packet.direction,
        fragment: (packet.fragment != Fragment::Whole) as u32,
    };
    // SAFETY: this CPU's counters.
    unsafe { (*hook).seen.bytes += packet.bytes as u64 };
    // SAFETY: this CPU's scratch.
    unsafe {
        (*scratch).passing = passing;
        (*scratch).event.flow.state = packet.state | passing.fragment * STATE_FRAGMENTED;
    }
    stage(&packet.key, packet.family);
    if insert::counted(skb, hook) == 0 {
        insert::first(skb, hook);
    }
}

/// Reads an uncommon packet; 0 if it belongs to no flow, which is then counted.
#[inline(never)]
fn classify(skb: *mut __sk_buff, hook: *mut HookCounters, link: u32, into: &mut Packet) -> u64 {
    // SAFETY: the context is valid for the program's whole run.
    let frame =
        unsafe { Frame { protocol: (*skb).protocol as u16, link, length: (*skb).len, gso: (*skb).gso_size != 0 } };
    match parse::packet(&Whole(skb), frame, into) {
        Ok(()) => {
            if into.fragment != Fragment::Whole {
                fragments::join(into, hook);
            }
            1
        }
        Err(refusal) => {
            refuse(hook, frame, refusal);
            0
        }
    }
}

#[inline(always)]
fn refuse(hook: *mut HookCounters, frame: Frame, refusal: Refusal) {
    let bytes = (frame.length - frame.link) as u64;
    let reason = match refusal {
        Refusal::Malformed => Reason::Malformed,
        Refusal::Unsupported => Reason::Unsupported,
        Refusal::NotIp(ethertype) => {
            not_ip(ethertype as u32, bytes);
            Reason::NotIp
        }
    };
    // SAFETY: this CPU's counters.
    unsafe { (*hook).seen.bytes += bytes };
    lose(hook, reason, bytes);
}

#[inline(always)]
fn lose(hook: *mut HookCounters, reason: Reason, bytes: u64) {
    // SAFETY: every reason has its place in the array; this CPU's counters.
    unsafe {
        let lost = (&raw mut (*hook).lost).cast::<Count>().add(reason as usize);
        (*lost).packets += 1;
        (*lost).bytes += bytes;
    }
}

#[inline(always)]
fn not_ip(ethertype: u32, bytes: u64) {
    // Twice, because another CPU may be first.
    for key in [ethertype, ethertype, 0] {
        if let Some(count) = ETHERTYPES.get_ptr_mut(key) {
            // SAFETY: entries are never deleted.
            unsafe {
                add(&raw mut (*count).packets, 1);
                add(&raw mut (*count).bytes, bytes);
            }
            return;
        }
        if ETHERTYPES.insert(key, Count { packets: 1, bytes }, 1).is_ok() {
            return;
        }
    }
}

/// Adds to a counter that other CPUs add to.
#[inline(always)]
unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's pointer; without use of the result it is an instruction that kernel 5.10 knows.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}

/// Counts a packet in its flow if this point owns the direction, else annotates.
#[inline(always)]
unsafe fn count<K: Copy + Into<Key6>>(
    skb: *mut __sk_buff,
    hook: *mut HookCounters,
    passing: Passing,
    flow: *mut Flow,
    key: &K,
    family: u32,
) {
    let now = unsafe { bpf_jiffies64() } as u32;
    // SAFETY: the caller's flow; fields that several CPUs write are counters, added to atomically, or words of which any
    // written value is right.
    unsafe {
        let own = side(flow, passing.direction);
        if (*own).owner != passing.point {
            let tell = || {
                stage(key, family);
                ends::tell(flow, EVENT_TAKEOVER | passing.direction & 1, passing.point) != 0
            };
            if !owners::counts(passing, flow, own, now, tell) {
                (*hook).annotated.packets += 1;
                (*hook).annotated.bytes += passing.bytes as u64;
                return;
            }
        } else if (*own).pending_packets != FRESH {
            (*own).pending_packets = FRESH;
        }
        // No flags, no TCP header: what stands at its place in a later fragment is data.
        let awaiting = passing.flags & FLAG_ACK != 0 && (*own).awaited != 0 && (*own).flags & ACKED_FIN == 0;
        let mut event = 0;
        if passing.flags & (FLAG_SYN | FLAG_FIN | FLAG_RST) != 0 || awaiting {
            event = ends::advance(skb, flow, passing.direction, passing.transport, passing.end);
        } else if passing.flags & !(*own).flags != 0 {
            (*own).flags |= passing.flags;
        }
        add(&raw mut (*own).packets, 1);
        add(&raw mut (*own).bytes, passing.bytes as u64);
        if (*own).last != now {
            (*own).last = now;
        }
        if event != 0 {
            stage(key, family);
            ends::emit(flow, event, hook);
        }
    }
}

/// The direction a packet counts in.
#[inline(always)]
unsafe fn side(flow: *mut Flow, direction: u32) -> *mut Direction {
    // SAFETY: both directions lie within the flow; the mask tells the verifier.
    unsafe { (&raw mut (*flow).direction).cast::<Direction>().add((direction & 1) as usize) }
}
