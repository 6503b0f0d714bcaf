//! Connection tracking alone, through the table: which records its messages make.

use std::net::IpAddr;

use flow_common::abi::Count;
use flow_common::record::{EndReason, ForwardingStatus, TcpState};

use super::*;
use crate::conntrack::{Tuple, status, tcp};
use crate::sources::tracked::clock;
use crate::table::{TableConfig, Update};

const BORN: u64 = 1_700_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

struct Simulation {
    table: Table,
    flows: TrackedFlows,
    now_ns: u64,
}

impl Simulation {
    fn new() -> Self {
        let born = Timestamp::from_nanos(BORN);
        let config = TableConfig { node: "node-a".to_owned(), max_flows: 1_000, ..TableConfig::default() };
        Self { table: Table::new(config, born), flows: TrackedFlows::new(2_000, born), now_ns: BORN }
    }

    fn feed(&mut self) -> Feed<'_> {
        let clock = clock(self.now_ns - BORN + SECOND, self.now_ns);
        Feed { table: &mut self.table, flows: Some((&mut self.flows, clock)), now: Timestamp::from_nanos(self.now_ns) }
    }

    fn events(&mut self, events: &[Event]) {
        self.feed().events(events);
    }

    /// A dump, and the events that came while it ran.
    fn dump(&mut self, entries: &[Entry], meanwhile: &[Event]) {
        let mut feed = self.feed();
        feed.begin_dump();
        entries.iter().for_each(|entry| feed.dumped(entry));
        feed.count(&mut Slice::default());
        feed.events(meanwhile);
        feed.end_dump(true);
    }

    fn pass(&mut self, seconds: u64) {
        self.now_ns += seconds * SECOND;
    }

    fn due(&mut self) -> Vec<Update> {
        let mut updates = Vec::new();
        let (now, flows) = (Timestamp::from_nanos(self.now_ns), &self.flows);
        let clock = clock(self.now_ns - BORN + SECOND, self.now_ns);
        let read = |scopes: &[crate::conntrack::Scope], entries: &mut Vec<Option<Entry>>| {
            entries.extend(scopes.iter().map(|scope| flows.read(scope)));
        };
        self.table.adopt(|key| flows.lookup(key), read, &clock, now);
        while self.table.due(now, true, 1_000, |_, _| true, &mut updates) {}
        let deletions = self.table.deletions().clone();
        deletions.keys4.iter().for_each(|key| self.flows.delete(&crate::table::Key::V4(*key)));
        self.table.deleted(&crate::kernel::Deleted::default(), &clock, now);
        updates
    }
}

fn at(milliseconds: u64) -> Timestamp {
    Timestamp::from_nanos(BORN + milliseconds * 1_000_000)
}

/// Of a Pod to a Service's address, which a backend answers for.
fn translated(protocol: u8, port: u16, counters: [(u64, u64); 2]) -> Entry {
    let addr = |net: u8, last: u8| IpAddr::from([10, net, 0, last]);
    let tuple = |src, src_port, dst, dst_port| Tuple { src, dst, src_port, dst_port, protocol };
    Entry {
        original: tuple(addr(1, 2), port, addr(96, 10), 80),
        reply: tuple(addr(2, 3), 8_080, addr(1, 2), port),
        zone: 0,
        id: u32::from(port),
        status: status::SEEN_REPLY | status::DST_NAT,
        mark: 0,
        timeout: Some(100),
        tcp_state: (protocol == 6).then_some(tcp::ESTABLISHED),
        counters: Some(counters.map(|(packets, bytes)| Count { packets, bytes })),
        labels: None,
        start: Some(at(100)),
        stop: None,
    }
}

fn begins(entry: Entry) -> Event {
    let (tcp_state, status) = (entry.tcp_state.map(|_| tcp::SYN_SENT), entry.status & !status::SEEN_REPLY);
    Event { kind: Kind::New, entry: Entry { counters: None, start: None, tcp_state, status, ..entry } }
}

fn ends(entry: Entry, milliseconds: u64) -> Event {
    Event { kind: Kind::Destroy, entry: Entry { stop: Some(at(milliseconds)), timeout: None, ..entry } }
}

fn totals(update: &Update) -> [u64; 4] {
    let head = &update.head;
    [head.packet_total, head.octet_total, head.reverse_packet_total, head.reverse_octet_total]
}

#[test]
fn a_connection_shorter_than_any_dump_is_one_record_with_its_end() {
    let mut simulation = Simulation::new();
    simulation.dump(&[], &[]);
    simulation.pass(1);
    let refused =
        Entry { status: status::DST_NAT, tcp_state: Some(tcp::CLOSE), ..translated(6, 40_000, [(1, 60), (1, 40)]) };
    simulation.events(&[begins(refused), ends(refused, 123)]);
    let [update] = simulation.due()[..] else { panic!("one record") };
    assert_eq!(totals(&update), [1, 60, 1, 40]);
    assert_eq!(
        (update.head.end_reason, update.tcp_state),
        (EndReason::End, TcpState::None),
        "denied ones have no state"
    );
    assert_eq!((update.start, update.extended.end_milliseconds), (at(100), BORN / 1_000_000 + 123));
    assert_eq!(update.extended.forwarding_status, ForwardingStatus::Rejected);
    assert_eq!((update.ends.dst, update.ends.dst_port), (IpAddr::from([10, 2, 0, 3]), 8_080));
    assert_eq!(update.ends.original_dst, Some((IpAddr::from([10, 96, 0, 10]), 80)));
    assert!(!update.ends.at_pod);
}

#[test]
fn as_many_connections_as_end_are_records() {
    let mut simulation = Simulation::new();
    simulation.dump(&[], &[]);
    simulation.pass(1);
    let events: Vec<Event> = (1..=1_000)
        .flat_map(|port| {
            let entry = translated(17, port, [(1, 60), (0, 0)]);
            [begins(entry), ends(entry, 200)]
        })
        .collect();
    simulation.events(&events);
    let updates = simulation.due();
    assert_eq!(updates.len(), 1_000);
    assert!(updates.iter().all(|update| update.head.end_reason == EndReason::End && totals(update) == [1, 60, 0, 0]));
    assert!(updates.iter().all(|update| update.ends.original_dst.is_some()));
}

#[test]
fn one_that_ends_while_a_dump_runs_has_its_last_packets() {
    let mut simulation = Simulation::new();
    let entry = translated(17, 40_000, [(3, 300), (3, 600)]);
    simulation.dump(&[], &[]);
    simulation.pass(1);
    simulation.events(&[begins(entry)]);
    simulation.dump(&[entry], &[]);
    simulation.pass(5);
    let last = translated(17, 40_000, [(4, 400), (3, 600)]);
    simulation.dump(&[], &[ends(last, 6_000)]);
    let updates = simulation.due();
    let [update] = updates[..] else { panic!("{updates:?}") };
    assert_eq!((totals(&update), update.head.end_reason), ([4, 400, 3, 600], EndReason::End));
    simulation.pass(5);
    simulation.dump(&[], &[]);
    assert_eq!(simulation.due(), []);
}

#[test]
fn one_older_than_the_agent_goes_on_from_its_totals() {
    let mut simulation = Simulation::new();
    let old = |packets| Entry {
        start: Some(Timestamp::from_nanos(BORN - SECOND)),
        ..translated(6, 40_000, [(packets, packets * 100), (packets, packets * 100)])
    };
    simulation.dump(&[old(10)], &[]);
    assert_eq!(simulation.due(), []);
    simulation.pass(5);
    simulation.dump(&[old(14)], &[]);
    simulation.pass(6);
    let [update] = simulation.due()[..] else { panic!("one record") };
    assert_eq!((totals(&update)[0], update.head.packet_delta), (14, 4));
    assert_eq!((update.start, update.tcp_state), (Timestamp::from_nanos(BORN - SECOND), TcpState::Established));
}

#[test]
fn a_closed_connection_is_said_once_though_the_kernel_keeps_it() {
    let mut simulation = Simulation::new();
    simulation.dump(&[], &[]);
    simulation.pass(1);
    let closed = Entry { tcp_state: Some(tcp::TIME_WAIT), ..translated(6, 40_000, [(6, 600), (5, 500)]) };
    simulation.events(&[begins(closed)]);
    let mut updates = Vec::new();
    for _ in 0..10 {
        simulation.dump(&[closed], &[]);
        updates.extend(simulation.due());
        simulation.pass(5);
    }
    simulation.events(&[ends(closed, 60_000)]);
    updates.extend(simulation.due());
    let [update] = updates[..] else { panic!("{updates:?}") };
    assert_eq!((update.head.end_reason, update.tcp_state), (EndReason::End, TcpState::TimeWait));
    assert_eq!(simulation.flows.len(), 0);
}
