//! Decodes connections as the kernel has them in memory, by the layout of its structures, into the values that netlink gives.
//!
//! Takes the bytes that the kernel programs copied, and says what they mean; reads no memory but theirs. Whatever
//! the bytes and the layout are, nothing here panics: what makes no connection is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow_common::abi::{CONNTRACK_END, ConntrackEvent, Count, PART_ACCOUNTING, PART_LABELS, PART_TIMES};
use flow_common::time::Timestamp;

#[cfg(test)]
mod tests;

use super::{Entry, Event, Kind, Tuple, siphash};
use crate::kernel::{ConnLayout, clock};

/// Address families as `struct nf_conntrack_tuple` has them.
const IPV4: u16 = 2;
const IPV6: u16 = 10;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// Protocols whose packets have ports, or the keys of GRE: of others the kernel's tuples have none, whatever their bytes.
const WITH_PORTS: [u8; 6] = [TCP, 17, 33, 47, 132, 136];

/// Bit of a status that the kernel sets as it takes the connection out of its table.
const DYING: u32 = 1 << 9;
/// In a zone's directions: that of the originator.
const ORIGINAL: u8 = 1;

/// How the kernel's clocks stand, for [`decode`].
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The time of day less the monotonic clock, nanoseconds.
    pub wall_ns: i64,
    /// Length of a tick, in which the kernel counts timeouts.
    pub tick_ns: u64,
}

impl Clocks {
    /// As they stand at this moment.
    pub fn now() -> Self {
        let (monotonic, wall) = clock::monotonic_and_wall();
        Self { wall_ns: wall.wrapping_sub(monotonic).cast_signed(), tick_ns: clock::length_ns() }
    }
}

/// A connection's event, as netlink would tell it; but also when it began where the kernel notes that, and when it ended even where
/// it does not.
pub fn decode(event: &ConntrackEvent, layout: &ConnLayout, clocks: &Clocks) -> Option<Event> {
    let bytes = Bytes::of(event);
    let ended = event.kind == CONNTRACK_END;
    let [original, reply] = layout.tuples;
    let original = tuple(&bytes, layout, original)?;
    let tcp_state = if original.protocol == TCP { bytes.at::<1>(layout.tcp_state).map(|[state]| state) } else { None };
    // As an unsigned long, little-endian.
    let status = u32::from_le_bytes(bytes.at(layout.status)?);
    let deadline = Deadline::of(event, u32::from_le_bytes(bytes.at(layout.timeout)?), clocks);
    let [start, stop] = if event.parts & PART_TIMES != 0 { event.times } else { [0, 0] };
    let entry = Entry {
        original,
        reply: tuple(&bytes, layout, reply)?,
        zone: zone(&bytes, layout),
        id: id(event, &bytes, layout),
        status: if ended { status | DYING } else { status },
        mark: layout.mark.and_then(|mark| bytes.at(mark)).map_or(0, u32::from_le_bytes),
        // Of an ended connection only where it was taken out before its time.
        timeout: deadline.seconds_left().filter(|seconds| !ended || *seconds > 0),
        tcp_state,
        counters: counters(event),
        labels: (event.parts & PART_LABELS != 0 && event.labels != [0, 0]).then_some(event.labels),
        start: (start != 0).then(|| Timestamp::from_nanos(start)),
        stop: ended.then(|| if stop != 0 { Timestamp::from_nanos(stop) } else { deadline.ended_at() }),
    };
    Some(Event { kind: if ended { Kind::Destroy } else { Kind::New }, entry })
}

/// What was copied of a `struct nf_conn`.
struct Bytes {
    conn: [u8; size_of::<ConntrackEvent>()],
    length: usize,
}

impl Bytes {
    fn of(event: &ConntrackEvent) -> Self {
        let mut conn = [0; size_of::<ConntrackEvent>()];
        for (to, word) in conn.chunks_exact_mut(8).zip(event.conn) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self { conn, length: event.length as usize }
    }

    fn range(&self, offset: u32, length: usize) -> Option<&[u8]> {
        let offset = offset as usize;
        self.conn.get(..self.length.min(8 * flow_common::abi::CONN_WORDS))?.get(offset..offset.checked_add(length)?)
    }

    fn at<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.range(offset, N)?.first_chunk().copied()
    }

    /// A member of a structure that lies within.
    fn within<const N: usize>(&self, base: u32, offset: u32) -> Option<[u8; N]> {
        self.at(base.checked_add(offset)?)
    }
}

fn tuple(bytes: &Bytes, layout: &ConnLayout, base: u32) -> Option<Tuple> {
    let family = u16::from_le_bytes(bytes.within(base, layout.family)?);
    let addr = |offset| match family {
        IPV4 => bytes.within::<4>(base, offset).map(|addr| IpAddr::V4(Ipv4Addr::from(addr))),
        IPV6 => bytes.within::<16>(base, offset).map(|addr| IpAddr::V6(Ipv6Addr::from(addr))),
        _ => None,
    };
    let [protocol] = bytes.within(base, layout.protocol)?;
    let port = |offset| bytes.within(base, offset).map(u16::from_be_bytes);
    let (src_port, dst_port) = match protocol {
        // The identifier; type and code, a byte each.
        ICMP | ICMPV6 => (port(layout.src_port)?, port(layout.dst_port)?),
        _ if WITH_PORTS.contains(&protocol) => (port(layout.src_port)?, port(layout.dst_port)?),
        _ => (0, 0),
    };
    Some(Tuple { src: addr(layout.src_addr)?, dst: addr(layout.dst_addr)?, src_port, dst_port, protocol })
}

/// A zone may hold for one direction alone.
fn zone(bytes: &Bytes, layout: &ConnLayout) -> u16 {
    let zone = layout.zone.and_then(|(id, direction)| {
        let [direction] = bytes.at(direction)?;
        (direction & ORIGINAL != 0).then(|| bytes.at(id).map(u16::from_le_bytes)).flatten()
    });
    zone.unwrap_or(0)
}

fn counters(event: &ConntrackEvent) -> Option<[Count; 2]> {
    let [packets, bytes, reply_packets, reply_bytes] = event.accounting;
    let counts = [Count { packets, bytes }, Count { packets: reply_packets, bytes: reply_bytes }];
    (event.parts & PART_ACCOUNTING != 0).then_some(counts)
}

/// The number that netlink calls it by: a hash of its address, its master's and its namespace's and of its tuple. Without the kernel's
/// seed it is another, which serves to tell it from others all the same.
fn id(event: &ConntrackEvent, bytes: &Bytes, layout: &ConnLayout) -> u32 {
    let address = |offset| bytes.at(offset).map_or(0, u64::from_le_bytes);
    let original = bytes.range(layout.tuples[0], layout.tuple_bytes as usize).unwrap_or_default();
    let tuple = siphash::hash(event.seed, original);
    let words = [event.address, address(layout.master), address(layout.net), tuple];
    let hash = siphash::hash(event.seed, words.map(u64::to_le_bytes).as_flattened());
    // The kernel keeps the lower half, and sends it as it stands in memory in a field of network byte order.
    let [a, b, c, d, ..] = hash.to_le_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// When a connection expires, by the kernel's tick.
struct Deadline {
    /// Ticks left at the event; less than zero: that long past.
    ticks: i32,
    at: Timestamp,
    tick_ns: u64,
}

impl Deadline {
    fn of(event: &ConntrackEvent, timeout: u32, clocks: &Clocks) -> Self {
        let [a, b, c, d, ..] = event.jiffies.to_le_bytes();
        let ticks = timeout.wrapping_sub(u32::from_le_bytes([a, b, c, d])).cast_signed();
        let at = Timestamp::from_nanos(event.at_ns.saturating_add_signed(clocks.wall_ns));
        Self { ticks, at, tick_ns: clocks.tick_ns }
    }

    fn seconds_left(&self) -> Option<u32> {
        let second = 1_000_000_000_u64.checked_div(self.tick_ns)?;
        let ticks = u64::try_from(self.ticks).unwrap_or(0);
        u32::try_from(ticks.checked_div(second)?).ok()
    }

    /// The kernel's collection of garbage comes late: a connection that has expired ended then.
    fn ended_at(&self) -> Timestamp {
        let past = u64::from(self.ticks.min(0).unsigned_abs());
        let past_ns = past.saturating_mul(self.tick_ns);
        Timestamp::from_nanos(self.at.nanos().saturating_sub(past_ns))
    }
}
