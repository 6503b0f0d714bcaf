//! The maps of the conntrack programs; the loader sets the rings' sizes, and the layout.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use flow_common::abi::{ConntrackCounters, ConntrackLayout};

/// New connections.
#[map(name = "conntrack_new")]
pub(crate) static NEW: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Ended ones: a ring of their own, because a full ring keeps the oldest and a lost end hurts most.
#[map(name = "conntrack_end")]
pub(crate) static END: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Events told and lost.
#[map(name = "conntrack_counters")]
pub(crate) static COUNTERS: PerCpuArray<ConntrackCounters> = PerCpuArray::with_max_entries(1, 0);

/// What was passed to functions that have not returned yet, by task.
#[map(name = "conntrack_calls")]
pub(crate) static CALLS: HashMap<u64, Calls> = HashMap::with_max_entries(4096, 0);

/// The running kernel's layout.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: ConntrackLayout = ConntrackLayout {
    seed: 0,
    namespace: 0,
    conn_bytes: 0,
    skb_conntrack: 0,
    conn_status: 0,
    conn_net: 0,
    conn_extensions: 0,
    net_inum: 0,
    extension_offsets: 0,
    accounting: 0,
    times: 0,
    labels: 0,
    spare: 0,
};

/// Calls of one task, the outermost first. A task that is in the function may be interrupted by packets that call it again,
/// and those calls return before its own does.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Calls {
    pub(crate) depth: u64,
    pub(crate) skb: [u64; 4],
}

/// A member of [`LAYOUT`] as the loader set it: read as volatile, because that is behind the compiler's back.
#[inline(always)]
pub(crate) fn loaded<T: Copy>(member: &'static T) -> T {
    // SAFETY: a reference is readable.
    unsafe { core::ptr::read_volatile(member) }
}
