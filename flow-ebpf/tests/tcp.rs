//! The life of TCP connections, segment by segment.

use flow_common::abi::{
    EVENT_CLOSED, EVENT_GENERATION, FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, Flow, STATE_CLOSED, STATE_GUESSED,
    STATE_RESET, STATE_REVERSED,
};
use flow_ebpf::frames::{Ipv4, Tcp};
use flow_ebpf::origin;
use flow_ebpf::parse::Bytes;
use flow_ebpf::tcp::{Segment, advance};
use proptest::prelude::*;

/// A connection between a client (direction 0) and a server.
#[derive(Default)]
struct Connection {
    flow: Flow,
    next: [u32; 2],
}

impl Connection {
    /// Opened, each side's sequence number near its wrap.
    fn open() -> Self {
        let mut connection = Self { flow: Flow::default(), next: [u32::MAX - 5, u32::MAX - 1] };
        connection.flow.state = origin::of(FLAG_SYN, false);
        connection.send(0, FLAG_SYN, 0);
        connection.send(1, FLAG_SYN | FLAG_ACK, 0);
        connection.send(0, FLAG_ACK, 0);
        connection
    }

    /// Sends a segment that acknowledges everything so far; gives the event.
    fn send(&mut self, side: usize, flags: u32, payload: u32) -> u32 {
        let acknowledged = self.next[1 - side];
        self.send_with(side, flags, payload, acknowledged)
    }

    fn send_with(&mut self, side: usize, flags: u32, payload: u32, acknowledged: u32) -> u32 {
        let controls = u32::from(flags & FLAG_SYN != 0) + u32::from(flags & FLAG_FIN != 0);
        self.next[side] = self.next[side].wrapping_add(payload + controls);
        let segment = Segment { flags, end: self.next[side], acknowledged };
        let event = advance(&mut self.flow, side == 1, &segment, || 99);
        self.flow.direction[side].packets += 1;
        event
    }
}

#[test]
fn the_last_acknowledgement_closes() {
    let mut connection = Connection::open();
    assert_eq!(connection.send(0, FLAG_ACK, 100), 0);
    let before_fin = connection.next[0];
    assert_eq!(connection.send(0, FLAG_FIN | FLAG_ACK, 0), 0);
    assert_eq!(connection.send_with(1, FLAG_ACK, 50, before_fin), 0, "acknowledges data, not the FIN");
    assert_eq!(connection.send(1, FLAG_FIN | FLAG_ACK, 0), 0);
    assert_eq!(connection.flow.state & STATE_CLOSED, 0);
    assert_eq!(connection.send(0, FLAG_ACK, 0), EVENT_CLOSED);
    assert_eq!(connection.flow.state, STATE_CLOSED);
    assert_eq!(connection.send(0, FLAG_ACK, 0), 0, "closed once");
}

#[test]
fn a_reset_closes_at_once() {
    let mut connection = Connection::default();
    connection.flow.state = origin::of(FLAG_SYN, false);
    connection.send(0, FLAG_SYN, 0);
    assert_eq!(connection.send(1, FLAG_RST | FLAG_ACK, 0), EVENT_CLOSED);
    assert_eq!(connection.flow.state, STATE_CLOSED | STATE_RESET);
}

#[test]
fn a_syn_on_a_closed_connection_begins_a_generation() {
    let mut connection = Connection::open();
    assert_eq!(connection.send(0, FLAG_SYN, 0), 0, "a repeated SYN is nothing new");
    connection.send(1, FLAG_RST, 0);
    assert_eq!(connection.send(1, FLAG_SYN, 0), EVENT_GENERATION);
    let flow = &connection.flow;
    assert_eq!((flow.generation, flow.first_ns, flow.base_packets), (1, 99, [3, 2]));
    assert_eq!(flow.state, STATE_REVERSED, "open, and begun by the other side");
    assert_eq!(flow.direction.map(|direction| direction.flags), [0, FLAG_SYN]);
}

#[test]
fn a_syn_settles_what_was_a_guess() {
    assert_eq!(origin::of(FLAG_ACK, true), STATE_REVERSED | STATE_GUESSED);
    assert_eq!(origin::of(FLAG_SYN | FLAG_ACK, false), STATE_REVERSED, "the answer's receiver");
    let mut connection = Connection::default();
    connection.flow.state = origin::of(FLAG_ACK, false);
    connection.send(1, FLAG_SYN, 0);
    assert_eq!(connection.flow.state, STATE_REVERSED);
}

#[test]
fn segments_are_read_with_their_length() {
    let tcp = Tcp { sequence: 10, acknowledged: 20, ..Tcp::new(0x11) };
    let frame = Ipv4::new(6).frame(&tcp.with(b"12345"));
    let end = u32::try_from(frame.len()).expect("short");
    let segment = Segment::load(&Bytes(&frame), 34, end).expect("whole");
    assert_eq!(segment, Segment { flags: FLAG_FIN | FLAG_ACK, end: 16, acknowledged: 20 });
    assert_eq!(Segment::load(&Bytes(&frame), 40, end), None, "cut short");
}

proptest! {
    /// However segments come, a connection closes at most once a generation, and never without FIN both ways or RST.
    #[test]
    fn closing_is_announced_once(segments in prop::collection::vec((0_usize..2, 0_u32..32, 0_u32..3, any::<u32>()), 0..60)) {
        let mut connection = Connection::open();
        let mut closed = 0;
        for (side, flags, payload, acknowledged) in segments {
            let event = connection.send_with(side, flags, payload, acknowledged);
            closed += u32::from(event == EVENT_CLOSED);
            let flow = &connection.flow;
            prop_assert!(closed <= flow.generation + 1);
            if flow.state & (STATE_CLOSED | STATE_RESET) == STATE_CLOSED {
                prop_assert!(flow.direction.iter().all(|direction| direction.flags & FLAG_FIN != 0));
            }
        }
    }
}
