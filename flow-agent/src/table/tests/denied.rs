//! What drops, resets and ICMP errors make of a connection.

use std::time::Duration;

use flow_common::abi::drop::Site;
use flow_common::record::{ForwardingStatus, TcpState};

use super::*;
use crate::kernel::drops::{FlowDrops, FlowKey};

const SITE: Site = Site { location: 0xffff_ffff_8100_0000, reason: 11, ifindex: CLIENT };

impl Simulation {
    /// The last packet of `tuple` was dropped.
    fn dropped(&mut self, tuple: Tuple, by_rule: bool) {
        let (key, reversed) = Key::of(&tuple, tuple.dst_port).unwrap();
        let mut counts = [abi::Count::default(); 2];
        counts[usize::from(reversed)] = abi::Count { packets: 1, bytes: 60 };
        let none = [abi::Count::default(); 2];
        let drops = FlowDrops {
            key: match key {
                Key::V4(key) => FlowKey::V4(key),
                Key::V6(key) => FlowKey::V6(key),
            },
            by_rule: if by_rule { counts } else { none },
            by_failure: if by_rule { none } else { counts },
            last_ns: MONOTONIC + self.now,
            site: SITE,
        };
        let (clock, now) = (self.clock(), self.time());
        let events = std::mem::take(&mut self.events);
        self.table.feed_events(&events, &clock, now);
        self.table.feed_drops(&[drops], &clock, now);
    }

    /// An ICMP error about packets of `tuple` passed.
    fn refused(&mut self, tuple: Tuple) {
        let (key, _) = Key::of(&tuple, tuple.dst_port).unwrap();
        self.map.get_mut(&raw(&key)).unwrap().state |= abi::STATE_REFUSED;
        self.event(abi::EVENT_REFUSED, &key);
    }

    /// Sweeps every second for so long.
    fn watch(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.pass(1_000);
            self.sweep();
        }
    }
}

fn tcp() -> Tuple {
    tuple(("10.0.1.2", 40_000), ("10.0.2.2", 80), 6)
}

fn udp() -> Tuple {
    tuple(("10.0.2.2", 40_000), ("10.0.1.2", 53), 17)
}

fn says(update: &Update) -> (ForwardingStatus, EndReason, u64) {
    (update.extended.forwarding_status, update.head.end_reason, update.extended.dropped_packets)
}

#[test]
fn all_attempts_are_one_connection_that_a_rule_dropped() {
    let mut simulation = Simulation::new();
    for pause in [0, 1_000, 2_000] {
        simulation.pass(pause);
        simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
        simulation.dropped(tcp(), true);
        simulation.tick();
    }
    simulation.watch(5);
    let record = simulation.record();
    assert_eq!(says(&record), (ForwardingStatus::Dropped, EndReason::End, 3));
    assert_eq!((packets(&record), octets(&record)), ([3, 3, 0, 0], [180, 180, 0, 0]));
    assert_eq!((record.tcp_state, record.extended.tcp_flags), (TcpState::None, SYN as u16));
    let denied: Vec<_> = simulation.table.denied().collect();
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0].site, Some(SITE));

    // A further attempt goes on with the same connection.
    simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
    simulation.dropped(tcp(), true);
    simulation.watch(12);
    let further = simulation.record();
    assert_eq!(says(&further), (ForwardingStatus::Dropped, EndReason::End, 4));
    assert_eq!((packets(&further), further.extended.flow_id), ([4, 1, 0, 0], record.extended.flow_id));

    // Its end has nothing more to say.
    simulation.watch(200);
    assert_eq!(simulation.records(), []);
    assert!(simulation.map.is_empty(), "the entry is deleted");
    assert_eq!(simulation.table.denied().count(), 0);
}

#[test]
fn a_reset_is_a_reject_with_its_packets_counted() {
    for by_rule in [true, false] {
        let mut simulation = Simulation::new();
        simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
        if by_rule {
            simulation.dropped(tcp(), true);
        }
        simulation.packet(back(tcp()), pod(CLIENT, true), 40, RST | ACK);
        simulation.tick();
        let record = simulation.record();
        let dropped = u64::from(by_rule);
        assert_eq!(says(&record), (ForwardingStatus::Rejected, EndReason::End, dropped));
        assert_eq!((packets(&record), octets(&record)), ([1, 1, 1, 1], [60, 60, 40, 40]));
        assert_eq!(record.tcp_state, TcpState::None);
    }
}

#[test]
fn a_reset_of_what_was_accepted_is_no_reject() {
    let mut simulation = Simulation::new();
    simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
    simulation.packet(back(tcp()), pod(CLIENT, true), 60, SYN | ACK);
    simulation.packet(back(tcp()), pod(CLIENT, true), 40, RST);
    simulation.tick();
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Forwarded, EndReason::End, 0));
    // Nor is one of which the beginning was not seen.
    let late = Tuple { src_port: 40_001, ..tcp() };
    simulation.packet(late, pod(CLIENT, false), 60, ACK);
    simulation.packet(back(late), pod(CLIENT, true), 40, RST);
    simulation.tick();
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Forwarded, EndReason::End, 0));
}

#[test]
fn an_icmp_error_refuses_what_was_not_answered() {
    for by_rule in [true, false] {
        let mut simulation = Simulation::new();
        simulation.packet(udp(), pod(CLIENT, false), 60, 0);
        if by_rule {
            simulation.dropped(udp(), true);
        }
        simulation.refused(udp());
        simulation.watch(7);
        assert_eq!(says(&simulation.record()), (ForwardingStatus::Rejected, EndReason::End, u64::from(by_rule)));
        // An answer says better.
        simulation.packet(back(udp()), pod(CLIENT, true), 60, 0);
        simulation.watch(10);
        let record = simulation.record();
        assert_eq!(says(&record), (ForwardingStatus::Forwarded, EndReason::Active, u64::from(by_rule)));
    }
}

#[test]
fn a_refusal_whose_event_was_lost_is_found_with_the_next_packet() {
    let mut simulation = Simulation::new();
    simulation.packet(udp(), pod(CLIENT, false), 60, 0);
    simulation.refused(udp());
    simulation.events.pop();
    simulation.packet(udp(), pod(CLIENT, false), 60, 0);
    simulation.watch(7);
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Rejected, EndReason::End, 0));
}

#[test]
fn what_is_not_answered_is_unknown() {
    let mut simulation = Simulation::new();
    simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
    simulation.watch(200);
    let records = simulation.records();
    let said: Vec<_> = records.iter().map(says).collect();
    let unknown = |reason| (ForwardingStatus::Unknown, reason, 0);
    assert_eq!(said, [EndReason::Active, EndReason::Idle, EndReason::End].map(unknown));
    assert_eq!(simulation.table.denied().count(), 0);
}

#[test]
fn what_failed_without_a_rule_says_so() {
    let mut simulation = Simulation::new();
    simulation.packet(udp(), pod(CLIENT, false), 60, 0);
    simulation.dropped(udp(), false);
    simulation.watch(6);
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Failed, EndReason::End, 1));
}

#[test]
fn a_later_success_replaces_the_denial() {
    let mut simulation = Simulation::new();
    simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
    simulation.dropped(tcp(), true);
    simulation.watch(6);
    let first = simulation.record();
    assert_eq!(says(&first), (ForwardingStatus::Dropped, EndReason::End, 1));
    simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
    simulation.packet(back(tcp()), pod(CLIENT, true), 60, SYN | ACK);
    simulation.watch(6);
    let second = simulation.record();
    assert_eq!(says(&second), (ForwardingStatus::Forwarded, EndReason::Active, 1));
    assert_eq!((second.extended.flow_id, packets(&second)), (first.extended.flow_id, [2, 1, 1, 1]));
    assert_eq!(second.tcp_state, TcpState::SynReceived);
}

#[test]
fn an_answer_that_is_dropped_is_none() {
    let mut simulation = Simulation::new();
    simulation.packet(udp(), pod(CLIENT, false), 60, 0);
    simulation.packet(back(udp()), pod(SERVER, false), 60, 0);
    simulation.dropped(back(udp()), true);
    simulation.watch(6);
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Dropped, EndReason::End, 1));
}

#[test]
fn drops_that_are_told_of_before_their_flow_wait_for_it() {
    let mut simulation = Simulation::new();
    simulation.packet(udp(), pod(CLIENT, false), 60, 0);
    // The flow's event is lost.
    simulation.events.clear();
    simulation.dropped(udp(), true);
    simulation.dropped(udp(), true);
    simulation.watch(7);
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Dropped, EndReason::End, 2));
    assert_eq!(simulation.table.statistics().drops_unmatched, 0);
}

#[test]
fn drops_wait_for_a_flow_that_is_told_of_late() {
    let active_timeout = Duration::from_secs(1);
    let mut simulation = Simulation::with(TableConfig { active_timeout, ..config() });
    simulation.dropped(udp(), true);
    simulation.watch(8);
    simulation.packet(udp(), pod(CLIENT, false), 60, 0);
    simulation.watch(3);
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Dropped, EndReason::End, 1));
    assert_eq!(simulation.table.statistics().drops_unmatched, 0);
}

#[test]
fn drops_of_what_no_point_saw_are_no_flow() {
    let mut simulation = Simulation::new();
    simulation.dropped(udp(), true);
    simulation.watch(20);
    assert_eq!(simulation.records(), []);
    assert_eq!((simulation.table.statistics().drops_unmatched, simulation.table.statistics().flows), (1, 0));
}

#[test]
fn drops_that_are_told_of_after_the_record_are_news() {
    let mut simulation = Simulation::new();
    simulation.packet(tcp(), pod(CLIENT, false), 60, SYN);
    simulation.packet(back(tcp()), pod(CLIENT, true), 40, RST | ACK);
    simulation.tick();
    assert_eq!(says(&simulation.record()), (ForwardingStatus::Rejected, EndReason::End, 0));
    simulation.dropped(tcp(), true);
    simulation.watch(4);
    let record = simulation.record();
    assert_eq!((says(&record), packets(&record)), ((ForwardingStatus::Rejected, EndReason::End, 1), [1, 0, 1, 0]));
}

#[test]
fn a_stream_of_drops_is_told_of_again_and_again() {
    let mut simulation = Simulation::new();
    for _ in 0..60 {
        simulation.packet(udp(), pod(CLIENT, false), 60, 0);
        simulation.dropped(udp(), true);
        simulation.watch(1);
    }
    let records = simulation.records();
    assert!((10..=13).contains(&records.len()), "{}", records.len());
    assert!(records.iter().all(|record| record.extended.forwarding_status == ForwardingStatus::Dropped));
    let told: u64 = records.iter().map(|record| record.head.packet_delta).sum();
    assert_eq!(told, records.last().unwrap().head.packet_total);
}

#[test]
fn a_clock_that_is_set_back_lets_drops_go_that_waited_in_vain() {
    let mut sim = Simulation::new();
    sim.pass(7_200_000);
    sim.dropped(tcp(), true);
    sim.tick();
    sim.now -= 3_600_000_000_000;
    sim.watch(2);
    assert_eq!(sim.table.statistics().drops_unmatched, 1);
}
