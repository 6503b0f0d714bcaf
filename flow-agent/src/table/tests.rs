//! The table in simulated time, fed by a small model of the kernel: map entries that count where they are told to,
//! events, sweeps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flow_common::abi::{self, Event, Flow, owner};
use flow_common::record::EndReason;
use flow_common::time::Timestamp;

use super::{InterfaceSums, Key, Table, TableConfig, Update};
use crate::conntrack::{self, Entry, Kind, Tuple};
use crate::kernel::{Clock, Deleted, Identified, Slice};

mod denied;
mod laws;
mod nat;
mod restart;
mod rules;

/// When the simulation begins, in nanoseconds since 1970 and of the monotonic clock.
const WALL: u64 = 1_700_000_000_000_000_000;
const MONOTONIC: u64 = 5_000_000_000_000;
const JIFFY: u64 = 4_000_000;

const SYN: u32 = abi::FLAG_SYN;
const ACK: u32 = abi::FLAG_ACK;
const FIN: u32 = abi::FLAG_FIN;
const RST: u32 = abi::FLAG_RST;

/// Points: a client Pod's interface, a server Pod's, an uplink.
const CLIENT: u32 = 10;
const SERVER: u32 = 11;
const UPLINK: u32 = 2;

fn pod(ifindex: u32, is_egress: bool) -> u32 {
    owner::pack(ifindex, true, is_egress)
}

fn uplink(is_egress: bool) -> u32 {
    owner::pack(UPLINK, false, is_egress)
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tuple(src: (&str, u16), dst: (&str, u16), protocol: u8) -> Tuple {
    Tuple { src: addr(src.0), dst: addr(dst.0), src_port: src.1, dst_port: dst.1, protocol }
}

fn back(tuple: Tuple) -> Tuple {
    Tuple { src: tuple.dst, dst: tuple.src, src_port: tuple.dst_port, dst_port: tuple.src_port, ..tuple }
}

fn config() -> TableConfig {
    TableConfig { node: "node-a".to_owned(), max_flows: 1_000, ..TableConfig::default() }
}

/// Table, kernel map and time.
struct Simulation {
    table: Table,
    now: u64,
    /// Of the map: key of the entry, whether IPv6.
    map: BTreeMap<(bool, abi::Key6), Flow>,
    events: Vec<Event>,
    /// What connection tracking answers when it is asked.
    tracked: Vec<Entry>,
    connected: bool,
    /// Whether a flow is of those that are exported.
    local: bool,
    given: Vec<Update>,
    /// What is left to the next agent: as what flows were told of, and what is gone from the map.
    identities: BTreeMap<(bool, abi::Key6), Identified>,
    gone: BTreeMap<u32, [i64; 2]>,
}

impl Simulation {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: TableConfig) -> Self {
        Self {
            table: Table::new(config, Timestamp::from_nanos(WALL)),
            now: 0,
            map: BTreeMap::new(),
            events: Vec::new(),
            tracked: Vec::new(),
            connected: true,
            local: true,
            given: Vec::new(),
            identities: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }

    fn clock(&self) -> Clock {
        Clock::new(self.jiffies(), JIFFY, MONOTONIC + self.now / JIFFY * JIFFY, WALL + self.now / JIFFY * JIFFY)
    }

    fn jiffies(&self) -> u32 {
        // Close to where the counter goes round.
        (u64::from(u32::MAX - 1_000) + self.now / JIFFY) as u32
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_nanos(WALL + self.now)
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds * 1_000_000;
    }

    /// A packet that `point` counts, as the kernel programs would.
    fn packet(&mut self, tuple: Tuple, point: u32, bytes: u64, flags: u32) {
        self.now += 1_000;
        let (jiffies, first_ns) = (self.jiffies(), MONOTONIC + self.now);
        let (key, reversed) = Key::of(&tuple, tuple.dst_port).unwrap();
        let is_new = !self.map.contains_key(&raw(&key));
        let flow = self.map.entry(raw(&key)).or_default();
        let mut kind = if is_new { abi::EVENT_NEW } else { 0 };
        let owner = flow.direction[usize::from(reversed)].owner;
        if owner != 0 && owner != point {
            let family = if raw(&key).0 { 6 } else { 4 };
            let kind = abi::EVENT_TAKEOVER | u32::from(reversed);
            let mut before = *flow;
            before.direction[usize::from(reversed)].candidate = point;
            self.events.push(Event { kind, family, key: raw(&key).1, flow: before });
        }
        if flags & (SYN | ACK) == SYN && flow.state & abi::STATE_CLOSED != 0 {
            flow.generation += 1;
            flow.base_packets = flow.direction.map(|direction| direction.packets);
            flow.base_bytes = flow.direction.map(|direction| direction.bytes);
            flow.direction.iter_mut().for_each(|direction| direction.flags = 0);
            flow.state = 0;
            kind = abi::EVENT_GENERATION;
        }
        if kind != 0 {
            flow.first_ns = first_ns;
            let answers = flags & (SYN | ACK) == SYN | ACK;
            flow.state = u32::from(reversed != answers) | if flags & SYN == 0 { abi::STATE_GUESSED } else { 0 };
        }
        let other_fin = flow.direction[usize::from(!reversed)].flags & FIN;
        let own = &mut flow.direction[usize::from(reversed)];
        own.packets += 1;
        own.bytes += bytes;
        own.last = jiffies;
        own.owner = point;
        own.flags |= flags | if other_fin != 0 && flags & ACK != 0 { abi::ACKED_FIN } else { 0 };
        if flow.state & abi::STATE_CLOSED == 0 && (flags & RST != 0 || flow.finished()) {
            flow.state |= abi::STATE_CLOSED | if flags & RST != 0 { abi::STATE_RESET } else { 0 };
            kind = abi::EVENT_CLOSED;
        }
        if kind != 0 {
            self.event(kind, &key);
        }
    }

    fn event(&mut self, kind: u32, key: &Key) {
        let raw = raw(key);
        self.events.push(Event { kind, family: if raw.0 { 6 } else { 4 }, key: raw.1, flow: self.map[&raw] });
    }

    /// Rings only.
    fn tick(&mut self) {
        let (clock, now) = (self.clock(), self.time());
        let events = std::mem::take(&mut self.events);
        self.table.feed_events(&events, &clock, now);
        self.leave();
        self.due();
    }

    /// Rings, and the whole map; then deletions.
    fn sweep(&mut self) {
        self.tick();
        let (clock, now, slice) = (self.clock(), self.time(), self.slice());
        self.table.feed_slice(&slice, &clock, now);
        self.due();
        self.delete();
    }

    /// The whole map.
    fn slice(&self) -> Slice {
        let mut slice = Slice::default();
        for ((wide, key), flow) in &self.map {
            push(&mut slice, *wide, *key, *flow);
        }
        slice
    }

    fn delete(&mut self) {
        let (clock, now) = (self.clock(), self.time());
        let asked = self.table.deletions().clone();
        let keys4 = asked.keys4.iter().map(|key| Key::V4(*key)).zip(asked.seen4.iter().copied());
        let keys6 = asked.keys6.iter().map(|key| Key::V6(*key)).zip(asked.seen6.iter().copied());
        let mut deleted = Deleted::default();
        for (key, seen) in keys4.chain(keys6) {
            let raw = raw(&key);
            let Some(flow) = self.map.get(&raw) else { continue };
            let is_quiet = flow
                .direction
                .iter()
                .all(|direction| self.jiffies().wrapping_sub(direction.last) >= 500 || direction.owner == 0);
            if is_quiet && flow.counters().iter().zip(seen).all(|(now, seen)| *now <= seen) {
                self.map.remove(&raw);
                self.identities.remove(&raw);
                deleted.removed += 1;
            } else {
                push(&mut deleted.kept, raw.0, raw.1, *flow);
            }
        }
        self.table.deleted(&deleted, &clock, now);
        self.leave();
    }

    /// What an agent that is killed now leaves to the next one.
    fn leave(&mut self) {
        for identified in self.table.take_identified() {
            self.identities.insert((identified.family == 6, identified.key), identified);
        }
        for (index, gone) in self.table.take_gone() {
            let sum = self.gone.entry(index).or_default();
            *sum = [sum[0] + gone[0], sum[1] + gone[1]];
        }
    }

    /// The agent is killed, and another one goes on with the map and the rings. Connection tracking knows nothing of what was.
    fn restart(&mut self) {
        self.table = Table::new(TableConfig { inherits: true, keeps: true, ..config() }, Timestamp::from_nanos(WALL));
        let (clock, now, slice) = (self.clock(), self.time(), self.slice());
        self.table.begin_dump();
        self.table.end_dump(true, now);
        self.table.inherit(self.gone.iter().map(|(index, gone)| (*index, *gone)));
        let events = std::mem::take(&mut self.events);
        self.table.feed_events(&events, &clock, now);
        self.leave();
        self.table.feed_slice(&slice, &clock, now);
        let identities = &self.identities;
        self.table.inherited(|key| identities.get(&raw(key)).copied());
    }

    fn due(&mut self) {
        let (clock, now) = (self.clock(), self.time());
        let (map, tracked) = (&self.map, &self.tracked);
        self.table.adopt(
            |key| map.get(&raw(key)).copied(),
            |scopes, entries| {
                entries.clear();
                entries.extend(
                    scopes.iter().map(|scope| tracked.iter().find(|entry| entry.original == scope.tuple).copied()),
                );
            },
            &clock,
            now,
        );
        let local = self.local;
        while self.table.due(now, self.connected, 3, |_, _| local, &mut self.given) {}
        self.leave();
    }

    fn conntrack(&mut self, kind: Kind, entry: Entry) {
        let now = self.time();
        self.table.feed_conntrack(&[conntrack::Event { kind, entry }], now);
    }

    /// The records given since the last call.
    fn records(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.given)
    }

    /// The only record given since the last call.
    fn record(&mut self) -> Update {
        let records = self.records();
        assert_eq!(records.len(), 1, "{records:#?}");
        records[0]
    }

    /// Everything is swept, ended and given.
    fn finish(&mut self) {
        self.sweep();
        let now = self.time();
        self.table.finish(false, now);
        self.connected = true;
        self.due();
    }

    /// By interface: what the map's entries counted there, if no owner ever changed.
    fn counted(&self) -> BTreeMap<u32, abi::Count> {
        let mut counted: BTreeMap<u32, abi::Count> = BTreeMap::new();
        for direction in self.map.values().flat_map(|flow| &flow.direction).filter(|direction| direction.packets > 0) {
            let count = counted.entry(owner::ifindex(direction.owner)).or_default();
            count.packets += direction.packets;
            count.bytes += direction.bytes;
        }
        counted
    }
}

fn raw(key: &Key) -> (bool, abi::Key6) {
    match key {
        Key::V4(key) => (false, (*key).into()),
        Key::V6(key) => (true, *key),
    }
}

fn push(slice: &mut Slice, wide: bool, key: abi::Key6, flow: Flow) {
    if wide {
        slice.keys6.push(key);
        slice.flows6.push(flow);
    } else {
        slice.keys4.push(key.to_key4());
        slice.flows4.push(flow);
    }
}

/// A tracked connection as its first message tells it.
fn tracked(original: Tuple, reply: Tuple, id: u32) -> Entry {
    Entry {
        original,
        reply,
        zone: 0,
        id,
        status: 0,
        mark: 0,
        timeout: Some(30),
        tcp_state: None,
        counters: None,
        labels: None,
        start: None,
        stop: None,
    }
}

fn packets(update: &Update) -> [u64; 4] {
    let head = &update.head;
    [head.packet_total, head.packet_delta, head.reverse_packet_total, head.reverse_packet_delta]
}

fn octets(update: &Update) -> [u64; 4] {
    let head = &update.head;
    [head.octet_total, head.octet_delta, head.reverse_octet_total, head.reverse_octet_delta]
}

fn everything(sums: &InterfaceSums) -> abi::Count {
    let earlier = abi::Count { packets: sums.earlier[0].cast_unsigned(), bytes: sums.earlier[1].cast_unsigned() };
    let parts = [sums.accounted, sums.annotated, sums.not_local, sums.undecided, earlier];
    parts.iter().fold(abi::Count::default(), |sum, part| abi::Count {
        packets: sum.packets.wrapping_add(part.packets),
        bytes: sum.bytes.wrapping_add(part.bytes),
    })
}
