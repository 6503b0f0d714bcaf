//! What the drop programs share with the agent: where they read, what they count, what they tell.

use super::{Count, Key6};

/// Where the programs find what they read in the kernel's structures, in bytes from each one's beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.data`.
    pub skb_data: u32,
    /// `sk_buff.len`.
    pub skb_len: u32,
    /// `sk_buff.data_len`.
    pub skb_data_len: u32,
    /// `sk_buff.protocol`.
    pub skb_protocol: u32,
    /// `sk_buff.network_header`.
    pub skb_network_header: u32,
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `sk_buff._skb_refdst`.
    pub skb_dst: u32,
    /// `net_device.ifindex`.
    pub dev_ifindex: u32,
    /// `net_device.nd_net.net`.
    pub dev_net: u32,
    /// `dst_entry.dev`.
    pub dst_dev: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `sk_buff._nfct`; 0 where the kernel's types do not tell of connection tracking, and the following are not known.
    pub skb_conn: u32,
    /// `nf_conn.status`.
    pub conn_status: u32,
    /// `nf_conn.tuplehash[0].tuple.src.u3`.
    pub conn_src_addr: u32,
    /// `nf_conn.tuplehash[0].tuple.src.u`.
    pub conn_src_port: u32,
    /// `nf_conn.tuplehash[0].tuple.dst.u3`.
    pub conn_dst_addr: u32,
    /// `nf_conn.tuplehash[0].tuple.dst.u`.
    pub conn_dst_port: u32,
}

/// Addresses of kernel functions whose drops are netfilter's, each from its first byte to behind its last; zeroes are none.
/// Kernels below 5.17 give no reason: there the place alone tells.
pub type Places = [[u64; 2]; 2];

/// [`Site::reason`] of what netfilter dropped on a kernel that gives no reasons.
pub const REASON_NETFILTER: u32 = u32::MAX;

/// Value of the map `reasons`: the packet was dropped because a rule says so.
pub const BY_RULE: u32 = 1;
/// Value of the map `reasons`: the packet did not arrive, but no rule says so.
pub const BY_FAILURE: u32 = 2;

/// Key of the map `sites`, whose values are [`Count`]s: drops of one kind at one place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Address in the kernel's text.
    pub location: u64,
    /// The running kernel's number, or [`REASON_NETFILTER`].
    pub reason: u32,
    /// Index of the interface that the packet came from or was to go out by; 0 if it had none yet.
    pub ifindex: u32,
}

/// Key of the map `dropped`: a flow as the tc programs key it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropKey {
    /// The flow's key; IPv4 as [`Key6::from`] puts it.
    pub key: Key6,
    /// 4 or 6.
    pub family: u32,
    /// 0: a key has no padding.
    pub spare: u32,
}

/// Value of the map `dropped`: what of a flow was dropped, for the reasons that the map `reasons` has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Packets and layer-3 bytes from the key's end 0 to end 1 and back, dropped [`BY_RULE`].
    pub by_rule: [Count; 2],
    /// The same, dropped [`BY_FAILURE`].
    pub by_failure: [Count; 2],
    /// Nanoseconds of the monotonic clock at the last drop.
    pub last_ns: u64,
    /// Where the last one was.
    pub site: Site,
}

/// A record of the ring `drops`: a flow's first drop since its entry was made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// The flow.
    pub key: DropKey,
    /// Its first drop.
    pub dropped: Dropped,
}

/// Value of the per-CPU map `drop_counters`; packets, to be summed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounters {
    /// Drops with a reason in this network namespace; all of them are in `sites` but the next ones.
    pub seen: u64,
    /// Of them those that found no room in `sites`.
    pub sites_full: u64,
    /// Drops with a reason of other namespaces, or of packets that are on no interface.
    pub elsewhere: u64,
    /// Of `seen` those with one of the reasons that `reasons` has; all of them are in `dropped` but the next ones.
    pub wanted: u64,
    /// Of them those whose flow found no room in `dropped`.
    pub flows_full: u64,
    /// Of them later fragments, which do not show their flow.
    pub fragments: u64,
    /// Of them those that are no IP, or whose headers do not lie together or contradict themselves.
    pub unreadable: u64,
    /// Events that found the ring full; the sweep finds the flow.
    pub events_lost: u64,
}

const _: () = assert!(size_of::<Offsets>() == 72 && size_of::<Site>() == 16 && size_of::<DropKey>() == 48);
const _: () = assert!(size_of::<Dropped>() == 88 && size_of::<DropEvent>() == 136 && size_of::<DropCounters>() == 64);
