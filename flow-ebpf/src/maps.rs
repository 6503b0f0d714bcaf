//! Every map, with the sizes a loader would get that sets none; ours sets them all.

use crate::programs::Passing;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use flow_common::abi::{Count, Event, Flow, InterfaceCounters, Key4, Key6, SLOTS};
use flow_ebpf::parse::{Datagram, Packet};

/// IPv4 flows. A plain, preallocated hash: an LRU would evict live flows silently.
#[map(name = "flows4")]
pub(crate) static FLOWS4: HashMap<Key4, Flow> = HashMap::with_max_entries(1, 0);

/// IPv6 flows.
#[map(name = "flows6")]
pub(crate) static FLOWS6: HashMap<Key6, Flow> = HashMap::with_max_entries(1, 0);

/// Interface index modulo [`SLOTS`] -> slot in [`COUNTERS`]; written by the agent.
#[map(name = "slots")]
pub(crate) static SLOT_OF: Array<u32> = Array::with_max_entries(SLOTS, 0);

/// Counters per interface and CPU.
#[map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<InterfaceCounters> = PerCpuArray::with_max_entries(1, 0);

/// What was no IP, by ethertype as loaded; 0 holds what found no room.
#[map(name = "ethertypes")]
pub(crate) static ETHERTYPES: HashMap<u32, Count> = HashMap::with_max_entries(1, 0);

/// First fragments.
#[map(name = "fragments")]
pub(crate) static FRAGMENTS: LruHashMap<Datagram, FirstFragment> = LruHashMap::with_max_entries(1, 0);

/// New flows and generations.
#[map(name = "events")]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Closed connections: a ring of their own, because a full ring keeps the oldest.
#[map(name = "ends")]
pub(crate) static ENDS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// A reading of both clocks: jiffies, nanoseconds of the monotonic one.
#[map(name = "clocks")]
pub(crate) static CLOCKS: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// The tick up to which packets are counted, which the agent moves on; 0: for ever. Programs may outlive their agent, and without it
/// their maps would fill.
#[map(name = "lease")]
pub(crate) static LEASE: Array<u64> = Array::with_max_entries(1, 0);

/// What does not fit the stack. Programs of one CPU run one after the other, so each has it to itself.
#[map(name = "scratch")]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// See [`SCRATCH`].
#[repr(C)]
pub(crate) struct Scratch {
    /// The event being made.
    pub(crate) event: Event,
    /// What of the packet at hand is counted.
    pub(crate) passing: Passing,
    /// The packet at hand, if it is an uncommon one.
    pub(crate) packet: Packet,
    /// What the packet at hand is about, if it is an ICMP error.
    pub(crate) refused: Packet,
}

/// Jiffies an owner may be silent; set by the loader, which knows the kernel's tick.
#[unsafe(no_mangle)]
static SILENCE: u32 = 500;

/// What a first fragment tells the later ones.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FirstFragment {
    /// When it passed, on the monotonic clock.
    pub(crate) at_ns: u64,
    /// Both ports of the key, as they stand in memory.
    pub(crate) ports: u32,
    /// Protocol behind the extension headers.
    pub(crate) protocol: u8,
    /// Index of its direction.
    pub(crate) direction: u8,
    /// 0: a value has no padding.
    pub(crate) spare: u16,
}

/// [`SILENCE`] as the loader set it.
#[inline(always)]
pub(crate) fn silence() -> u32 {
    // SAFETY: a static is readable; volatile because the loader changes it behind the compiler's back.
    unsafe { core::ptr::read_volatile(&raw const SILENCE) }
}

/// Puts an event on a ring; false if it is full.
#[inline(always)]
pub(crate) fn send(ring: &RingBuf, event: &Event) -> bool {
    const NO_WAKEUP: u64 = aya_ebpf::bindings::BPF_RB_NO_WAKEUP as u64;
    ring.output::<Event>(event, NO_WAKEUP).is_ok()
}
