//! One connection: what it counted, what of that was exported, and where in its life it is.

use std::time::Duration;

use flow_common::abi::{self, Direction};
use flow_common::record::TcpState;

use super::counters::Counters;
use super::entry::Entry;
use super::slab::NONE;
use crate::conntrack::tcp;

/// It is over; [`Connection::reason`] says why.
pub(super) const OVER: u32 = 1;
/// Its last record was given; only stray packets can come.
pub(super) const DONE: u32 = 1 << 1;
/// Its own packets closed it.
pub(super) const CLOSED: u32 = 1 << 2;
/// It waits in the list of what may be due.
pub(super) const QUEUED: u32 = 1 << 3;
/// It is of those that are exported.
pub(super) const EXPORTS: u32 = 1 << 4;
/// A record of it was given.
pub(super) const EXPORTED: u32 = 1 << 5;
/// Connection tracking knows it.
pub(super) const TRACKED: u32 = 1 << 6;
/// It was exported as idle, and no packet came since.
pub(super) const IDLE: u32 = 1 << 7;
/// It has a deadline.
pub(super) const SCHEDULED: u32 = 1 << 8;
/// Its totals have to go on from connection tracking's.
pub(super) const WANTS_TOTALS: u32 = 1 << 9;
/// Its beginning is to be asked of connection tracking.
pub(super) const WANTS_START: u32 = 1 << 10;
/// What its totals go on from is settled; which entry counts, too.
pub(super) const FIXED: u32 = 1 << 11;
/// The dump that is running has it.
pub(super) const IN_DUMP: u32 = 1 << 12;
/// No entry counts for it any more.
pub(super) const DETACHED: u32 = 1 << 13;
/// There is one at this number.
pub(super) const LIVE: u32 = 1 << 14;
/// Its originator is end 1 of the key of the entry that counts.
pub(super) const FROM_END_1: u32 = 1 << 15;

/// An answer by ICMP says that its packets do not arrive.
pub(super) const REFUSED: u32 = 1 << 16;
/// What is known of its drops has changed since its last record.
pub(super) const DENIAL_NEWS: u32 = 1 << 17;

/// Fragments were among its packets.
pub(super) const FRAGMENTED: u32 = 1 << 18;
/// It was there before the agent, and its earlier packets are not in its totals.
pub(super) const INCOMPLETE: u32 = 1 << 19;

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const GRE: u8 = 47;

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Packets and bytes of the originator, then of the responder.
    pub(super) total: Counters,
    /// What of it was exported.
    pub(super) exported: Counters,
    pub(super) start_ns: u64,
    /// Time of the last packet.
    pub(super) last_ns: u64,
    /// When the last record was given, or the first packet came; of one that is over, when it ended.
    pub(super) mark_ns: u64,
    /// 0 while it is not settled.
    pub(super) flow_id: u64,
    /// The entry whose counters are the connection's.
    pub(super) counting: u32,
    /// The entry of its other translation.
    pub(super) other: u32,
    /// Its translated tuples.
    pub(super) tracked: u32,
    /// What it counted at an entry that counts for another connection by now.
    pub(super) portions: u32,
    /// Connection tracking's number of it.
    pub(super) ct_id: u32,
    pub(super) revision: u32,
    pub(super) flags: u32,
    /// TCP flags of the originator and of the responder.
    pub(super) tcp_flags: [u16; 2],
    pub(super) zone: u16,
    pub(super) state: State,
    pub(super) reason: Reason,
    /// How often connection tracking was asked.
    pub(super) attempts: u8,
}

const _: () = assert!(size_of::<Connection>() <= 136);

/// Why a connection is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    #[default]
    End,
    Forced,
    Resources,
}

/// State of a TCP connection by the packets seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    #[default]
    None,
    SynSent,
    SynReceived,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Closed,
}

impl Connection {
    pub(super) fn new(now_ns: u64, revision: u32) -> Self {
        Self {
            total: [0; 4],
            exported: [0; 4],
            start_ns: now_ns,
            last_ns: 0,
            mark_ns: now_ns,
            flow_id: 0,
            counting: NONE,
            other: NONE,
            tracked: NONE,
            portions: NONE,
            ct_id: 0,
            revision,
            flags: LIVE,
            tcp_flags: [0; 2],
            zone: 0,
            state: State::None,
            reason: Reason::End,
            attempts: 0,
        }
    }

    #[inline]
    pub(super) fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    #[inline]
    pub(super) fn set(&mut self, flags: u32, on: bool) {
        self.flags = if on { self.flags | flags } else { self.flags & !flags };
    }

    /// Sets flags that stay.
    #[inline]
    pub(super) fn set_if(&mut self, flags: u32, on: bool) {
        self.flags |= if on { flags } else { 0 };
    }

    /// Whether it counted what was not exported, or more is known of its drops.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.total != self.exported || self.has(DENIAL_NEWS)
    }

    /// Whether the responder sent anything.
    pub(super) fn is_answered(&self) -> bool {
        self.total[2] > 0
    }

    /// Whether a RST is all that the responder had to say to a SYN.
    pub(super) fn is_reset_at_once(&self) -> bool {
        let [there, back] = self.tcp_flags.map(u32::from);
        let said = abi::FLAG_SYN | abi::FLAG_FIN | abi::FLAG_PSH;
        there & abi::FLAG_SYN != 0 && back & abi::FLAG_RST != 0 && back & said == 0
    }

    /// Adds what its entry counted, and takes over TCP's flags and state.
    #[inline]
    pub(super) fn add(&mut self, entry: &Entry, delta: Counters, value: &abi::Flow, last_ns: u64) {
        for (total, delta) in self.total.iter_mut().zip(entry.oriented(delta)) {
            *total += delta;
        }
        self.last_ns = self.last_ns.max(last_ns).max(self.start_ns);
        let [a, b] = &value.direction;
        let (there, back) = if entry.has(super::entry::REVERSED) { (b, a) } else { (a, b) };
        self.tcp_flags[0] |= (there.flags & abi::FLAGS_TCP) as u16;
        self.tcp_flags[1] |= (back.flags & abi::FLAGS_TCP) as u16;
        if value.state & abi::STATE_REFUSED != 0 {
            self.set(REFUSED, true);
        }
        if let Some(state) = State::tracked(value.state) {
            self.state = state;
        } else if value.direction[0].flags | value.direction[1].flags != 0 {
            self.state = State::of(value.state, there, back);
        }
    }

    /// Exchanges originator and responder.
    pub(super) fn turn(&mut self) {
        let turned = |[a, b, c, d]: Counters| [c, d, a, b];
        self.total = turned(self.total);
        self.exported = turned(self.exported);
        self.tcp_flags.reverse();
    }

    /// How long the kernel's connection tracking would keep it without a packet, by its default settings.
    pub(super) fn patience(&self, protocol: u8) -> Duration {
        Duration::from_secs(match (protocol, self.is_answered()) {
            (TCP, _) => match self.state {
                State::SynSent | State::FinWait | State::TimeWait => 120,
                State::None | State::SynReceived | State::CloseWait => 60,
                State::LastAck => 30,
                State::Closed => 10,
                State::Established => 432_000,
            },
            (UDP | UDP_LITE, true) => 120,
            (SCTP, true) => 210,
            (DCCP, true) => 43_200,
            (GRE, true) => 180,
            (UDP | UDP_LITE | SCTP | GRE | 1 | 58, _) => 30,
            (DCCP, false) => 240,
            _ => 600,
        })
    }
}

impl State {
    /// As connection tracking has it, where the value is from there.
    fn tracked(state: u32) -> Option<Self> {
        Some(match u8::try_from(state >> tcp::SHIFT).ok()? {
            tcp::SYN_SENT | tcp::SYN_SENT2 => Self::SynSent,
            tcp::SYN_RECV => Self::SynReceived,
            tcp::ESTABLISHED => Self::Established,
            tcp::FIN_WAIT => Self::FinWait,
            tcp::CLOSE_WAIT => Self::CloseWait,
            tcp::LAST_ACK => Self::LastAck,
            tcp::TIME_WAIT => Self::TimeWait,
            tcp::CLOSE => Self::Closed,
            _ => return None,
        })
    }

    /// By the flags that each end has sent, and what it has acknowledged.
    fn of(state: u32, there: &Direction, back: &Direction) -> Self {
        let fin = |direction: &Direction| direction.flags & abi::FLAG_FIN != 0;
        let acked = |direction: &Direction| direction.flags & abi::ACKED_FIN != 0;
        if state & abi::STATE_RESET != 0 {
            return Self::Closed;
        }
        match (fin(there), fin(back)) {
            (true, true) if state & abi::STATE_CLOSED != 0 => Self::TimeWait,
            (true, true) => Self::LastAck,
            (true, false) if acked(back) => Self::CloseWait,
            (false, true) if acked(there) => Self::CloseWait,
            (true, false) | (false, true) => Self::FinWait,
            (false, false) => Self::opening(there.flags, back.flags),
        }
    }

    fn opening(there: u32, back: u32) -> Self {
        let syn_alone = |flags: u32| flags & abi::FLAG_SYN != 0 && flags & abi::FLAG_ACK == 0;
        match (syn_alone(there), back & abi::FLAG_SYN != 0) {
            (true, true) => Self::SynReceived,
            (true, false) => Self::SynSent,
            (false, _) => Self::Established,
        }
    }
}

impl From<State> for TcpState {
    fn from(state: State) -> Self {
        match state {
            State::None => TcpState::None,
            State::SynSent => TcpState::SynSent,
            State::SynReceived => TcpState::SynReceived,
            State::Established => TcpState::Established,
            State::FinWait => TcpState::FinWait1,
            State::CloseWait => TcpState::CloseWait,
            State::LastAck => TcpState::LastAck,
            State::TimeWait => TcpState::TimeWait,
            State::Closed => TcpState::Closed,
        }
    }
}
