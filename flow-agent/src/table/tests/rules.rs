//! Each rule of a flow's life.

use flow_common::record::TcpState;

use super::*;

fn web() -> Tuple {
    tuple(("10.0.1.2", 40_000), ("10.0.1.3", 80), 6)
}

fn name_query() -> Tuple {
    tuple(("10.0.1.2", 50_000), ("10.0.1.9", 53), 17)
}

/// SYN, its answer, ACK.
fn open(sim: &mut Simulation, there: Tuple) {
    sim.packet(there, pod(CLIENT, false), 60, SYN);
    sim.packet(back(there), pod(SERVER, false), 60, SYN | ACK);
    sim.packet(there, pod(CLIENT, false), 52, ACK);
}

/// FIN both ways, and the last acknowledgement.
fn close(sim: &mut Simulation, there: Tuple) {
    sim.packet(there, pod(CLIENT, false), 52, FIN | ACK);
    sim.packet(back(there), pod(SERVER, false), 52, FIN | ACK);
    sim.packet(there, pod(CLIENT, false), 52, ACK);
}

#[test]
fn a_flow_with_packets_is_exported_every_five_seconds() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    let mut at = Vec::new();
    let mut delta = 0;
    for decisecond in 0..400 {
        if decisecond % 10 == 0 {
            sim.packet(web(), pod(CLIENT, false), 1_000, ACK);
        }
        // A sweep comes by at 1.3 s, 6.3 s, 11.3 s and so on.
        if decisecond % 50 == 13 {
            sim.sweep();
        } else {
            sim.tick();
        }
        for record in sim.records() {
            assert_eq!(record.head.end_reason, EndReason::Active);
            assert_eq!(record.tcp_state, TcpState::Established);
            delta += record.head.packet_delta;
            assert_eq!(record.head.packet_total, delta);
            at.push(decisecond);
        }
        sim.pass(100);
    }
    // The first one in the second after the time-out, then with what the sweeps bring.
    assert_eq!(at, [60, 113, 163, 213, 263, 313, 363]);
}

#[test]
fn a_flow_without_packets_is_exported_once_as_idle_and_goes_on_as_the_same() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    let mut seen = Vec::new();
    for _ in 0..41 {
        sim.sweep();
        seen.extend(sim.records());
        sim.pass(1_000);
    }
    let reasons: Vec<EndReason> = seen.iter().map(|record| record.head.end_reason).collect();
    assert_eq!(reasons, [EndReason::Active, EndReason::Idle]);
    assert_eq!(packets(&seen[0]), [2, 2, 1, 1]);
    assert_eq!(packets(&seen[1]), [2, 0, 1, 0]);
    sim.packet(back(web()), pod(SERVER, false), 500, ACK);
    for _ in 0..7 {
        sim.sweep();
        sim.pass(1_000);
    }
    let again = sim.record();
    assert_eq!(packets(&again), [2, 0, 2, 1]);
    assert_eq!(again.head.end_reason, EndReason::Active);
    assert_eq!(
        (again.extended.flow_id, again.head.src_addr, again.start),
        (seen[0].extended.flow_id, web().src, seen[0].start)
    );
    assert_eq!(again.extended.end_milliseconds - again.extended.start_milliseconds, 41_000);
}

#[test]
fn fin_both_ways_ends_a_flow_at_once() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    close(&mut sim, web());
    sim.pass(100);
    sim.tick();
    let record = sim.record();
    assert_eq!((record.head.end_reason, record.tcp_state), (EndReason::End, TcpState::TimeWait));
    assert_eq!(packets(&record), [4, 4, 2, 2]);
    assert_eq!(octets(&record), [216, 216, 112, 112]);
    assert_eq!((record.extended.tcp_flags, record.extended.reverse_tcp_flags), (0x13, 0x13));
    assert_eq!(sim.table.statistics().live, 0);
}

#[test]
fn a_refused_connection_ends_at_once() {
    let mut sim = Simulation::new();
    sim.packet(web(), pod(CLIENT, false), 60, SYN);
    sim.packet(back(web()), pod(SERVER, false), 40, RST | ACK);
    sim.tick();
    let record = sim.record();
    assert_eq!((record.head.end_reason, record.tcp_state), (EndReason::End, TcpState::None));
    assert_eq!(packets(&record), [1, 1, 1, 1]);
}

#[test]
fn strays_are_exported_too_and_the_entry_goes_after_two_quiet_seconds() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    close(&mut sim, web());
    sim.tick();
    sim.records();
    sim.pass(1_000);
    sim.packet(back(web()), pod(SERVER, false), 52, FIN | ACK);
    sim.sweep();
    assert_eq!(sim.map.len(), 1);
    assert_eq!(sim.records(), []);
    for _ in 0..4 {
        sim.pass(1_000);
        sim.sweep();
    }
    let record = sim.record();
    assert_eq!((record.head.end_reason, packets(&record)), (EndReason::End, [4, 0, 3, 1]));
    assert!(sim.map.is_empty());
    assert_eq!((sim.table.statistics().entries, sim.table.flows().count()), ([0, 0], 0));
}

#[test]
fn an_entry_that_had_a_packet_meanwhile_stays() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    close(&mut sim, web());
    sim.sweep();
    sim.pass(3_000);
    let (clock, now) = (sim.clock(), sim.time());
    let slice = sim.slice();
    sim.table.feed_slice(&slice, &clock, now);
    assert_eq!(sim.table.deletions().keys4.len(), 1);
    open(&mut sim, web());
    sim.delete();
    assert_eq!(sim.map.len(), 1);
    sim.finish();
    let deltas: u64 =
        sim.records().iter().map(|record| record.head.packet_delta + record.head.reverse_packet_delta).sum();
    assert_eq!(deltas, 9);
}

#[test]
fn an_entry_that_counted_after_the_last_sweep_stays_until_that_is_told_of() {
    let mut sim = Simulation::new();
    sim.packet(name_query(), pod(CLIENT, false), 60, 0);
    for _ in 0..28 {
        sim.sweep();
        sim.pass(1_000);
    }
    sim.packet(name_query(), pod(CLIENT, false), 60, 0);
    // Thirty seconds after the first packet the flow is over for all that the table knows, and silent since long ago.
    for _ in 0..5 {
        sim.pass(1_000);
        sim.tick();
        sim.delete();
    }
    for _ in 0..40 {
        sim.sweep();
        sim.pass(1_000);
    }
    assert_eq!(sim.records().iter().map(|record| record.head.packet_delta).sum::<u64>(), 2);
    assert!(sim.map.is_empty());
}

#[test]
fn connection_tracking_ends_a_udp_flow_with_its_exact_time() {
    let mut sim = Simulation::new();
    sim.conntrack(Kind::New, tracked(name_query(), back(name_query()), 7));
    sim.packet(name_query(), pod(CLIENT, false), 70, 0);
    sim.packet(back(name_query()), pod(SERVER, false), 130, 0);
    for _ in 0..90 {
        sim.sweep();
        sim.pass(1_000);
    }
    let reasons: Vec<EndReason> = sim.records().iter().map(|record| record.head.end_reason).collect();
    assert_eq!(reasons, [EndReason::Active, EndReason::Idle]);
    let stop = Timestamp::from_nanos(WALL + 30_000_000_000);
    // Packets of the next connection are counted before the message about the end of this one comes.
    sim.packet(name_query(), pod(CLIENT, false), 70, 0);
    sim.conntrack(Kind::Destroy, Entry { stop: Some(stop), ..tracked(name_query(), back(name_query()), 7) });
    sim.tick();
    let record = sim.record();
    assert_eq!((record.head.end_reason, packets(&record)), (EndReason::End, [1, 0, 1, 0]));
    assert_eq!(record.extended.end_milliseconds, WALL / 1_000_000);
    sim.finish();
    let next = sim.record();
    assert_eq!(packets(&next), [1, 1, 0, 0]);
    assert_ne!(next.extended.flow_id, record.extended.flow_id);
    assert_eq!(next.extended.start_milliseconds, WALL / 1_000_000 + 90_000);
}

#[test]
fn without_connection_tracking_the_kernels_time_outs_end_a_flow() {
    // In the second after 30 s and 120 s.
    for (answered, seconds) in [(false, 31), (true, 121)] {
        let mut sim = Simulation::new();
        sim.packet(name_query(), pod(CLIENT, false), 70, 0);
        if answered {
            sim.packet(back(name_query()), pod(SERVER, false), 130, 0);
        }
        let mut ended = None;
        for second in 0..200 {
            sim.sweep();
            if sim.records().iter().any(|record| record.head.end_reason == EndReason::End) {
                ended = Some(second);
            }
            sim.pass(1_000);
        }
        assert_eq!(ended, Some(seconds));
        assert!(sim.map.is_empty());
    }
}

#[test]
fn a_reused_tuple_is_a_new_flow_even_if_every_event_is_lost() {
    for events_are_lost in [false, true] {
        let mut sim = Simulation::new();
        for life in 0..3 {
            open(&mut sim, web());
            if life == 1 {
                sim.packet(web(), pod(CLIENT, false), 1_500, ACK);
            }
            close(&mut sim, web());
            if events_are_lost {
                sim.events.clear();
            }
            if life == 0 {
                sim.sweep();
            }
            sim.pass(10);
        }
        sim.finish();
        let records = sim.records();
        let totals: Vec<u64> = records.iter().map(|record| record.head.packet_total).collect();
        let deltas: u64 = records.iter().map(|record| record.head.packet_delta).sum();
        assert_eq!(deltas, 13);
        // Without events the second life was never seen: its packets are the first one's strays.
        assert_eq!(totals, if events_are_lost { vec![4, 9, 4] } else { vec![4, 5, 4] });
        assert_eq!(sim.table.statistics().generations_missed, u64::from(events_are_lost));
    }
}

#[test]
fn generations_before_the_first_look_are_a_flow_of_their_own() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    close(&mut sim, web());
    open(&mut sim, web());
    sim.events.clear();
    sim.finish();
    let totals: Vec<[u64; 4]> = sim.records().iter().map(packets).collect();
    assert_eq!(totals, [[4, 4, 2, 2], [2, 2, 1, 1]]);
}

#[test]
fn the_end_of_the_agent_ends_every_flow() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    sim.packet(name_query(), pod(CLIENT, false), 70, 0);
    sim.finish();
    let records = sim.records();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.head.end_reason == EndReason::Forced));
}

#[test]
fn without_a_collector_live_flows_wait_and_heal() {
    let mut sim = Simulation::new();
    sim.connected = false;
    open(&mut sim, web());
    let ended = Tuple { src_port: 40_001, ..web() };
    open(&mut sim, ended);
    close(&mut sim, ended);
    for _ in 0..30 {
        sim.packet(web(), pod(CLIENT, false), 100, ACK);
        sim.sweep();
        sim.pass(1_000);
    }
    assert_eq!(sim.record().head.src_port, ended.src_port);
    sim.connected = true;
    for _ in 0..6 {
        sim.sweep();
        sim.pass(1_000);
    }
    let record = sim.record();
    assert_eq!(packets(&record), [32, 32, 1, 1]);
}

#[test]
fn beyond_the_room_unanswered_and_quiet_flows_go_first() {
    let mut sim = Simulation::with(TableConfig { max_flows: 100, ..config() });
    let flow = |port: u16| Tuple { src_port: port, ..web() };
    for port in 0..81 {
        sim.packet(flow(port), pod(CLIENT, false), 60, SYN);
        if port >= 10 {
            sim.packet(back(flow(port)), pod(SERVER, false), 60, SYN | ACK);
        }
        sim.pass(100);
        sim.tick();
    }
    let evicted: Vec<u16> = sim
        .records()
        .iter()
        .filter(|record| record.head.end_reason == EndReason::Resources)
        .map(|record| record.head.src_port)
        .collect();
    // At 81 entries down to 75: six of the unanswered ones.
    assert_eq!(evicted, [0, 1, 2, 3, 4, 5]);
    sim.pass(2_000);
    sim.sweep();
    assert_eq!(sim.map.len(), 75);
    assert_eq!(sim.table.statistics().evicted, 6);
}

#[test]
fn a_guess_of_the_originator_is_corrected_even_after_an_export() {
    for exported_before in [false, true] {
        let mut sim = Simulation::new();
        // The first packet seen is the server's.
        sim.packet(back(web()), pod(SERVER, false), 1_000, ACK);
        sim.packet(web(), pod(CLIENT, false), 52, ACK);
        sim.sweep();
        if exported_before {
            sim.pass(6_000);
            sim.tick();
            assert_eq!(sim.record().head.src_addr, web().dst);
        }
        sim.conntrack(Kind::New, tracked(web(), back(web()), 1));
        sim.packet(web(), pod(CLIENT, false), 52, ACK);
        sim.finish();
        let record = sim.record();
        assert_eq!(record.head.src_addr, web().src);
        let before = u64::from(exported_before);
        assert_eq!(packets(&record), [2, 2 - before, 1, 1 - before]);
    }
}

#[test]
fn a_flow_of_nobody_here_is_counted_and_not_exported() {
    let mut sim = Simulation::new();
    sim.local = false;
    let passing = tuple(("192.0.2.1", 1_000), ("192.0.2.2", 443), 6);
    sim.packet(passing, uplink(false), 60, SYN);
    sim.sweep();
    assert_eq!(sim.table.interfaces()[&UPLINK].undecided.packets, 1);
    sim.packet(passing, uplink(false), 40, RST);
    sim.sweep();
    assert_eq!(sim.records(), []);
    assert_eq!(sim.table.interfaces()[&UPLINK].not_local, abi::Count { packets: 2, bytes: 100 });
}

#[test]
fn a_pod_that_becomes_known_later_has_all_of_its_flow() {
    let mut sim = Simulation::new();
    sim.local = false;
    open(&mut sim, web());
    sim.sweep();
    sim.pass(8_000);
    sim.sweep();
    assert_eq!(sim.records(), []);
    sim.local = true;
    sim.pass(8_000);
    sim.sweep();
    assert_eq!(packets(&sim.record()), [2, 2, 1, 1]);
}

#[test]
fn each_owner_keeps_what_it_counted() {
    for swept_between in [false, true] {
        let mut sim = Simulation::new();
        // The uplink comes first in both directions, then the Pod's own interface counts; at last the packets come in
        // elsewhere.
        let inbound = tuple(("10.0.2.2", 40_000), ("10.0.1.3", 80), 6);
        sim.packet(inbound, uplink(false), 60, SYN);
        sim.packet(back(inbound), uplink(true), 61, SYN | ACK);
        if swept_between {
            sim.sweep();
        }
        sim.packet(back(inbound), uplink(true), 40, ACK);
        sim.packet(inbound, pod(SERVER, true), 52, ACK);
        sim.packet(back(inbound), pod(SERVER, false), 70, ACK);
        sim.packet(inbound, pod(SERVER, true), 500, ACK);
        sim.packet(inbound, owner::pack(9, false, false), 7, ACK);
        sim.finish();
        assert_eq!(packets(&sim.record()), [4, 4, 3, 3]);
        let sums = sim.table.interfaces();
        assert_eq!(sums[&UPLINK].accounted, abi::Count { packets: 3, bytes: 161 });
        assert_eq!(sums[&SERVER].accounted, abi::Count { packets: 3, bytes: 622 });
        assert_eq!(sums[&9].accounted, abi::Count { packets: 1, bytes: 7 });
    }
}

#[test]
fn a_value_ahead_of_its_take_over_waits_for_the_event() {
    let mut sim = Simulation::new();
    sim.packet(web(), uplink(false), 60, SYN);
    sim.tick();
    sim.packet(web(), uplink(false), 52, ACK);
    sim.packet(web(), pod(CLIENT, false), 52, ACK);
    let (clock, now, slice) = (sim.clock(), sim.time(), sim.slice());
    sim.table.feed_slice(&slice, &clock, now);
    sim.sweep();
    let sums = sim.table.interfaces();
    assert_eq!(everything(&sums[&UPLINK]), abi::Count { packets: 2, bytes: 112 });
    assert_eq!(everything(&sums[&CLIENT]), abi::Count { packets: 1, bytes: 52 });
}

#[test]
fn ping_and_ipv6_have_their_ends() {
    let mut sim = Simulation::new();
    let ping = tuple(("fd01::2", 77), ("fd02::2", 128 << 8), 58);
    let answer = Tuple { src: ping.dst, dst: ping.src, ..ping };
    sim.packet(ping, pod(CLIENT, false), 104, 0);
    sim.packet(answer, pod(CLIENT, true), 104, 0);
    sim.finish();
    let record = sim.record();
    assert_eq!((record.head.src_addr, record.head.dst_addr), (ping.src, ping.dst));
    assert_eq!((record.head.src_port, record.head.dst_port, record.extended.icmp_type_code), (77, 128 << 8, 128 << 8));
    assert_eq!(packets(&record), [1, 1, 1, 1]);
}

#[test]
fn a_value_older_than_what_is_known_adds_nothing() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    let old = std::mem::take(&mut sim.events);
    close(&mut sim, web());
    sim.sweep();
    let first = sim.record();
    sim.events = old;
    open(&mut sim, web());
    sim.finish();
    let rest: u64 = sim.records().iter().map(|record| record.head.packet_delta).sum();
    assert_eq!((first.head.packet_delta, rest), (4, 2));
}

#[test]
fn a_flow_with_a_packet_while_the_table_is_looked_at_is_not_quiet() {
    let mut sim = Simulation::with(TableConfig { max_flows: 100, ..config() });
    for port in 0..81 {
        sim.packet(Tuple { src_port: port, ..web() }, pod(CLIENT, false), 60, SYN);
        sim.pass(10);
    }
    // The time was read before the last five came.
    sim.now -= 50_000_000;
    sim.tick();
    assert_eq!(sim.table.statistics().entries, [81, 0]);
    assert_eq!(sim.table.statistics().evicted, 0, "none was quiet for two seconds");
}

#[test]
fn a_clock_that_is_set_back_stops_no_export() {
    let mut sim = Simulation::new();
    open(&mut sim, web());
    for second in 0..60 {
        if second == 20 {
            sim.now -= 15_000_000_000;
        }
        sim.packet(web(), pod(CLIENT, false), 100, ACK);
        sim.sweep();
        sim.pass(1_000);
    }
    assert!(sim.records().len() >= 11);
}

#[test]
fn a_clock_that_is_set_back_leaves_no_table_full() {
    let mut sim = Simulation::with(TableConfig { max_flows: 100, ..config() });
    sim.pass(7_200_000);
    for port in 0..100 {
        if port == 81 {
            sim.now -= 3_600_000_000_000;
        }
        sim.packet(Tuple { src_port: port, ..web() }, pod(CLIENT, false), 60, SYN);
        sim.pass(100);
        sim.tick();
    }
    // Six when there were 81, and as many as came since.
    assert!(sim.table.statistics().evicted > 6, "{:?}", sim.table.statistics());
    let connection = tracked(name_query(), back(name_query()), 7);
    sim.conntrack(Kind::New, connection);
    sim.conntrack(Kind::Destroy, connection);
    assert_eq!(sim.table.statistics().connections, 1);
    sim.now -= 3_600_000_000_000;
    sim.tick();
    assert_eq!(sim.table.statistics().connections, 0, "what the kernel has forgotten");
}

/// One direction of a flow may be silent for longer than half a round of the kernel's tick.
#[test]
fn a_direction_that_fell_silent_long_ago_does_not_say_when_the_last_packet_came() {
    let mut sim = Simulation::new();
    sim.packet(name_query(), pod(CLIENT, false), 60, 0);
    sim.packet(back(name_query()), uplink(false), 60, 0);
    for _ in 0..110 {
        sim.sweep();
        sim.pass(86_400_000);
        sim.conntrack(Kind::New, tracked(name_query(), back(name_query()), 7));
        sim.packet(name_query(), pod(CLIENT, false), 60, 0);
    }
    sim.records();
    sim.finish();
    let end = sim.records().last().unwrap().extended.end_milliseconds;
    assert!(end.abs_diff(sim.time().millis()) < 1_000, "{end}");
}

/// Two points may take a direction over at one moment: who told of it first may have written last.
#[test]
fn take_overs_that_are_told_of_in_another_order_hold_no_packets_back() {
    let mut sim = Simulation::new();
    sim.packet(web(), uplink(false), 60, SYN);
    sim.tick();
    sim.packet(web(), pod(CLIENT, false), 52, ACK);
    let mut other = *sim.events.last().unwrap();
    let (_, reversed) = Key::of(&web(), 80).unwrap();
    other.flow.direction[usize::from(reversed)].candidate = pod(SERVER, true);
    sim.events.push(other);
    for _ in 0..3 {
        sim.packet(web(), pod(CLIENT, false), 1_000, ACK);
        sim.sweep();
        sim.pass(1_000);
    }
    assert_eq!(sim.table.flows().map(|flow| flow.head.packet_total).collect::<Vec<_>>(), [5]);
    let sums = sim.table.interfaces();
    assert_eq!(everything(&sums[&UPLINK]), abi::Count { packets: 1, bytes: 60 });
    assert_eq!(everything(&sums[&CLIENT]), abi::Count { packets: 4, bytes: 3_052 });
}
