//! A TCP connection's life from its packets: who began it, when it is over, when another begins on the same key.
//!
//! Takes counted packets in the order the owner sees them. Out-of-window segments are not told apart; counters are
//! the caller's.

use crate::origin;
use crate::parse::{Header, Load};
use flow_common::abi::{
    ACKED_FIN, EVENT_CLOSED, EVENT_GENERATION, FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, FLAGS_TCP, Flow, STATE_CLOSED,
    STATE_GUESSED, STATE_RESET, STATE_REVERSED,
};

/// What of a segment the connection's life depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// TCP flags.
    pub flags: u32,
    /// Sequence number behind its last byte, SYN and FIN counted.
    pub end: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
}

impl Segment {
    /// Reads the header at `offset` of a packet that ends at `end`.
    #[inline(always)]
    pub fn load<L: Load>(load: &L, offset: u32, end: u32) -> Option<Self> {
        let tcp: Tcp = load.load(offset)?;
        let flags = u32::from(u16::from_be(tcp.flags));
        let header = (flags >> 12).wrapping_mul(4);
        let payload = end.saturating_sub(offset).saturating_sub(header);
        let controls = u32::from(flags & FLAG_SYN != 0).wrapping_add(u32::from(flags & FLAG_FIN != 0));
        Some(Self {
            flags: flags & FLAGS_TCP,
            end: u32::from_be(tcp.sequence).wrapping_add(payload).wrapping_add(controls),
            acknowledged: u32::from_be(tcp.acknowledged),
        })
    }
}

/// Whether such a packet begins another connection on a flow in this state.
#[inline(always)]
pub fn reopens(flags: u32, state: u32) -> bool {
    flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN && state & STATE_CLOSED != 0
}

/// Takes a segment into account before it is counted; gives the event it causes, or 0.
#[inline(always)]
pub fn advance(flow: &mut Flow, reversed: bool, segment: &Segment, now_ns: impl FnOnce() -> u64) -> u32 {
    let flags = segment.flags;
    let mut event = 0;
    if reopens(flags, flow.state) {
        reopen(flow, now_ns());
        flow.state = origin::of(flags, reversed);
        event = EVENT_GENERATION;
    } else if flags & FLAG_SYN != 0 && flow.state & STATE_GUESSED != 0 {
        flow.state = flow.state & !(STATE_GUESSED | STATE_REVERSED) | origin::of(flags, reversed);
    }
    let [low, high] = &mut flow.direction;
    let (own, peer) = if reversed { (high, low) } else { (low, high) };
    let acks_fin =
        flags & FLAG_ACK != 0 && own.awaited != 0 && segment.acknowledged.wrapping_sub(own.awaited).cast_signed() >= 0;
    own.flags |= flags | if acks_fin { ACKED_FIN } else { 0 };
    if flags & FLAG_FIN != 0 {
        // 0 means none: acknowledging one byte more is as good a proof.
        peer.awaited = segment.end.max(1);
    }
    if flow.state & STATE_CLOSED == 0 {
        if flags & FLAG_RST != 0 {
            flow.state |= STATE_CLOSED | STATE_RESET;
            event = EVENT_CLOSED;
        } else if flow.finished() {
            flow.state |= STATE_CLOSED;
            event = EVENT_CLOSED;
        }
    }
    event
}

/// Begins a new generation: what was counted so far is its base.
#[inline(always)]
fn reopen(flow: &mut Flow, now_ns: u64) {
    let [low, high] = &mut flow.direction;
    flow.base_packets = [low.packets, high.packets];
    flow.base_bytes = [low.bytes, high.bytes];
    flow.first_ns = now_ns;
    flow.generation = flow.generation.wrapping_add(1);
    for direction in [low, high] {
        direction.flags = 0;
        direction.awaited = 0;
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    ports: [u16; 2],
    sequence: u32,
    acknowledged: u32,
    flags: u16,
    window: u16,
    checksum: u16,
    urgent: u16,
}

// SAFETY: integers only, no padding.
unsafe impl Header for Tcp {}

const _: () = assert!(size_of::<Tcp>() == 20);
