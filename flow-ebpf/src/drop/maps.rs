//! The maps, with the sizes a loader would get that sets none, and the values that the loader sets.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use flow_common::abi::Count;
use flow_common::abi::drop::{DropCounters, DropKey, Dropped, Offsets, Places, Site};

/// Drops by reason, interface and place.
#[map(name = "sites")]
pub(crate) static SITES: HashMap<Site, Count> = HashMap::with_max_entries(1, 0);

/// Reason -> what it means for the packet's flow; what is not in it is counted in `sites` alone.
#[map(name = "reasons")]
pub(crate) static REASONS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// What of each flow was dropped.
#[map(name = "dropped")]
pub(crate) static DROPPED: HashMap<DropKey, Dropped> = HashMap::with_max_entries(1, 0);

/// Flows that are new in `dropped`.
#[map(name = "drops")]
pub(crate) static DROPS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// See [`DropCounters`].
#[map(name = "drop_counters")]
pub(crate) static COUNTERS: PerCpuArray<DropCounters> = PerCpuArray::with_max_entries(1, 0);

/// Set by the loader, which reads the kernel's types.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    skb_head: 0,
    skb_data: 0,
    skb_len: 0,
    skb_data_len: 0,
    skb_protocol: 0,
    skb_network_header: 0,
    skb_dev: 0,
    skb_dst: 0,
    dev_ifindex: 0,
    dev_net: 0,
    dst_dev: 0,
    net_inum: 0,
    skb_conn: 0,
    conn_status: 0,
    conn_src_addr: 0,
    conn_src_port: 0,
    conn_dst_addr: 0,
    conn_dst_port: 0,
};

/// Reasons up to this one are none: the kernel frees what has done its duty, or does not say.
#[unsafe(no_mangle)]
static NOT_SPECIFIED: u32 = 0;

/// Number of the network namespace whose drops are counted.
#[unsafe(no_mangle)]
static NAMESPACE: u32 = 0;

/// Where netfilter drops on a kernel without reasons.
#[unsafe(no_mangle)]
static PLACES: Places = [[0; 2]; 2];

/// Reads a value that the loader set behind the compiler's back.
macro_rules! set_by_loader {
    ($place:expr) => {
        // SAFETY: a static is readable.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}

/// Offset of one field.
macro_rules! offset {
    ($field:ident) => {
        $crate::maps::offset_of(|offsets| unsafe { &raw const (*offsets).$field })
    };
}
pub(crate) use offset;

/// The offset that `field` points to.
#[inline(always)]
pub(crate) fn offset_of(field: impl FnOnce(*const Offsets) -> *const u32) -> usize {
    // SAFETY: a field of a static.
    unsafe { core::ptr::read_volatile(field(&raw const OFFSETS)) as usize }
}

#[inline(always)]
pub(crate) fn not_specified() -> u32 {
    set_by_loader!(NOT_SPECIFIED)
}

#[inline(always)]
pub(crate) fn namespace() -> u32 {
    set_by_loader!(NAMESPACE)
}

/// Whether netfilter drops at this place.
#[inline(always)]
pub(crate) fn is_netfilter(location: u64) -> bool {
    let [[a, b], [c, d]] = set_by_loader!(PLACES);
    (location > a && location <= b) || (location > c && location <= d)
}
