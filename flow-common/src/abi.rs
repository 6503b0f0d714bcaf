//! What kernel programs and agent share in memory: keys, values and events of the maps.
//!
//! Plain `#[repr(C)]` data without padding and without imports, so that both sides see the same bytes. The kernel
//! only ever adds to counters; user space never writes a value back. Nothing here parses, counts or formats.

pub mod drop;

/// Of what lies in pinned maps: an agent adopts those of another only if it is the same. Raised with every change of a type below that
/// the maps of flows, counters and rings hold, or of its meaning.
pub const VERSION: u32 = 1;

/// How long the programs count without an agent.
pub const LEASE_MS: u32 = 600_000;

/// Ends, ports and protocol of an IPv4 flow, the ends sorted so that both directions have one key.
///
/// The ends are ordered by (address, port) as loaded, which is an order of its own and not the numerical one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key4 {
    /// Addresses in network byte order as loaded; end 0 is the lower one.
    pub addr: [u32; 2],
    /// Ports in network byte order as loaded, of the same ends. ICMP: the identifier, then type * 256 + code of the
    /// request, whatever the order of the ends.
    pub port: [u16; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// 0. Room for a zone, VRF or namespace where addresses overlap.
    pub scope: [u8; 3],
}

/// Ends, ports and protocol of an IPv6 flow; as [`Key4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key6 {
    /// Addresses in network byte order as loaded, each in two halves; end 0 is the lower one.
    pub addr: [[u64; 2]; 2],
    /// As [`Key4::port`].
    pub port: [u16; 2],
    /// Protocol number behind the extension headers.
    pub protocol: u8,
    /// As [`Key4::scope`].
    pub scope: [u8; 3],
}

impl Key4 {
    /// A key from its words: `ports` are both ports as they stand in memory.
    ///
    /// Keys are made of whole words: the kernel side's compiler turns odd bytes into calls of `memset` and `memcpy`, a byte at
    /// a time.
    #[inline(always)]
    pub const fn new(addr: [u32; 2], ports: u32, protocol: u8) -> Self {
        Self::from_words([addr[0], addr[1], ports, protocol as u32])
    }

    #[inline(always)]
    const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: of one size, integers without padding; 16 bytes on both sides.
        unsafe { core::mem::transmute::<[u32; 4], Self>(words) }
    }

    #[inline(always)]
    const fn words(self) -> [u32; 4] {
        // SAFETY: as above.
        unsafe { core::mem::transmute::<Self, [u32; 4]>(self) }
    }
}

impl From<Key4> for Key6 {
    /// The form an [`Event`] carries an IPv4 key in: addresses in the first half of each end.
    #[inline(always)]
    fn from(key: Key4) -> Self {
        let [low, high, ports, protocol] = key.words();
        Self::from_words([low as u64, 0, high as u64, 0, ports as u64 | (protocol as u64) << 32])
    }
}

impl Key6 {
    /// A key from its words, as [`Key4::new`].
    #[inline(always)]
    pub const fn new(addr: [[u64; 2]; 2], ports: u32, protocol: u8) -> Self {
        let [[a, b], [c, d]] = addr;
        Self::from_words([a, b, c, d, ports as u64 | (protocol as u64) << 32])
    }

    /// The IPv4 key of an [`Event`] whose family is 4.
    #[inline(always)]
    pub const fn to_key4(&self) -> Key4 {
        let [low, _, high, _, tail] = self.words();
        Key4::from_words([low as u32, high as u32, tail as u32, (tail >> 32) as u32])
    }

    /// Both ports as they stand in memory.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.words()[4] as u32
    }

    #[inline(always)]
    const fn from_words(words: [u64; 5]) -> Self {
        // SAFETY: of one size, integers without padding; 40 bytes on both sides.
        unsafe { core::mem::transmute::<[u64; 5], Self>(words) }
    }

    #[inline(always)]
    const fn words(&self) -> [u64; 5] {
        // SAFETY: as above.
        unsafe { core::mem::transmute::<Self, [u64; 5]>(*self) }
    }
}

/// [`Direction::pending_packets`] while the owner has counted since any other point saw a packet.
pub const FRESH: u32 = u32::MAX;

/// One direction of a flow. Counters are cumulative over all generations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Packets (socket buffers) its owner counted.
    pub packets: u64,
    /// Layer-3 bytes its owner counted.
    pub bytes: u64,
    /// Jiffies (low half) when its owner last counted.
    pub last: u32,
    /// The attachment point that counts this direction, see [`owner`]; 0 while no packet of it was seen.
    pub owner: u32,
    /// Packets the candidate saw that the owner did not count, or [`FRESH`].
    pub pending_packets: u32,
    /// The point that noticed the owner's silence first.
    pub candidate: u32,
    /// Layer-3 bytes of the pending packets.
    pub pending_bytes: u64,
    /// TCP flags of this generation in the low half ([`FLAG_FIN`] and its neighbours), progress of the end above
    /// ([`ACKED_FIN`]).
    pub flags: u32,
    /// The acknowledgement number that confirms the other direction's FIN; 0 while there was none.
    pub awaited: u32,
}

/// TCP flag.
pub const FLAG_FIN: u32 = 0x01;
/// TCP flag.
pub const FLAG_SYN: u32 = 0x02;
/// TCP flag.
pub const FLAG_RST: u32 = 0x04;
/// TCP flag.
pub const FLAG_PSH: u32 = 0x08;
/// TCP flag.
pub const FLAG_ACK: u32 = 0x10;
/// The TCP flags in [`Direction::flags`], CWR, ECE and AE among them.
pub const FLAGS_TCP: u32 = 0x1ff;
/// In [`Direction::flags`]: this direction has acknowledged the other one's FIN.
pub const ACKED_FIN: u32 = 1 << 16;

/// The value of both flow maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Direction 0 is from the key's end 0 to its end 1.
    pub direction: [Direction; 2],
    /// Nanoseconds of the monotonic clock when this generation's first packet was counted.
    pub first_ns: u64,
    /// [`Direction::packets`] when this generation began.
    pub base_packets: [u64; 2],
    /// [`Direction::bytes`] when this generation began.
    pub base_bytes: [u64; 2],
    /// How often a SYN began a new connection on this key after the one before was closed.
    pub generation: u32,
    /// [`STATE_REVERSED`] and its neighbours.
    pub state: u32,
}

/// In [`Flow::state`]: end 1 originated the connection.
pub const STATE_REVERSED: u32 = 1;
/// In [`Flow::state`]: the originator is a guess from the first packet, not from a SYN, its answer or an ICMP type.
pub const STATE_GUESSED: u32 = 1 << 1;
/// In [`Flow::state`]: the connection is over, by FIN both ways and the last acknowledgement, or by RST.
pub const STATE_CLOSED: u32 = 1 << 2;
/// In [`Flow::state`]: a RST closed it.
pub const STATE_RESET: u32 = 1 << 3;

/// In [`Flow::state`]: an ICMP error says that packets of this generation do not arrive.
pub const STATE_REFUSED: u32 = 1 << 4;

/// In [`Flow::state`]: fragments were among the packets of this generation.
pub const STATE_FRAGMENTED: u32 = 1 << 5;

impl Flow {
    /// Index of the direction that originated the connection.
    #[inline(always)]
    pub const fn originator(&self) -> usize {
        (self.state & STATE_REVERSED) as usize
    }

    /// Packets and bytes from end 0, then from end 1.
    #[inline(always)]
    pub const fn counters(&self) -> [u64; 4] {
        let [a, b] = &self.direction;
        [a.packets, a.bytes, b.packets, b.bytes]
    }

    /// Whether FIN and last acknowledgement went both ways.
    #[inline(always)]
    pub const fn finished(&self) -> bool {
        let [a, b] = &self.direction;
        a.flags & b.flags & FLAG_FIN != 0 && a.flags & b.flags & ACKED_FIN != 0
    }
}

/// Packing of [`Direction::owner`] and [`Direction::candidate`]: `ifindex << 2 | is_pod << 1 | is_egress`.
pub mod owner {
    /// Bit of the egress hook.
    pub const EGRESS: u32 = 1;
    /// Bit of a Pod's own interface.
    pub const POD: u32 = 2;

    /// Packs a point.
    #[inline(always)]
    pub const fn pack(ifindex: u32, is_pod: bool, is_egress: bool) -> u32 {
        ifindex << 2 | (is_pod as u32) << 1 | is_egress as u32
    }

    /// Interface index of a point.
    #[inline(always)]
    pub const fn ifindex(owner: u32) -> u32 {
        owner >> 2
    }

    /// Whether the point is a Pod's own interface.
    #[inline(always)]
    pub const fn is_pod(owner: u32) -> bool {
        owner & POD != 0
    }

    /// Whether the point is an egress hook.
    #[inline(always)]
    pub const fn is_egress(owner: u32) -> bool {
        owner & EGRESS != 0
    }
}

/// [`Event::kind`]: the first packet of a new map entry.
pub const EVENT_NEW: u32 = 1;
/// [`Event::kind`]: a SYN began a new generation of a closed entry.
pub const EVENT_GENERATION: u32 = 2;
/// [`Event::kind`]: the connection is over. On the ring `ends`.
pub const EVENT_CLOSED: u32 = 3;

/// [`Event::kind`], with the index of the direction added: another point owns it from here on, the direction's candidate. The flow is
/// otherwise as it was before, its owner the old one: so it is known which packets were whose. Without room on the ring there is no
/// take-over, so none goes untold.
pub const EVENT_TAKEOVER: u32 = 4;

/// [`Event::kind`]: an ICMP error says for the first time that the flow's packets do not arrive. Nothing was counted.
pub const EVENT_REFUSED: u32 = 6;

/// A record of the rings `events` and `ends`; tells all, so that user space needs no look-up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// [`EVENT_NEW`] and its neighbours.
    pub kind: u32,
    /// 4 or 6. The key of an IPv4 flow stands as [`Key6::from`] puts it.
    pub family: u32,
    /// The flow's key.
    pub key: Key6,
    /// The flow as it was at the event.
    pub flow: Flow,
}

/// Packets and their layer-3 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Socket buffers.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

/// Why a packet that was seen is neither in a flow's counters nor annotated.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Passed another point while its direction's owner was silent, before that point took over.
    Takeover = 0,
    /// No room in the flow map.
    MapFull = 1,
    /// Headers that contradict themselves or the frame.
    Malformed = 2,
    /// Not IP; counted by its ethertype as well.
    NotIp = 3,
    /// IP whose headers go deeper than is followed: more than six extension headers.
    Unsupported = 4,
}

impl Reason {
    /// Every reason; the position is the index in [`HookCounters::lost`].
    pub const ALL: [Self; 5] = [Self::Takeover, Self::MapFull, Self::Malformed, Self::NotIp, Self::Unsupported];

    /// Stable name: a metric label and a selector name in accounting records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Takeover => "takeover",
            Self::MapFull => "map_full",
            Self::Malformed => "malformed",
            Self::NotIp => "not_ip",
            Self::Unsupported => "unsupported",
        }
    }
}

/// What one hook of one interface saw; a slot per CPU, to be summed.
///
/// By construction `seen` = counted in flows + `annotated` + every `lost` but [`Reason::Takeover`], whose packets are a part
/// of `annotated` that nobody else counted: `seen` = counted + (annotated - takeover) + sum of `lost`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookCounters {
    /// Everything that passed.
    pub seen: Count,
    /// Segments of it: as many as a GSO packet will be cut into, else one a packet.
    pub segments: u64,
    /// Packets of directions that another point owned.
    pub annotated: Count,
    /// Per [`Reason`], at its index.
    pub lost: [Count; Reason::ALL.len()],
    /// Events of new flows and generations that found the ring full. Not packets; the sweep finds the flow.
    ///
    /// A take-over that finds it full is put off, not lost.
    pub events_lost: u64,
    /// Events of closed connections that found the ring full.
    pub ends_lost: u64,
    /// Later fragments whose first was not seen within 30 s; counted in a flow with ports 0.
    pub fragments_alone: u64,
}

/// Value of the per-CPU map `counters`: ingress, then egress hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// By [`owner::EGRESS`].
    pub hook: [HookCounters; 2],
}

/// Entries of the map `slots`: interface index modulo this -> slot in `counters`. Slot 0 is everything unknown.
pub const SLOTS: u32 = 1 << 16;

/// How long an owner may be silent before another point takes over, and a map entry must be quiet before it is deleted.
pub const SILENCE_MS: u32 = 2_000;

/// Ticks that a low half is taken to be ahead of the clock, rather than nearly a whole round behind: the clock is read first, and packets
/// come before the other is. Some hours, whatever the kernel's tick.
const AHEAD: u32 = 1 << 24;

/// Ticks from `last` to `now`, of both the low halves; less than zero where `last` is a little ahead ([`AHEAD`]).
#[inline(always)]
pub const fn ticks_since(last: u32, now: u32) -> i64 {
    let since = now.wrapping_sub(last);
    if since > u32::MAX - AHEAD { -(last.wrapping_sub(now) as i64) } else { since as i64 }
}

/// How long a first fragment names the flow of the later ones.
pub const FRAGMENTS_NS: u64 = 30_000_000_000;

/// Bytes of the kernel's `struct nf_conn` that a [`ConntrackEvent`] has room for, in words.
pub const CONN_WORDS: usize = 32;

/// [`ConntrackEvent::kind`]: a connection was entered into the kernel's table.
pub const CONNTRACK_NEW: u32 = 0;
/// [`ConntrackEvent::kind`]: the kernel forgets a connection.
pub const CONNTRACK_END: u32 = 1;

/// In [`ConntrackEvent::parts`]: `accounting` was read.
pub const PART_ACCOUNTING: u32 = 1;
/// In [`ConntrackEvent::parts`]: `times` was read.
pub const PART_TIMES: u32 = 1 << 1;
/// In [`ConntrackEvent::parts`]: `labels` was read.
pub const PART_LABELS: u32 = 1 << 2;

/// A record of the rings `conntrack_new` and `conntrack_end`: the connection as the kernel has it in memory, to be decoded by
/// what the agent knows of the running kernel's types.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackEvent {
    /// Nanoseconds of the monotonic clock when it happened.
    pub at_ns: u64,
    /// The kernel's tick then.
    pub jiffies: u64,
    /// Where the connection is in the kernel's memory: no other has the same while it lives.
    pub address: u64,
    /// What the kernel's numbers of connections are made with; 0 where it cannot be read, or before the first was made.
    pub seed: [u64; 2],
    /// Packets and bytes of the originator, then of the responder.
    pub accounting: [u64; 4],
    /// Nanoseconds since 1970 when it began and when it ended.
    pub times: [u64; 2],
    /// Its 128 labels.
    pub labels: [u64; 2],
    /// [`CONNTRACK_NEW`] or [`CONNTRACK_END`].
    pub kind: u32,
    /// Which of the parts above were read; the others mean nothing.
    pub parts: u32,
    /// Number of the network namespace that tracks it.
    pub namespace: u32,
    /// Bytes of `conn` that were read; the others mean nothing.
    pub length: u32,
    /// The beginning of the `struct nf_conn`.
    pub conn: [u64; CONN_WORDS],
}

/// The value of the per-CPU map `conntrack_counters`; by [`ConntrackEvent::kind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackCounters {
    /// Events put on the ring.
    pub told: [u64; 2],
    /// Events that found it full, or no place to wait for the function's return.
    pub lost: [u64; 2],
}

/// What the conntrack programs need to know of the running kernel: offsets in bytes. Set by the loader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackLayout {
    /// Address of the kernel's seed for numbers of connections; 0 if it is not known.
    pub seed: u64,
    /// The only network namespace to tell of.
    pub namespace: u32,
    /// How much of a `struct nf_conn` to read, at most 8 * [`CONN_WORDS`].
    pub conn_bytes: u32,
    /// `sk_buff._nfct`.
    pub skb_conntrack: u32,
    /// `nf_conn.status`.
    pub conn_status: u32,
    /// `nf_conn.ct_net.net`.
    pub conn_net: u32,
    /// `nf_conn.ext`.
    pub conn_extensions: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `nf_ct_ext.offset`.
    pub extension_offsets: u32,
    /// Positions in it of accounting, times and labels; 16 or above: the kernel has none.
    pub accounting: u32,
    /// See `accounting`.
    pub times: u32,
    /// See `accounting`.
    pub labels: u32,
    /// 0.
    pub spare: u32,
}

// Keys are put together from words.
const _: () = assert!(cfg!(target_endian = "little"));
const _: () = assert!(size_of::<Key4>() == 16 && size_of::<Key6>() == 40);
const _: () = assert!(size_of::<Direction>() == 48 && size_of::<Flow>() == 144 && size_of::<Event>() == 192);
const _: () = assert!(size_of::<HookCounters>() == 16 + 8 + 16 + 16 * Reason::ALL.len() + 24);
const _: () = assert!(size_of::<ConntrackEvent>() == 120 + 8 * CONN_WORDS);
const _: () = assert!(size_of::<ConntrackCounters>() == 32 && size_of::<ConntrackLayout>() == 56);
