//! Connection tracking's messages in simulated time, and what values they make.

use std::net::IpAddr;

use super::*;
use crate::conntrack::Tuple;

const BORN: u64 = 1_700_000_000_000_000_000;
const MONOTONIC: u64 = 5_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

/// Flows, and the seconds since they began to be looked at.
struct Simulation {
    flows: TrackedFlows,
    second: u64,
}

impl Simulation {
    fn new() -> Self {
        Self::with_room(100)
    }

    fn with_room(room: usize) -> Self {
        Self { flows: TrackedFlows::new(room, Timestamp::from_nanos(BORN)), second: 0 }
    }

    /// After a first dump that had nothing.
    fn settled() -> Self {
        let mut simulation = Self::new();
        simulation.dump(&[]);
        simulation
    }

    fn clock(&self) -> Clock {
        clock(MONOTONIC + self.second * SECOND, BORN + self.second * SECOND)
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    fn event(&mut self, kind: Kind, entry: Entry) -> Taken {
        let (clock, now) = (self.clock(), self.now());
        self.flows.feed(&Event { kind, entry }, &clock, now)
    }

    fn dump(&mut self, entries: &[Entry]) {
        let (clock, now) = (self.clock(), self.now());
        self.flows.begin_dump();
        for entry in entries {
            self.flows.feed_dump(entry, &clock, now);
        }
        self.flows.end_dump(true);
    }

    /// The only value.
    fn value(&mut self) -> Option<Flow> {
        let mut slice = Slice::default();
        self.flows.all(&mut slice);
        assert!(slice.flows4.len() <= 1, "{slice:?}");
        slice.flows4.first().copied()
    }
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_nanos(BORN + second * SECOND)
}

/// A TCP connection from the higher address to the lower.
fn tcp_entry(id: u32, state: u8, counters: Option<[(u64, u64); 2]>) -> Entry {
    let addr = |last: u8| IpAddr::from([10, 0, 0, last]);
    let original = Tuple { src: addr(9), dst: addr(1), src_port: 40_000, dst_port: 80, protocol: 6 };
    let reply = Tuple { src: addr(1), dst: addr(9), src_port: 80, dst_port: 40_000, protocol: 6 };
    Entry {
        original,
        reply,
        zone: 0,
        id,
        status: status::SEEN_REPLY,
        mark: 0,
        timeout: Some(100),
        tcp_state: Some(state),
        counters: counters.map(|counters| counters.map(|(packets, bytes)| Count { packets, bytes })),
        labels: None,
        start: Some(at(1)),
        stop: None,
    }
}

/// As the event of its beginning has it.
fn begun(entry: Entry) -> Entry {
    Entry { counters: None, start: None, tcp_state: Some(tcp::SYN_SENT), status: 0, ..entry }
}

/// Packets from the originator and from the responder, whose ends are the key's 1 and 0.
fn packets(flow: Flow) -> [u64; 2] {
    [flow.direction[1].packets, flow.direction[0].packets]
}

fn wall(simulation: &Simulation, direction: usize, flow: Flow) -> u64 {
    simulation.clock().jiffies_to_wall_ns(flow.direction[direction].last)
}

#[test]
fn a_connection_is_what_its_packets_would_have_made() {
    let mut simulation = Simulation::settled();
    let entry = tcp_entry(7, tcp::ESTABLISHED, Some([(3, 300), (2, 200)]));
    simulation.second = 1;
    assert_eq!(simulation.event(Kind::New, begun(entry)), Taken::New);
    assert_eq!(simulation.value(), None, "nothing is known of its packets");
    simulation.second = 5;
    simulation.dump(&[entry]);
    let flow = simulation.value().unwrap();
    assert_eq!((packets(flow), flow.direction[1].bytes, flow.direction[0].bytes), ([3, 2], 300, 200));
    assert_eq!(flow.state, abi::STATE_REVERSED | u32::from(tcp::ESTABLISHED) << tcp::SHIFT);
    assert_eq!(simulation.clock().monotonic_to_wall_ns(flow.first_ns), at(1).nanos(), "it began when it began");
    assert_eq!(wall(&simulation, 1, flow), at(5).nanos());
    assert!(flow.direction.iter().all(|direction| direction.owner != 0 && owner::ifindex(direction.owner) == 0));
    assert!(flow.direction.iter().all(|direction| direction.flags == 0), "no flags are known");

    simulation.second = 10;
    simulation.dump(&[tcp_entry(7, tcp::TIME_WAIT, Some([(5, 500), (2, 200)]))]);
    let flow = simulation.value().unwrap();
    assert_eq!(packets(flow), [5, 2]);
    assert_ne!(flow.state & abi::STATE_CLOSED, 0);
    assert_eq!(wall(&simulation, 1, flow), at(10).nanos());
    assert_eq!(wall(&simulation, 0, flow), at(5).nanos(), "the responder was silent");
}

#[test]
fn one_that_ends_before_any_dump_is_there_with_its_last_packet_at_its_end() {
    let mut simulation = Simulation::settled();
    let entry = Entry { stop: Some(at(2)), timeout: None, ..tcp_entry(7, tcp::CLOSE, Some([(1, 60), (1, 40)])) };
    simulation.event(Kind::New, begun(entry));
    simulation.second = 3;
    assert_eq!(simulation.event(Kind::Destroy, Entry { status: 0, ..entry }), Taken::Known);
    let flow = simulation.value().unwrap();
    assert_eq!(packets(flow), [1, 1]);
    assert_eq!(wall(&simulation, 1, flow), at(2).nanos());
    assert_eq!([flow.direction[1].flags, flow.direction[0].flags], [abi::FLAG_SYN, abi::FLAG_RST], "refused");
    let (key, _) = Key::of(&entry.original, 0).unwrap();
    simulation.flows.delete(&key);
    assert_eq!((simulation.flows.lookup(&key), simulation.flows.len()), (None, 0));
}

#[test]
fn the_next_connection_of_the_same_ends_goes_on_from_the_last_ones_counters() {
    let mut simulation = Simulation::settled();
    for (id, start) in [(7, 1), (8, 4), (8, 7)] {
        simulation.second = start;
        let entry = Entry { start: Some(at(start)), ..tcp_entry(id, tcp::TIME_WAIT, Some([(4, 400), (3, 300)])) };
        assert_eq!(simulation.event(Kind::New, begun(entry)), Taken::New);
        assert_eq!(simulation.event(Kind::Destroy, Entry { stop: Some(at(start + 1)), ..entry }), Taken::Known);
        // Told of again by another program.
        assert_eq!(simulation.event(Kind::Destroy, Entry { stop: Some(at(start + 1)), ..entry }), Taken::Not);
    }
    let flow = simulation.value().unwrap();
    assert_eq!((packets(flow), flow.generation), ([12, 9], 2));
    assert_eq!((flow.base_packets, flow.base_bytes), ([6, 8], [600, 800]));
}

#[test]
fn a_successor_in_a_dump_waits_for_the_end_of_the_one_before() {
    let mut simulation = Simulation::settled();
    simulation.event(Kind::New, begun(tcp_entry(7, tcp::SYN_SENT, None)));
    let next = Entry { start: Some(at(4)), ..tcp_entry(8, tcp::ESTABLISHED, Some([(9, 900), (9, 900)])) };
    let (clock, now) = (simulation.clock(), at(5));
    simulation.flows.begin_dump();
    assert_eq!(simulation.flows.feed_dump(&next, &clock, now), Taken::Later);
    simulation.flows.end_dump(true);
    // No event said so, but the dump did not have it.
    simulation.dump(&[next]);
    assert_eq!(packets(simulation.value().unwrap()), [9, 9]);
}

#[test]
fn what_was_counted_before_the_agent_is_left_to_the_table_to_add() {
    let mut simulation = Simulation::new();
    let before = |packets| Entry {
        start: Some(Timestamp::from_nanos(BORN - SECOND)),
        ..tcp_entry(7, tcp::ESTABLISHED, Some([(packets, packets * 100), (2, 200)]))
    };
    simulation.dump(&[before(10)]);
    assert_eq!(simulation.value(), None);
    simulation.dump(&[before(13)]);
    let (key, _) = Key::of(&before(0).original, 0).unwrap();
    assert_eq!(packets(simulation.flows.lookup(&key).unwrap()), [3, 0]);
    let scope = Scope { tuple: before(0).original, zone: 0 };
    assert_eq!(simulation.flows.read(&scope), Some(before(13)), "what both come from");
    assert_eq!(simulation.flows.read(&Scope { zone: 1, ..scope }), None);
}

#[test]
fn what_the_table_deleted_counts_anew() {
    let mut simulation = Simulation::settled();
    let (key, _) = Key::of(&tcp_entry(7, 0, None).original, 0).unwrap();
    let quiet = tcp_entry(7, tcp::TIME_WAIT, Some([(5, 500), (5, 500)]));
    simulation.dump(&[quiet]);
    simulation.flows.delete(&key);
    simulation.dump(&[quiet]);
    assert_eq!(simulation.value(), None, "it was said already");
    simulation.dump(&[tcp_entry(7, tcp::TIME_WAIT, Some([(6, 600), (5, 500)]))]);
    assert_eq!(packets(simulation.value().unwrap()), [1, 0]);
    simulation.dump(&[]);
    simulation.flows.delete(&key);
    assert_eq!(simulation.flows.len(), 0);
}

#[test]
fn two_zones_connections_of_the_same_ends_count_once() {
    let mut simulation = Simulation::settled();
    let here = tcp_entry(7, tcp::ESTABLISHED, Some([(5, 500), (5, 500)]));
    let there = Entry { zone: 9, id: 70, ..here };
    simulation.dump(&[here, there]);
    assert_eq!(simulation.event(Kind::Destroy, here), Taken::Known);
    let (key, _) = Key::of(&here.original, 0).unwrap();
    simulation.flows.delete(&key);
    simulation.dump(&[there]);
    assert_eq!(simulation.value(), None, "its packets were counted");
    assert_eq!(simulation.event(Kind::Destroy, there), Taken::Not);
    assert_eq!((simulation.flows.len(), simulation.flows.statistics().shadowed), (0, 1));
}

#[test]
fn without_accounting_a_side_that_was_seen_has_a_packet() {
    let mut simulation = Simulation::settled();
    let entry = tcp_entry(7, tcp::SYN_SENT, None);
    simulation.event(Kind::New, begun(entry));
    assert_eq!(simulation.value(), None);
    simulation.dump(&[Entry { status: 0, ..entry }]);
    assert_eq!(packets(simulation.value().unwrap()), [1, 0]);
    simulation.dump(&[entry]);
    assert_eq!(packets(simulation.value().unwrap()), [1, 1]);
}

#[test]
fn what_finds_no_room_is_counted_at_its_end() {
    let mut simulation = Simulation::with_room(1);
    simulation.dump(&[]);
    let other = |port: u16| {
        let mut entry = tcp_entry(u32::from(port), tcp::CLOSE, Some([(1, 60), (0, 0)]));
        (entry.original.src_port, entry.reply.dst_port) = (port, port);
        entry
    };
    simulation.event(Kind::New, begun(other(1)));
    assert_eq!(simulation.event(Kind::New, begun(other(2))), Taken::Not);
    assert_eq!(simulation.event(Kind::Destroy, other(2)), Taken::Not);
    assert_eq!((simulation.flows.len(), simulation.flows.statistics().no_room), (1, 1));
}
