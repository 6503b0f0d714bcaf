//! Connections begin and end by their packets, through the programs.

use crate::harness::{Harness, Setting, pod, uplink};
use flow_common::abi::{
    EVENT_CLOSED, EVENT_GENERATION, EVENT_NEW, FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, STATE_CLOSED, STATE_GUESSED,
    STATE_RESET,
};
use flow_ebpf::frames::{Ipv4, Ipv6, MORE, Tcp};

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const FIN: u8 = 1;
const RST: u8 = 4;

/// A segment from the client or back.
fn segment(six: bool, back: bool, flags: u8, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let ports = if back { [80, 40_000] } else { [40_000, 80] };
    let tcp = Tcp { ports, sequence, acknowledged, flags }.with(b"");
    match (six, back) {
        (false, false) => Ipv4::new(6).frame(&tcp),
        (false, true) => Ipv4::new(6).back().frame(&tcp),
        (true, false) => Ipv6::new(6).frame(&tcp),
        (true, true) => Ipv6::new(6).back().frame(&tcp),
    }
}

/// Sends segments through a Pod's hooks, client's or server's.
fn send(harness: &Harness, six: bool, segments: &[(bool, u8, u32, u32)]) {
    for (back, flags, sequence, acknowledged) in segments {
        harness.pass(pod(2, *back), &segment(six, *back, *flags, *sequence, *acknowledged));
    }
}

const OPEN: [(bool, u8, u32, u32); 3] = [(false, SYN, 100, 0), (true, SYN | ACK, 500, 101), (false, ACK, 101, 501)];
const CLOSE: [(bool, u8, u32, u32); 3] =
    [(true, FIN | ACK, 501, 101), (false, FIN | ACK, 101, 502), (true, ACK, 502, 102)];

#[test]
fn a_connection_from_syn_to_last_acknowledgement() {
    for six in [false, true] {
        let mut harness = Harness::new(Setting::default());
        send(&harness, six, &OPEN);
        send(&harness, six, &CLOSE[..2]);
        assert_eq!(harness.ends(), [], "one FIN is not acknowledged yet");
        send(&harness, six, &CLOSE[2..]);
        let [end] = harness.ends().try_into().expect("over, at once");
        let (key, flow) = harness.only();
        assert_eq!((end.kind, end.family, end.key, end.flow), (EVENT_CLOSED, if six { 6 } else { 4 }, key, flow));
        assert_eq!(flow.state & (STATE_CLOSED | STATE_RESET | STATE_GUESSED), STATE_CLOSED);
        assert_eq!(flow.direction.map(|direction| direction.packets), [3, 3]);
        let client = flow.direction[flow.originator()];
        assert_eq!(client.owner, pod(2, false).packed(), "the client originated it");
        assert_eq!(client.flags & 0xff, FLAG_SYN | FLAG_ACK | FLAG_FIN);
        assert_eq!(harness.balance(), []);
    }
}

#[test]
fn a_refused_connection_is_over_with_the_reset() {
    let mut harness = Harness::new(Setting::default());
    send(&harness, false, &[(false, SYN, 100, 0), (true, RST | ACK, 0, 101)]);
    let [end] = harness.ends().try_into().expect("over");
    assert_eq!(end.flow.state & (STATE_CLOSED | STATE_RESET), STATE_CLOSED | STATE_RESET);
    assert_eq!(end.flow.direction.map(|direction| direction.packets), [1, 1], "the reset is counted in its own event");
}

#[test]
fn a_reused_port_is_another_generation_of_the_same_entry() {
    let mut harness = Harness::new(Setting::default());
    send(&harness, false, &OPEN);
    send(&harness, false, &CLOSE);
    send(&harness, false, &OPEN);
    let kinds: Vec<u32> = harness.events().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EVENT_NEW, EVENT_GENERATION]);
    let flow = harness.only().1;
    assert_eq!((flow.generation, flow.base_packets, flow.state & STATE_CLOSED), (1, [3, 3], 0));
    assert_eq!(flow.base_bytes, [120, 120]);
    assert_eq!(flow.direction.map(|direction| direction.packets).iter().sum::<u64>(), 9);
    assert_eq!(flow.direction.map(|direction| direction.flags & FLAG_FIN), [0, 0], "flags begin anew");
}

#[test]
fn a_syn_after_the_end_takes_its_direction_over() {
    // A Pod came back with its address behind another interface; the old one is silent, but not for long enough.
    let mut harness = Harness::new(Setting::default());
    send(&harness, false, &OPEN);
    send(&harness, false, &[(true, RST, 501, 0)]);
    harness.pass(pod(3, false), &segment(false, false, SYN, 900, 0));
    let flow = harness.only().1;
    assert_eq!((flow.generation, flow.direction[flow.originator()].owner), (1, pod(3, false).packed()));
    assert_eq!(harness.events().last().map(|event| event.kind), Some(EVENT_GENERATION));
    harness.pass(uplink(4, true), &segment(false, false, SYN, 900, 0));
    assert_eq!(harness.only().1.generation, 1, "the next hook on its way only annotates");
    assert_eq!(harness.balance(), []);
}

#[test]
fn data_of_a_later_fragment_is_no_tcp_header() {
    let mut harness = Harness::new(Setting::default());
    send(&harness, false, &OPEN);
    // An answer is awaited now, so that the client's segments are looked at.
    send(&harness, false, &[(true, FIN | ACK, 501, 101)]);
    let first = Ipv4 { id: 7, fragment: MORE, ..Ipv4::new(6) };
    let segment = Tcp { sequence: 101, acknowledged: 501, ..Tcp::new(ACK) };
    harness.pass(pod(2, false), &first.frame(&segment.with(b"data")));
    let forged = Tcp { acknowledged: 502, ..Tcp::new(RST | FIN | ACK) }.with(b"");
    harness.pass(pod(2, false), &Ipv4 { fragment: 3, ..first }.frame(&forged));
    let flow = harness.only().1;
    assert_eq!((harness.ends(), flow.state & STATE_CLOSED), (vec![], 0));
    assert_eq!(flow.direction[flow.originator()].packets, 4, "and yet it is counted in the connection");
}

#[test]
fn what_is_left_of_a_connection_is_over_from_the_start() {
    let mut harness = Harness::new(Setting::default());
    send(&harness, false, &[(true, RST, 501, 0)]);
    let [event] = harness.events().try_into().expect("new");
    assert_eq!(event.kind, EVENT_NEW);
    assert_eq!(event.flow.state & (STATE_CLOSED | STATE_GUESSED), STATE_CLOSED | STATE_GUESSED);
    let flags = event.flow.direction.map(|direction| direction.flags);
    assert!(flags.contains(&FLAG_RST), "{flags:?}");
}

#[test]
fn a_connection_first_met_in_its_middle_has_a_guessed_originator() {
    let harness = Harness::new(Setting::default());
    send(&harness, false, &[(true, ACK, 501, 101), (false, ACK, 101, 501)]);
    let flow = harness.only().1;
    assert_ne!(flow.state & STATE_GUESSED, 0);
    assert_eq!(flow.direction[flow.originator()].owner, pod(2, true).packed(), "the first packet's sender");
}

#[test]
fn a_full_ring_of_ends_is_counted() {
    let mut harness = Harness::new(Setting { ring_bytes: 4_096, ..Setting::default() });
    for port in 0..100 {
        for flags in [SYN, RST] {
            let tcp = Tcp { ports: [40_000, port], ..Tcp::new(flags) }.with(b"");
            harness.pass(pod(2, false), &Ipv4::new(6).frame(&tcp));
        }
    }
    let ends = harness.ends().len() as u64;
    assert!(ends < 100, "{ends}");
    assert_eq!(harness.counters(pod(2, false)).ends_lost, 100 - ends);
    assert_eq!(harness.balance(), []);
}
