//! One point counts, the others annotate; who takes over, when, and what becomes of the packets between.

use crate::harness::{Harness, Point, Setting, pod, uplink};
use flow_common::abi::{Count, Direction, EVENT_NEW, EVENT_TAKEOVER, FRESH, Reason};
use flow_ebpf::frames::{Ipv4, Ipv6, udp};

const NEVER: Setting = Setting { max_flows: 256, ring_bytes: 1 << 16, silence: u32::MAX };
const ALWAYS: Setting = Setting { silence: 0, ..NEVER };

/// From 10.0.0.1 to 10.0.0.2; 32 layer-3 bytes.
fn there() -> Vec<u8> {
    Ipv4::new(17).frame(&udp([5_000, 53], b"1234"))
}

fn back() -> Vec<u8> {
    Ipv4::new(17).back().frame(&udp([53, 5_000], b"12"))
}

/// The direction of [`there`], which is the one that was seen first.
fn direction(harness: &Harness) -> Direction {
    let flow = harness.only().1;
    flow.direction[flow.originator()]
}

fn pass(harness: &Harness, points: &[Point]) {
    for point in points {
        harness.pass(*point, &there());
    }
}

#[test]
fn a_packet_past_three_hooks_is_counted_once() {
    let mut harness = Harness::new(NEVER);
    let way = [pod(2, false), uplink(4, false), uplink(5, true)];
    for _ in 0..3 {
        pass(&harness, &way);
        for point in [uplink(5, false), uplink(4, true), pod(2, true)] {
            harness.pass(point, &back());
        }
    }
    let flow = harness.only().1;
    assert_eq!(flow.direction.map(|direction| direction.packets), [3, 3]);
    assert_eq!(direction(&harness).owner, pod(2, false).packed());
    assert_eq!(harness.counters(uplink(5, true)).annotated, Count { packets: 3, bytes: 96 });
    assert_eq!(harness.balance(), []);
    let events = harness.events();
    // The answers come in by an uplink; their Pod's own interface takes them over.
    let [event, handed] = events.try_into().expect("two");
    let answers = 1 - harness.only().1.originator() as u32;
    assert_eq!((event.kind, handed.kind), (EVENT_NEW, EVENT_TAKEOVER | answers));
    assert_eq!((event.family, event.key), (4, harness.only().0));
    assert_eq!(event.flow.direction.iter().map(|direction| direction.packets).sum::<u64>(), 1);
}

#[test]
fn between_two_pods_of_a_node_the_first_owns() {
    let harness = Harness::new(NEVER);
    for _ in 0..4 {
        pass(&harness, &[pod(2, false), pod(3, true)]);
    }
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (pod(2, false).packed(), 4));
    assert_eq!(harness.balance(), []);
}

#[test]
fn in_and_out_by_one_interface_is_counted_once() {
    let harness = Harness::new(NEVER);
    for _ in 0..4 {
        pass(&harness, &[uplink(4, false), uplink(4, true)]);
    }
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (uplink(4, false).packed(), 4));
}

#[test]
fn answers_by_another_way_have_an_owner_of_their_own() {
    let harness = Harness::new(NEVER);
    pass(&harness, &[uplink(4, false), uplink(5, true)]);
    harness.pass(uplink(6, false), &back());
    harness.pass(uplink(7, true), &back());
    let flow = harness.only().1;
    assert_eq!(flow.direction.map(|direction| direction.packets), [1, 1]);
    assert_eq!(flow.direction[1 - flow.originator()].owner, uplink(6, false).packed());
    assert_eq!(harness.balance(), []);
}

#[test]
fn a_pods_own_ingress_takes_over_with_this_packet() {
    let harness = Harness::new(NEVER);
    pass(&harness, &[uplink(4, true), uplink(4, true)]);
    // The Pod's interface is attached now.
    pass(&harness, &[pod(2, false), uplink(4, true)]);
    pass(&harness, &[pod(2, false), uplink(4, true)]);
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (pod(2, false).packed(), 4));
    assert_eq!(harness.balance(), []);
    assert_eq!(harness.counters(uplink(4, true)).annotated.packets, 2);
}

#[test]
fn a_pods_own_egress_takes_over_with_the_next_packet() {
    let mut harness = Harness::new(NEVER);
    pass(&harness, &[uplink(4, false)]);
    harness.events();
    // The Pod's interface is attached now: its packet was counted by the uplink already.
    pass(&harness, &[uplink(4, false), pod(2, true)]);
    let [event] = harness.events().try_into().expect("the take-over");
    let before = event.flow.direction[event.flow.originator()];
    let kind = EVENT_TAKEOVER | event.flow.originator() as u32;
    assert_eq!((event.kind, before.owner, before.packets), (kind, uplink(4, false).packed(), 2));
    assert_eq!(before.candidate, pod(2, true).packed());
    pass(&harness, &[uplink(4, false), pod(2, true)]);
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (pod(2, true).packed(), 3));
    assert_eq!(harness.balance(), []);
    assert_eq!(harness.counters(pod(2, true)).annotated.packets, 1);
}

#[test]
fn a_pods_own_egress_counts_what_its_owner_missed() {
    let harness = Harness::new(NEVER);
    pass(&harness, &[uplink(4, true)]);
    // Re-routed: the owner sees nothing of these.
    pass(&harness, &[uplink(5, false)]);
    assert_eq!(direction(&harness).pending_packets, 1, "an egress owner comes after an ingress hook");
    pass(&harness, &[uplink(5, false), pod(2, true)]);
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (pod(2, true).packed(), 2));
    assert_eq!(harness.balance(), [(Reason::Takeover, 1)], "the one before the Pod's point was there");
}

#[test]
fn a_silent_owner_is_taken_over_and_the_packets_between_are_takeover() {
    let harness = Harness::new(NEVER);
    pass(&harness, &[uplink(4, false), uplink(5, true)]);
    assert_eq!(direction(&harness).pending_packets, 0, "an ingress owner has counted what an egress hook sees");
    // The owner's interface is gone; the packets come in elsewhere.
    pass(&harness, &[uplink(5, true), uplink(5, true), uplink(5, true)]);
    assert_eq!(direction(&harness).pending_packets, 3);
    assert_eq!(direction(&harness).owner, uplink(4, false).packed(), "not yet silent for long enough");

    let harness = Harness::new(ALWAYS);
    pass(&harness, &[uplink(4, false), uplink(5, true)]);
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (uplink(4, false).packed(), 1));
    pass(&harness, &[uplink(5, true), uplink(5, true)]);
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (uplink(5, true).packed(), 3));
    assert_eq!(harness.balance(), [], "it had missed none before");
}

#[test]
fn what_passed_before_a_take_over_moves_from_annotated_to_takeover() {
    let harness = Harness::new(ALWAYS);
    pass(&harness, &[uplink(4, true)]);
    // Through an ingress hook first: this one could still reach the owner, the next shows that it did not.
    pass(&harness, &[uplink(5, false)]);
    assert_eq!((direction(&harness).candidate, direction(&harness).pending_packets), (uplink(5, false).packed(), 1));
    pass(&harness, &[uplink(5, false)]);
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (uplink(5, false).packed(), 2));
    assert_eq!(harness.balance(), [(Reason::Takeover, 1)]);
    let hook = harness.counters(uplink(5, false));
    assert_eq!(hook.lost[Reason::Takeover as usize], Count { packets: 1, bytes: 32 });
    assert_eq!(hook.seen.packets, 2);
    assert_eq!(direction(&harness).pending_packets, FRESH);
}

#[test]
fn a_live_owner_behind_another_hook_is_never_taken_over() {
    // However seldom packets come: each is seen by the other hook first.
    let harness = Harness::new(ALWAYS);
    pass(&harness, &[pod(2, true)]);
    for _ in 0..5 {
        pass(&harness, &[uplink(4, false), pod(2, true)]);
    }
    assert_eq!((direction(&harness).owner, direction(&harness).packets), (pod(2, true).packed(), 6));
    assert_eq!(harness.balance(), []);
}

#[test]
fn an_owner_that_counted_after_the_clock_was_read_is_not_silent() {
    let mut harness = Harness::new(Setting { silence: 500, ..NEVER });
    pass(&harness, &[uplink(4, true), uplink(5, false)]);
    assert_eq!(direction(&harness).pending_packets, 1);
    // Another CPU's packet came after this one's program had read the clock.
    harness.move_last(1_000);
    pass(&harness, &[uplink(5, false)]);
    assert_eq!(direction(&harness).owner, uplink(4, true).packed());
    assert_eq!(direction(&harness).pending_packets, 2);
    harness.move_last(-2_000);
    pass(&harness, &[uplink(5, false)]);
    assert_eq!(direction(&harness).owner, uplink(5, false).packed(), "long silent");
}

#[test]
fn of_two_hooks_of_one_kind_the_second_sees_what_is_counted() {
    let harness = Harness::new(NEVER);
    let within_a_tick = || {
        harness.next_tick();
        pass(&harness, &[uplink(4, false), uplink(5, false)]);
        direction(&harness).pending_packets == 0
    };
    // A slow machine's tick may end between the two.
    assert!((0..100).any(|_| within_a_tick()), "the owner counted in this tick");
    harness.next_tick();
    pass(&harness, &[uplink(4, false)]);
    harness.next_tick();
    harness.next_tick();
    pass(&harness, &[uplink(5, false)]);
    assert_eq!(direction(&harness).pending_packets, 1, "the owner counted in an earlier one");
}

#[test]
fn a_tick_that_begins_between_two_hooks_makes_no_packet_two() {
    let counted_once = || {
        let mut harness = Harness::new(NEVER);
        harness.next_tick();
        pass(&harness, &[uplink(4, false)]);
        harness.move_last(-1);
        // A bridge over the uplink, then the Pod.
        pass(&harness, &[uplink(5, false)]);
        let is_pending = direction(&harness).pending_packets != 0;
        pass(&harness, &[pod(2, true)]);
        assert_eq!(harness.balance(), []);
        !is_pending && direction(&harness).packets == 1
    };
    // A slow machine's tick may end as well.
    assert!((0..100).any(|_| counted_once()), "the owner counted it in the tick before");
}

#[test]
fn a_full_map_loses_new_flows_only_and_says_so() {
    let mut harness = Harness::new(Setting { max_flows: 4, ..NEVER });
    let to = |port: u16| Ipv4::new(17).frame(&udp([5_000, port], b"1234"));
    // A preallocated hash keeps one spare element per CPU, so a few more may fit.
    for port in 0..64 {
        harness.pass(pod(2, false), &to(port));
    }
    let there = harness.flows().len() as u64;
    assert!((4..64).contains(&there), "{there}");
    assert_eq!(harness.balance(), [(Reason::MapFull, 64 - there)]);
    assert_eq!(harness.events().len() as u64, there);
    harness.pass(pod(2, false), &to(0));
    assert_eq!(harness.balance(), [(Reason::MapFull, 64 - there)], "a flow that is in goes on");
    harness.pass(pod(2, false), &Ipv6::new(17).frame(&udp([5_000, 1], b"")));
    assert_eq!(harness.flows().len() as u64, there + 1, "the other family has a map of its own");
}

#[test]
fn a_full_ring_loses_events_only_and_counts_them() {
    let mut harness = Harness::new(Setting { ring_bytes: 4_096, ..NEVER });
    for port in 0..100 {
        harness.pass(pod(2, false), &Ipv4::new(17).frame(&udp([5_000, port], b"")));
    }
    let events = harness.events().len() as u64;
    assert!(events < 100, "{events}");
    assert_eq!(harness.counters(pod(2, false)).events_lost, 100 - events);
    assert_eq!(harness.flows().len(), 100);
    assert_eq!(harness.balance(), []);
}

#[test]
fn a_full_ring_puts_a_take_over_off() {
    let mut harness = Harness::new(Setting { ring_bytes: 4_096, ..NEVER });
    pass(&harness, &[uplink(4, true)]);
    let fill = |port: u16| harness.pass(pod(2, false), &Ipv4::new(17).frame(&udp([6_000, port], b"")));
    (0..100).for_each(fill);
    pass(&harness, &[pod(2, false), uplink(4, true), pod(2, false), uplink(4, true)]);
    let counts = |harness: &Harness| {
        let (_, flow) =
            harness.flows().into_iter().find(|(key, _)| key.port.contains(&5_000_u16.to_be())).expect("it is in");
        (flow.direction[flow.originator()].owner, flow.direction[flow.originator()].packets)
    };
    assert_eq!(counts(&harness), (uplink(4, true).packed(), 3), "the owner goes on counting");
    harness.events();
    pass(&harness, &[pod(2, false), uplink(4, true)]);
    assert_eq!(counts(&harness), (pod(2, false).packed(), 4));
    assert_eq!(harness.events().iter().map(|event| event.kind & !1).collect::<Vec<_>>(), [EVENT_TAKEOVER]);
    assert_eq!(harness.balance(), []);
}

#[test]
fn without_an_agent_nothing_is_counted_any_more() {
    let mut harness = Harness::new(NEVER);
    pass(&harness, &[pod(2, false)]);
    harness.lease(u64::MAX);
    pass(&harness, &[pod(2, false)]);
    assert_eq!(harness.counters(pod(2, false)).seen.packets, 2);
    // The first tick since the machine started.
    harness.lease(1);
    pass(&harness, &[pod(2, false)]);
    assert_eq!(harness.counters(pod(2, false)).seen.packets, 2);
    assert_eq!(direction(&harness).packets, 2);
}
