//! What makes both sides differ, as far as either of them knows: judged by values alone.

use std::net::IpAddr;

use flow_common::abi;
use serde::{Deserialize, Serialize};

use super::{Difference, Outcome};
use crate::conntrack::{Entry, status};
use crate::table::Counted;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// Why both sides differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its packets pass by a flow table or in hardware, past connection tracking.
    Offloaded,
    /// It was there before the agent, and its earlier packets could not be had.
    BeganBefore,
    /// Connection tracking counts a fragmented datagram once.
    Fragments,
    /// Packets were dropped between one count and the other.
    Dropped,
    /// An error message of ICMP: connection tracking counts none.
    IcmpError,
    /// Packets go both ways, and connection tracking does not know them: a rule exempts them, or they pass it by.
    Untracked,
    /// Segments of a TCP connection that was over, or whose beginning was not seen: invalid to connection tracking.
    Stray,
    /// Sent to many; connection tracking knows only what is delivered.
    Multicast,
    /// It passes no interface that is counted: the Node speaks to itself.
    Loopback,
    /// None of its ends is a Pod of this Node.
    NotLocal,
    /// The same ends are a connection of another zone, which the flow is joined with.
    OtherZone,
    /// Its flow had ended, and there was no room to keep its totals.
    NotKept,
    /// Connection tracking's end of it was never told.
    EndNotTold,
}

impl Reason {
    /// A stable name: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offloaded => "offloaded",
            Self::BeganBefore => "began_before",
            Self::Fragments => "fragments",
            Self::Dropped => "dropped",
            Self::IcmpError => "icmp_error",
            Self::Untracked => "untracked",
            Self::Stray => "stray",
            Self::Multicast => "multicast",
            Self::Loopback => "loopback",
            Self::NotLocal => "not_local",
            Self::OtherZone => "other_zone",
            Self::NotKept => "not_kept",
            Self::EndNotTold => "end_not_told",
        }
    }

    /// What it means, in a few words.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Offloaded => "offloaded: packets pass connection tracking by",
            Self::BeganBefore => "began before the agent",
            Self::Fragments => "fragments: conntrack counts a datagram once",
            Self::Dropped => "packets were dropped between the two counts",
            Self::IcmpError => "ICMP error: conntrack counts none",
            Self::Untracked => "untracked: exempt by a rule or past conntrack",
            Self::Stray => "stray segments, invalid to conntrack",
            Self::Multicast => "multicast or broadcast, delivered nowhere",
            Self::Loopback => "the Node to itself, on no counted interface",
            Self::NotLocal => "no Pod of this Node",
            Self::OtherZone => "the flow is another zone's connection",
            Self::NotKept => "there was no room to keep its totals",
            Self::EndNotTold => "conntrack's end of it was not told",
        }
    }
}

/// A connection that both know, with these counters; none if they are the same.
pub(super) fn differing(counted: &Counted, total: [u64; 4], entry: &Entry) -> Option<Difference> {
    let conntrack = totals(entry)?;
    if total == conntrack {
        return None;
    }
    let marks = &counted.marks;
    let has_more = total.iter().zip(conntrack).all(|(ebpf, conntrack)| *ebpf >= conntrack);
    let apart = total[0].abs_diff(conntrack[0]) + total[2].abs_diff(conntrack[2]);
    let reason = if entry.status & (status::OFFLOAD | status::HW_OFFLOAD) != 0 {
        Some(Reason::Offloaded)
    } else if marks.is_incomplete {
        Some(Reason::BeganBefore)
    } else if marks.is_fragmented && has_more {
        Some(Reason::Fragments)
    } else if apart > 0 && apart <= marks.dropped {
        Some(Reason::Dropped)
    } else if has_more && entry.original.protocol == TCP && are_resets(total, conntrack, marks.tcp_flags) {
        Some(Reason::Stray)
    } else {
        None
    };
    Some(of_entry(Outcome::Differs, reason, entry, total))
}

/// Whether what one side counted beyond the other may be resets: a closed end answers a segment that came twice by one, which is invalid
/// to connection tracking.
fn are_resets(more: [u64; 4], fewer: [u64; 4], tcp_flags: [u16; 2]) -> bool {
    /// The longest headers of IPv6 without extensions and of TCP.
    const HEADERS: u64 = 40 + 60;
    (0..2).all(|direction| {
        let [packets, bytes] = [0, 1].map(|at| more[direction * 2 + at] - fewer[direction * 2 + at]);
        let has_reset = u32::from(tcp_flags[direction]) & abi::FLAG_RST != 0;
        packets == 0 && bytes == 0 || has_reset && bytes <= packets * HEADERS
    })
}

/// A flow that connection tracking does not know.
pub(super) fn only_ebpf(counted: &Counted) -> Difference {
    let (marks, tuple) = (&counted.marks, &counted.scope.tuple);
    let is_answered = counted.total[2] > 0;
    let saw_syn = marks.tcp_flags.iter().any(|flags| u32::from(*flags) & abi::FLAG_SYN != 0);
    let reason = match icmp_type(tuple.src, tuple.protocol, tuple.dst_port) {
        Some(Icmp::Error) => Some(Reason::IcmpError),
        Some(Icmp::Exempt) => Some(Reason::Untracked),
        Some(Icmp::Tracked) | None if marks.dropped > 0 => Some(Reason::Dropped),
        Some(Icmp::Tracked) | None if marks.is_incomplete => Some(Reason::BeganBefore),
        _ if marks.is_fragmented && tuple.src_port == 0 && tuple.dst_port == 0 => Some(Reason::Fragments),
        _ if is_multicast(tuple.dst) || is_multicast(tuple.src) => Some(Reason::Multicast),
        _ if tuple.protocol == TCP && !saw_syn => Some(Reason::Stray),
        _ if is_answered => Some(Reason::Untracked),
        _ => None,
    };
    Difference {
        outcome: Outcome::OnlyEbpf,
        reason,
        protocol: tuple.protocol,
        src: (tuple.src, tuple.src_port),
        dst: (tuple.dst, tuple.dst_port),
        zone: counted.scope.zone,
        ebpf: counted.total,
        conntrack: [0; 4],
    }
}

/// A connection of which no packet was counted; `known` is what the caller knows of it.
pub(super) fn only_conntrack(entry: &Entry, known: Option<Reason>, is_local: bool) -> Difference {
    let tuple = &entry.original;
    let is_loopback = tuple.src.is_loopback() || tuple.dst.is_loopback() || tuple.src == entry.reply.src;
    let reason = match known {
        _ if is_loopback => Some(Reason::Loopback),
        Some(reason) => Some(reason),
        None if !is_local => Some(Reason::NotLocal),
        None => None,
    };
    of_entry(Outcome::OnlyConntrack, reason, entry, [0; 4])
}

/// Connection tracking's counters; none where it does not count.
pub(super) fn totals(entry: &Entry) -> Option<[u64; 4]> {
    let [there, back] = entry.counters?;
    Some([there.packets, there.bytes, back.packets, back.bytes])
}

fn of_entry(outcome: Outcome, reason: Option<Reason>, entry: &Entry, ebpf: [u64; 4]) -> Difference {
    let tuple = &entry.original;
    Difference {
        outcome,
        reason,
        protocol: tuple.protocol,
        src: (tuple.src, tuple.src_port),
        dst: (tuple.dst, tuple.dst_port),
        zone: entry.zone,
        ebpf,
        conntrack: totals(entry).unwrap_or_default(),
    }
}

/// What connection tracking makes of a message of ICMP.
enum Icmp {
    /// Belongs to the connection that it is about.
    Error,
    /// Neighbours, routers and groups: exempt.
    Exempt,
    /// A connection of its own.
    Tracked,
}

fn icmp_type(addr: IpAddr, protocol: u8, port: u16) -> Option<Icmp> {
    let [kind, _] = port.to_be_bytes();
    match (addr, protocol) {
        (IpAddr::V4(_), ICMP) => Some(if matches!(kind, 3 | 4 | 5 | 11 | 12) { Icmp::Error } else { Icmp::Tracked }),
        (IpAddr::V6(_), ICMPV6) => Some(match kind {
            0..128 => Icmp::Error,
            130..=137 | 143 => Icmp::Exempt,
            _ => Icmp::Tracked,
        }),
        _ => None,
    }
}

fn is_multicast(addr: IpAddr) -> bool {
    addr.is_multicast() || matches!(addr, IpAddr::V4(addr) if addr.is_broadcast())
}
