//! A tombstone as bytes: what stays of a flow, most of it in as many bytes as the number needs.
//!
//! Takes a flow; gives the flow it was, exported with what it had. In front stand the parts that are looked at without
//! the rest, at constant places. Written and read in this process alone.

use super::super::{
    flow::{Exporter, Flow, Side},
    key::{Addr, Client, Key},
    tails::TailId,
};

/// Its length in the chunk, whether it is there yet, second of the burial, hash, flow ids and tails of both sides.
const FRONT: usize = 2 + 1 + 4 + 4 + 16 + 8;
const STATE: usize = 2;
const SINCE: usize = 3;
const HASH: usize = 7;
const FLOW_IDS: usize = 11;
const TAILS: usize = 27;

const LIVE: u8 = 1;
const ALONE: u8 = 2;
const CLIENT: u8 = 4;

/// A tombstone in its chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a>(&'a [u8]);

impl<'a> Entry<'a> {
    /// The one that `bytes` begin with.
    pub(super) fn first_of(bytes: &'a [u8]) -> Option<Entry<'a>> {
        let length = u16::from_le_bytes(*bytes.first_chunk()?);
        bytes.get(..length.into()).map(Entry)
    }

    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    /// Its flow does not live again.
    pub(super) fn is_live(self) -> bool {
        self.0[STATE] & LIVE != 0
    }

    /// Second of the burial.
    pub(super) fn since(self) -> u32 {
        u32::from_le_bytes(self.fixed(SINCE))
    }

    pub(super) fn hash(self) -> u32 {
        u32::from_le_bytes(self.fixed(HASH))
    }

    pub(super) fn tails(self) -> [TailId; 2] {
        [TAILS, TAILS + 4].map(|at| TailId(u32::from_le_bytes(self.fixed(at))))
    }

    pub(super) fn flow_ids(self) -> [u64; 2] {
        [FLOW_IDS, FLOW_IDS + 8].map(|at| u64::from_le_bytes(self.fixed(at)))
    }

    pub(super) fn key<A: Addr>(self) -> Key<A> {
        Key::read(&mut &self.0[FRONT..])
    }

    /// The flow, but for what few flows have.
    pub(super) fn flow<A: Addr>(self) -> Flow<A> {
        let rest = &mut &self.0[FRONT..];
        let mut flow = Flow::new(Key::read(rest), self.since());
        let state = self.0[STATE];
        if state & CLIENT != 0 {
            flow.client = Client { addr: A::read(rest), port: number(rest) as u16 };
        }
        flow.start = number(rest);
        let end = flow.start.wrapping_add(number(rest));
        flow.icmp = number(rest) as u16;
        (flow.alone, flow.ready) = (state & ALONE != 0, true);
        for ((side, tail), flow_id) in flow.sides.iter_mut().zip(self.tails()).zip(self.flow_ids()) {
            let exporter = Exporter(number(rest).rotate_right(1));
            if exporter == Exporter::default() {
                continue;
            }
            *side = Side {
                total: std::array::from_fn(|_| number(rest)),
                start: flow.start.wrapping_add(number(rest)),
                end: end.wrapping_sub(number(rest)),
                flow_id,
                exporter,
                tail,
                dropped: number(rest),
                flags: [number(rest) as u16, number(rest) as u16],
                reason: byte(rest).into(),
                status: byte(rest).into(),
                ..Side::default()
            };
        }
        flow
    }

    fn fixed<const N: usize>(self, at: usize) -> [u8; N] {
        std::array::from_fn(|byte| self.0[at + byte])
    }
}

/// Marks the entry at the front of `bytes`: its flow lives again.
pub(super) fn mark_gone(bytes: &mut [u8]) {
    bytes[STATE] &= !LIVE;
}

/// Writes what stays of a flow over `out`.
pub(super) fn write<A: Addr>(flow: &Flow<A>, hash: u32, since: u32, out: &mut Vec<u8>) {
    out.clear();
    let client = flow.client.is_known();
    out.extend([0, 0, LIVE | if flow.alone { ALONE } else { 0 } | if client { CLIENT } else { 0 }]);
    out.extend(since.to_le_bytes());
    out.extend(hash.to_le_bytes());
    flow.sides.iter().for_each(|side| out.extend(side.flow_id.to_le_bytes()));
    flow.sides.iter().for_each(|side| out.extend(side.tail.0.to_le_bytes()));
    flow.key.write(out);
    if client {
        flow.client.addr.write(out);
        put(flow.client.port.into(), out);
    }
    put(flow.start, out);
    put(flow.end().wrapping_sub(flow.start), out);
    put(flow.icmp.into(), out);
    for side in &flow.sides {
        // The mark of an agent is the highest bit: turned to the lowest it costs nothing.
        put(side.exporter.0.rotate_left(1), out);
        if side.is_known() {
            side.total.iter().for_each(|total| put(*total, out));
            // Of each clock its own: mostly these are the flow's.
            put(side.start.wrapping_sub(flow.start), out);
            put(flow.end().wrapping_sub(side.end), out);
            put(side.dropped, out);
            side.flags.iter().for_each(|flags| put((*flags).into(), out));
            out.extend([side.reason.code(), side.status.code()]);
        }
    }
    let length = u16::try_from(out.len()).unwrap_or(u16::MAX).to_le_bytes();
    out[..2].copy_from_slice(&length);
}

/// Seven bits a byte, the lowest first.
fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(from: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = byte(from);
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 || shift > 63 {
            return value;
        }
    }
}

fn byte(from: &mut &[u8]) -> u8 {
    from.split_off_first().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_common::record::{EndReason, ForwardingStatus};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn side() -> impl Strategy<Value = Side> {
        let numbers = (any::<[u64; 4]>(), any::<[u64; 4]>(), any::<[u16; 2]>(), any::<u32>());
        (numbers, prop_oneof![Just(0), Just(1 << 63 | 77), any::<u64>()], any::<[u8; 2]>()).prop_map(
            |((total, [flow_id, dropped, start, end], flags, tail), exporter, [reason, status])| match exporter {
                0 => Side::default(),
                exporter => Side {
                    total,
                    start,
                    end,
                    flow_id,
                    dropped,
                    flags,
                    tail: TailId(tail),
                    exporter: Exporter(exporter),
                    reason: EndReason::from(reason),
                    status: ForwardingStatus::from(status),
                    ..Side::default()
                },
            },
        )
    }

    fn comes_out_as_it_went_in<A: Addr>(
        [src, dst, client]: [A; 3],
        sides: [Side; 2],
        start: u64,
        (ports, icmp, alone): ([u16; 3], u16, bool),
    ) {
        let [src_port, dst_port, port] = ports;
        let mut flow = Flow::new(Key { src, dst, src_port, dst_port, protocol: 6 }, 7);
        flow.client = Client { addr: client, port: if client == A::NONE { 0 } else { port } };
        (flow.sides, flow.start, flow.icmp, flow.alone) = (sides, start, icmp, alone);
        let mut bytes = Vec::new();
        write(&flow, 99, 7, &mut bytes);
        bytes.extend([1, 2, 3]);
        let entry = Entry::first_of(&bytes).unwrap();
        assert_eq!((entry.len(), entry.hash(), entry.since(), entry.is_live()), (bytes.len() - 3, 99, 7, true));
        assert_eq!(entry.key::<A>(), flow.key);
        let back: Flow<A> = entry.flow();
        assert_eq!((back.key, back.client, back.start, back.icmp), (flow.key, flow.client, start, icmp));
        assert_eq!(back.alone, alone);
        for (back, side) in back.sides.iter().zip(sides) {
            let numbers = |side: &Side| (side.total, side.flow_id, side.dropped, side.flags, side.tail, side.exporter);
            assert_eq!(numbers(back), numbers(&side));
            assert_eq!((back.reason, back.status), (side.reason, side.status));
            assert!(!side.is_known() || (back.start, back.end) == (side.start, side.end));
        }
        mark_gone(&mut bytes);
        assert!(!Entry::first_of(&bytes).unwrap().is_live());
    }

    proptest! {
        #[test]
        fn a_flow_comes_out_as_it_went_in(
            addrs in any::<[[u8; 16]; 3]>(),
            sides in [side(), side()],
            start in any::<u64>(),
            rest in any::<([u16; 3], u16, bool)>(),
        ) {
            comes_out_as_it_went_in(addrs.map(|[a, b, c, d, ..]| Ipv4Addr::from([a, b, c, d])), sides, start, rest);
            comes_out_as_it_went_in(addrs.map(Ipv6Addr::from), sides, start, rest);
        }
    }
}
