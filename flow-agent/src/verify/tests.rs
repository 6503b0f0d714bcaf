//! Every outcome and every reason, by real tables fed with the kernel's values.

use std::collections::HashMap;

use flow_common::abi::{self, Count as Counters, owner};
use flow_common::time::Timestamp;

use super::{Check, Ended, Findings, Outcome, Reason, Sides};
use crate::conntrack::{self, Entry, Kind, Scope, Tuple, status};
use crate::kernel::drops::{FlowDrops, FlowKey};
use crate::kernel::{Clock, Slice};
use crate::table::{Ends, Key, Parted, Table, TableConfig};

const WALL: u64 = 1_700_000_000_000_000_000;
const MONOTONIC: u64 = 5_000_000_000_000;
const JIFFY: u64 = 4_000_000;

const UDP: u8 = 17;
const TCP: u8 = 6;

/// The two sides as they stand at one moment.
struct World {
    table: Table,
    ended: Ended,
    map: HashMap<Key, abi::Flow>,
    tracked: Vec<Entry>,
    now: u64,
    is_local: bool,
}

fn tuple(src_port: u16, dst: &str, dst_port: u16, protocol: u8) -> Tuple {
    Tuple { src: "10.0.1.2".parse().unwrap(), dst: dst.parse().unwrap(), src_port, dst_port, protocol }
}

fn entry(original: Tuple, counters: [u64; 4]) -> Entry {
    let [there, octets, back, reverse] = counters;
    Entry {
        original,
        reply: Tuple {
            src: original.dst,
            dst: original.src,
            src_port: original.dst_port,
            dst_port: original.src_port,
            ..original
        },
        zone: 0,
        id: u32::from(original.src_port),
        status: 0,
        mark: 0,
        timeout: None,
        tcp_state: None,
        counters: Some([Counters { packets: there, bytes: octets }, Counters { packets: back, bytes: reverse }]),
        labels: None,
        start: Some(Timestamp::from_nanos(WALL + 1)),
        stop: None,
    }
}

/// A map's value in the order of its key.
fn flow(original: &Tuple, counters: [u64; 4], state: u32) -> (Key, abi::Flow) {
    let name = Table::name(&entry(*original, counters)).unwrap();
    let reversed = name.key.is_reversed(original);
    let [there, octets, back, reverse] = counters;
    let side = |packets, bytes, ingress: bool| abi::Direction {
        packets,
        bytes,
        last: jiffies(0),
        owner: if packets > 0 { owner::pack(7, true, !ingress) } else { 0 },
        ..abi::Direction::default()
    };
    let (first, second) = (side(there, octets, true), side(back, reverse, false));
    let direction = if reversed { [second, first] } else { [first, second] };
    let state = state | u32::from(reversed);
    (name.key, abi::Flow { direction, first_ns: MONOTONIC + 1, state, ..abi::Flow::default() })
}

fn jiffies(at: u64) -> u32 {
    (1_000 + at / JIFFY) as u32
}

impl World {
    fn new() -> Self {
        let config = TableConfig { node: "node-a".to_owned(), max_flows: 1_000, ..TableConfig::default() };
        let mut table = Table::new(config, Timestamp::from_nanos(WALL));
        table.tell_parted(100);
        Self { table, ended: Ended::new(100), map: HashMap::new(), tracked: Vec::new(), now: 0, is_local: true }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_nanos(WALL + self.now)
    }

    fn clock(&self) -> Clock {
        Clock::new(jiffies(self.now), JIFFY, MONOTONIC + self.now, WALL + self.now)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds * 1_000_000_000;
    }

    /// The kernel programs have counted this by now.
    fn count(&mut self, original: Tuple, counters: [u64; 4], state: u32) {
        self.count_with(original, counters, state, [0; 2]);
    }

    /// With these TCP flags in either direction, the originator's first.
    fn count_with(&mut self, original: Tuple, counters: [u64; 4], state: u32, flags: [u32; 2]) {
        let (key, mut value) = flow(&original, counters, state);
        let reversed = usize::from(value.state & abi::STATE_REVERSED != 0);
        for (at, flags) in flags.into_iter().enumerate() {
            value.direction[at ^ reversed].flags |= flags;
        }
        self.map.insert(key, value);
    }

    /// Connection tracking tells of a beginning, and has counted this by now.
    fn track(&mut self, entry: Entry) {
        self.table.feed_conntrack(&[conntrack::Event { kind: Kind::New, entry }], self.time());
        self.tracked.retain(|other| other.original != entry.original);
        self.tracked.push(entry);
    }

    /// Connection tracking tells of an end.
    fn untrack(&mut self, original: &Tuple) {
        let at = self.tracked.iter().position(|entry| entry.original == *original).unwrap();
        let entry = self.tracked.remove(at);
        self.table.feed_conntrack(&[conntrack::Event { kind: Kind::Destroy, entry }], self.time());
        self.take();
    }

    fn drop_packets(&mut self, original: &Tuple, packets: u64) {
        let (key, _) = flow(original, [0; 4], 0);
        let key = match key {
            Key::V4(key) => FlowKey::V4(key),
            Key::V6(key) => FlowKey::V6(key),
        };
        let count = Counters { packets, bytes: packets * 100 };
        let drops = FlowDrops {
            key,
            by_rule: [count, Counters::default()],
            by_failure: Default::default(),
            last_ns: MONOTONIC + self.now,
            site: Default::default(),
        };
        let clock = self.clock();
        self.table.feed_drops(&[drops], &clock, self.time());
    }

    /// A sweep over the whole map, what is due, and deletions.
    fn sweep(&mut self) {
        let (clock, now) = (self.clock(), self.time());
        let mut slice = Slice::default();
        for (key, value) in &self.map {
            match key {
                Key::V4(key) => {
                    slice.keys4.push(*key);
                    slice.flows4.push(*value);
                }
                Key::V6(key) => {
                    slice.keys6.push(*key);
                    slice.flows6.push(*value);
                }
            }
        }
        self.table.feed_slice(&slice, &clock, now);
        let mut given = Vec::new();
        while self.table.due(now, true, 100, |_, _| true, &mut given) {}
        let deletions = self.table.deletions().clone();
        deletions.keys4.iter().for_each(|key| _ = self.map.remove(&Key::V4(*key)));
        deletions.keys6.iter().for_each(|key| _ = self.map.remove(&Key::V6(*key)));
        self.table.deleted(&crate::kernel::Deleted::default(), &clock, now);
        self.take();
    }

    fn take(&mut self) {
        let mut parted: Vec<Parted> = Vec::new();
        self.table.take_parted(&mut parted);
        for parted in &parted {
            self.ended.feed(parted, &self.table, self.time());
        }
        let is_local = self.is_local;
        self.ended.expire(&self.table, |_, _| is_local, self.time());
    }

    /// A whole comparison of what lives; `read` may change an answer of connection tracking's.
    fn verify_with(&self, change: impl Fn(usize, &mut Entry)) -> Findings {
        let mut reads = 0;
        let mut read = |scopes: &[Scope], entries: &mut Vec<Option<Entry>>| {
            reads += 1;
            let find = |scope: &Scope| self.tracked.iter().find(|entry| entry.original == scope.tuple).copied();
            entries.extend(scopes.iter().map(|scope| {
                find(scope).map(|mut entry| {
                    change(reads, &mut entry);
                    entry
                })
            }));
        };
        let mut lookup = |key: &Key| self.map.get(key).copied();
        let is_local = |_: &Ends, _: Timestamp| self.is_local;
        let mut sides = Sides {
            table: &self.table,
            ended: &self.ended,
            lookup: &mut lookup,
            read: &mut read,
            is_local: &is_local,
            now: self.time(),
        };
        let mut check = Check::default();
        for part in self.tracked.chunks(3) {
            check.dumped(part, &mut sides);
        }
        while check.untracked(2, &mut sides) {}
        if check.begin_second() {
            while check.again(2, &mut sides) {}
        }
        check.finish().0
    }

    fn verify(&self) -> Findings {
        self.verify_with(|_, _| {})
    }
}

fn found(findings: &Findings) -> Vec<(Outcome, Option<Reason>, u64)> {
    findings.sums.0.iter().map(|count| (count.outcome, count.reason, count.connections)).collect()
}

#[test]
fn equal_counters_are_equal_even_where_the_table_lags_behind_the_map() {
    let mut world = World::new();
    let dns = tuple(40_000, "10.0.2.2", 53, UDP);
    world.track(entry(dns, [1, 100, 1, 200]));
    world.count(dns, [1, 100, 1, 200], 0);
    world.sweep();
    world.count(dns, [5, 500, 5, 1_000], 0);
    world.track(entry(dns, [5, 500, 5, 1_000]));
    assert_eq!(found(&world.verify()), [(Outcome::Equal, None, 1)]);
}

#[test]
fn a_difference_that_stays_is_told_with_how_much() {
    let mut world = World::new();
    let dns = tuple(40_000, "10.0.2.2", 53, UDP);
    world.track(entry(dns, [5, 500, 4, 900]));
    world.count(dns, [5, 500, 5, 1_000], 0);
    world.sweep();
    let findings = world.verify();
    assert_eq!(found(&findings), [(Outcome::Differs, None, 1)]);
    assert_eq!(findings.sums.unexplained(), 1);
    let [difference] = findings.differences.unexplained.as_slice() else { panic!("{findings:?}") };
    assert_eq!((difference.ebpf, difference.conntrack), ([5, 500, 5, 1_000], [5, 500, 4, 900]));
    assert_eq!(difference.src, (dns.src, 40_000));
}

#[test]
fn what_is_under_way_at_the_first_look_is_equal_at_the_second() {
    let mut world = World::new();
    let dns = tuple(40_000, "10.0.2.2", 53, UDP);
    world.track(entry(dns, [5, 500, 5, 1_000]));
    world.count(dns, [5, 500, 5, 1_000], 0);
    world.sweep();
    // The dump and the first bracket's answers were a packet behind.
    world.tracked[0].counters.as_mut().unwrap()[0].packets = 4;
    let findings = world.verify_with(|reads, entry| {
        if reads > 2 {
            entry.counters.as_mut().unwrap()[0].packets = 5;
        }
    });
    assert_eq!(found(&findings), [(Outcome::Equal, None, 1)]);
}

#[test]
fn differences_have_the_reasons_that_either_side_knows() {
    let cases = [
        (abi::STATE_FRAGMENTED, 0, 0, [6, 600, 6, 600], [2, 520, 2, 520], Some(Reason::Fragments)),
        // Fragments never make it less.
        (abi::STATE_FRAGMENTED, 0, 0, [1, 100, 1, 100], [2, 200, 1, 100], None),
        (0, 0, status::OFFLOAD, [900, 90_000, 800, 80_000], [3, 300, 2, 200], Some(Reason::Offloaded)),
        (0, 2, 0, [4, 400, 1, 100], [2, 200, 1, 100], Some(Reason::Dropped)),
        // More is missing than was dropped.
        (0, 1, 0, [4, 400, 1, 100], [2, 200, 1, 100], None),
        (0, 0, 0, [4, 400, 1, 100], [4, 404, 1, 100], None),
    ];
    for (state, dropped, status, ebpf, conntrack, reason) in cases {
        let mut world = World::new();
        let of = tuple(40_000, "10.0.2.2", 53, UDP);
        world.track(Entry { status, ..entry(of, conntrack) });
        world.count(of, ebpf, state);
        world.sweep();
        if dropped > 0 {
            world.drop_packets(&of, dropped);
        }
        assert_eq!(found(&world.verify()), [(Outcome::Differs, reason, 1)], "{ebpf:?} {conntrack:?}");
    }
}

#[test]
fn resets_beyond_conntrack_s_counts_are_strays() {
    let resets = |direction: usize| [0, 1].map(|at| if at == direction { abi::FLAG_RST } else { abi::FLAG_ACK });
    let cases = [
        (TCP, resets(1), [5, 400, 6, 640], Some(Reason::Stray)),
        (TCP, resets(0), [7, 480, 5, 600], Some(Reason::Stray)),
        // No reset was seen there, or it would have been one with data, or is none.
        (TCP, resets(0), [5, 400, 6, 640], None),
        (TCP, resets(1), [5, 400, 6, 2_000], None),
        (TCP, resets(1), [5, 400, 4, 560], None),
        (UDP, resets(1), [5, 400, 6, 640], None),
    ];
    for (protocol, flags, ebpf, reason) in cases {
        let mut world = World::new();
        let of = tuple(40_000, "10.0.2.2", 80, protocol);
        world.track(entry(of, [5, 400, 5, 600]));
        world.count_with(of, ebpf, 0, flags);
        world.sweep();
        assert_eq!(found(&world.verify()), [(Outcome::Differs, reason, 1)], "{ebpf:?}");
    }
}

#[test]
fn flows_that_connection_tracking_does_not_know_have_reasons() {
    let cases = [
        (tuple(0, "10.0.2.2", 0x0301, 1), [1, 90, 0, 0], 0, 0, Some(Reason::IcmpError)),
        (tuple(0, "10.0.2.2", 0, UDP), [2, 2_000, 0, 0], abi::STATE_FRAGMENTED, 0, Some(Reason::Fragments)),
        (tuple(40_000, "10.0.2.2", 80, TCP), [3, 180, 0, 0], 0, 3, Some(Reason::Dropped)),
        (tuple(40_000, "224.0.0.251", 5_353, UDP), [1, 90, 0, 0], 0, 0, Some(Reason::Multicast)),
        (tuple(40_000, "255.255.255.255", 67, UDP), [1, 90, 0, 0], 0, 0, Some(Reason::Multicast)),
        (tuple(40_000, "10.0.2.2", 80, TCP), [1, 40, 0, 0], abi::STATE_GUESSED, 0, Some(Reason::Stray)),
        (tuple(40_000, "10.0.2.2", 53, UDP), [2, 200, 2, 200], 0, 0, Some(Reason::Untracked)),
        (tuple(40_000, "10.0.2.2", 53, UDP), [2, 200, 0, 0], 0, 0, None),
    ];
    for (of, ebpf, state, dropped, reason) in cases {
        let mut world = World::new();
        world.count(of, ebpf, state);
        world.sweep();
        if dropped > 0 {
            world.drop_packets(&of, dropped);
        }
        assert_eq!(found(&world.verify()), [(Outcome::OnlyEbpf, reason, 1)], "{of:?}");
    }
}

#[test]
fn connections_without_a_flow_have_reasons() {
    let of = tuple(40_000, "10.0.2.2", 53, UDP);
    let early = Some(Timestamp::from_nanos(WALL - 1));
    let cases: [(Entry, bool, Option<Reason>); 4] = [
        (entry(of, [1, 100, 1, 100]), true, None),
        (entry(of, [1, 100, 1, 100]), false, Some(Reason::NotLocal)),
        (Entry { start: early, ..entry(of, [1, 100, 1, 100]) }, true, Some(Reason::BeganBefore)),
        (
            entry(Tuple { src: "127.0.0.1".parse().unwrap(), ..tuple(40_000, "127.0.0.1", 53, UDP) }, [1, 100, 1, 100]),
            true,
            Some(Reason::Loopback),
        ),
    ];
    for (entry, is_local, reason) in cases {
        let mut world = World::new();
        world.is_local = is_local;
        world.tracked.push(entry);
        assert_eq!(found(&world.verify()), [(Outcome::OnlyConntrack, reason, 1)], "{entry:?}");
    }
}

#[test]
fn another_zones_connection_of_the_same_ends_is_said_to_be_that() {
    let mut world = World::new();
    let of = tuple(40_000, "10.0.2.2", 53, UDP);
    world.track(entry(of, [1, 100, 1, 100]));
    world.count(of, [1, 100, 1, 100], 0);
    world.sweep();
    world.tracked[0].zone = 9;
    assert_eq!(found(&world.verify()), [(Outcome::OnlyConntrack, Some(Reason::OtherZone), 1)]);
}

#[test]
fn an_end_is_compared_when_both_sides_have_ended_whichever_is_first() {
    for conntrack_first in [true, false] {
        for (counters, expected) in [([3, 300, 2, 200], Outcome::Equal), ([2, 200, 2, 200], Outcome::Differs)] {
            let mut world = World::new();
            let of = tuple(40_000, "10.0.2.2", 80, TCP);
            world.track(entry(of, counters));
            let state = if conntrack_first { 0 } else { abi::STATE_CLOSED };
            world.count(of, [3, 300, 2, 200], state);
            world.sweep();
            if conntrack_first {
                world.untrack(&of);
            }
            for _ in 0..4 {
                world.pass(3);
                world.sweep();
            }
            assert!(world.map.is_empty(), "the flow has gone");
            if !conntrack_first {
                assert!(world.ended.findings().sums.0.is_empty());
                // Its flow has gone and the kernel still has it: that is no difference.
                let outcome = found(&world.verify());
                assert_eq!(outcome, [(expected, None, 1)]);
                world.untrack(&of);
            }
            assert_eq!(found(world.ended.findings()), [(expected, None, 1)], "conntrack first: {conntrack_first}");
        }
    }
}

#[test]
fn a_connection_that_is_forgotten_before_its_packets_are_read_is_compared() {
    let mut world = World::new();
    let of = tuple(40_000, "10.0.2.2", 80, TCP);
    world.track(entry(of, [1, 60, 1, 40]));
    world.untrack(&of);
    world.count(of, [1, 60, 1, 40], abi::STATE_CLOSED);
    for _ in 0..20 {
        world.sweep();
        world.pass(3);
    }
    assert!(world.map.is_empty(), "the flow has gone");
    assert_eq!(found(world.ended.findings()), [(Outcome::Equal, None, 1)]);
}

#[test]
fn an_end_whose_flow_nobody_knows_is_judged_after_a_while() {
    let mut world = World::new();
    let of = tuple(40_000, "10.0.2.2", 53, UDP);
    world.tracked.push(entry(of, [1, 100, 1, 100]));
    world.untrack(&of);
    assert!(world.ended.findings().sums.0.is_empty());
    world.pass(60);
    world.take();
    assert_eq!(found(world.ended.findings()), [(Outcome::OnlyConntrack, None, 1)]);
}

#[test]
fn what_finds_no_room_is_counted() {
    let mut world = World::new();
    world.ended = Ended::new(1);
    for port in [1, 2, 3] {
        let of = tuple(port, "10.0.2.2", 53, UDP);
        world.tracked.push(entry(of, [1, 100, 1, 100]));
        world.untrack(&of);
    }
    assert_eq!(world.ended.not_kept(), 2);
}
