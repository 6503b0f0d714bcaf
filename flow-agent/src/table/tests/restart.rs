//! Connections that were there before the agent, and messages that were lost.

use super::*;

fn long() -> Tuple {
    tuple(("10.0.1.2", 40_000), ("10.0.2.3", 5432), 6)
}

/// The connection as connection tracking has it, with what it counted so far.
fn known(packets: [u64; 2], start: Option<u64>) -> Entry {
    let counters = packets.map(|packets| abi::Count { packets, bytes: packets * 100 });
    Entry { counters: Some(counters), start: start.map(Timestamp::from_nanos), ..tracked(long(), back(long()), 3) }
}

fn restarted(entry: Entry) -> Simulation {
    let mut sim = Simulation::new();
    let now = sim.time();
    sim.table.begin_dump();
    sim.table.feed_dump(&entry, now);
    sim.table.end_dump(true, now);
    sim
}

#[test]
fn totals_go_on_from_connection_tracking_and_the_flow_is_the_same() {
    let began = WALL - 60_000_000_000;
    let mut sim = restarted(known([50, 70], Some(began)));
    sim.packet(back(long()), uplink(false), 100, ACK);
    sim.tracked = vec![known([50, 71], Some(began))];
    sim.tick();
    for second in 0..8 {
        sim.packet(long(), pod(CLIENT, false), 100, ACK);
        sim.tracked = vec![known([51 + second, 71], Some(began))];
        sim.sweep();
        sim.pass(1_000);
    }
    let record = sim.record();
    let sent = record.head.packet_delta;
    assert_eq!(packets(&record), [50 + sent, sent, 71, 1]);
    assert_eq!(octets(&record), [5_000 + 100 * sent, 100 * sent, 7_100, 100]);
    assert_eq!(record.head.src_addr, long().src);
    assert_eq!(record.extended.start_milliseconds, began / 1_000_000);
    assert_eq!(sim.table.statistics().adopted, 1);

    // Before the restart it had the same number.
    let mut earlier = Simulation::new();
    earlier.conntrack(Kind::New, known([0, 0], Some(began)));
    earlier.packet(long(), pod(CLIENT, false), 100, SYN);
    earlier.finish();
    assert_eq!(earlier.record().extended.flow_id, record.extended.flow_id);
}

#[test]
fn while_packets_pass_between_the_reads_no_base_is_taken() {
    let began = WALL - 60_000_000_000;
    let mut sim = restarted(known([50, 70], Some(began)));
    sim.packet(long(), pod(CLIENT, false), 100, ACK);
    let (clock, now) = (sim.clock(), sim.time());
    let events = std::mem::take(&mut sim.events);
    sim.table.feed_events(&events, &clock, now);
    // The map moves with every look; connection tracking stands still.
    for call in 0..40 {
        let mut value = *sim.map.values().next().unwrap();
        sim.table.adopt(
            |_| {
                for direction in &mut value.direction {
                    direction.packets += 1;
                }
                Some(value)
            },
            |_, entries| *entries = vec![Some(known([51, 70], Some(began)))],
            &clock,
            now,
        );
        assert_eq!(sim.table.statistics().not_adopted, u64::from(call >= 19));
    }
    sim.finish();
    assert_eq!(packets(&sim.record()), [1, 1, 0, 0]);
}

#[test]
fn without_counters_it_is_another_flow() {
    let began = WALL - 60_000_000_000;
    let mut sim = restarted(Entry { counters: None, ..known([0, 0], Some(began)) });
    sim.packet(long(), pod(CLIENT, false), 100, ACK);
    sim.finish();
    let record = sim.record();
    assert_eq!(packets(&record), [1, 1, 0, 0]);
    assert_eq!(record.extended.start_milliseconds, began / 1_000_000);

    let mut earlier = Simulation::new();
    earlier.conntrack(Kind::New, known([0, 0], Some(began)));
    earlier.packet(long(), pod(CLIENT, false), 100, SYN);
    earlier.finish();
    assert_ne!(earlier.record().extended.flow_id, record.extended.flow_id);
}

#[test]
fn the_start_that_a_message_does_not_tell_is_asked_for() {
    let mut sim = Simulation::new();
    let start = WALL - 1_000;
    sim.conntrack(Kind::New, known([0, 0], None));
    sim.packet(long(), pod(CLIENT, false), 100, SYN);
    sim.tracked = vec![known([1, 0], Some(start))];
    for _ in 0..70 {
        sim.tick();
        sim.pass(100);
    }
    let record = sim.record();
    let mut told = Simulation::new();
    told.conntrack(Kind::New, known([0, 0], Some(start)));
    told.packet(long(), pod(CLIENT, false), 100, SYN);
    told.finish();
    assert_eq!(told.record().extended.flow_id, record.extended.flow_id);
}

#[test]
fn a_new_dump_tells_what_lost_messages_said() {
    let mut sim = Simulation::new();
    let service = tuple(("10.0.1.2", 41_000), ("10.96.0.10", 80), 6);
    let reply = tuple(("10.0.2.3", 8080), ("10.0.1.2", 41_000), 6);
    sim.conntrack(Kind::New, known([0, 0], None));
    sim.packet(long(), pod(CLIENT, false), 100, SYN);
    // Of the second connection's beginning and the first one's end nothing was told.
    sim.packet(service, pod(CLIENT, false), 100, SYN);
    sim.packet(back(reply), uplink(true), 100, SYN);
    sim.tick();
    let now = sim.time();
    sim.table.begin_dump();
    sim.table.feed_dump(&tracked(service, reply, 4), now);
    sim.table.end_dump(true, now);
    sim.tick();
    let ended = sim.record();
    assert_eq!((ended.head.dst_port, ended.head.end_reason), (5432, EndReason::End));
    sim.finish();
    let record = sim.record();
    assert_eq!((record.head.dst_addr, record.head.dst_port), (reply.src, 8080));
    assert_eq!(packets(&record), [1, 1, 0, 0]);
}

#[test]
fn connections_beyond_the_room_are_refused_and_counted() {
    let mut sim = Simulation::with(TableConfig { max_flows: 10, ..config() });
    for port in 0..25 {
        let flow = Tuple { src_port: port, ..long() };
        let server = Tuple { dst: addr("10.0.1.3"), ..flow };
        sim.conntrack(Kind::New, tracked(flow, back(server), u32::from(port)));
    }
    assert_eq!((sim.table.statistics().connections, sim.table.statistics().refused), (20, 5));
}

#[test]
fn translated_connections_find_room_where_others_have_taken_all() {
    let mut sim = Simulation::with(TableConfig { max_flows: 10, ..config() });
    for port in 0..20 {
        let flow = Tuple { src_port: port, ..long() };
        sim.conntrack(Kind::New, tracked(flow, back(flow), u32::from(port)));
    }
    let flow = Tuple { src_port: 30, ..long() };
    sim.conntrack(Kind::New, tracked(flow, back(Tuple { dst: addr("10.0.1.3"), ..flow }), 30));
    assert_eq!((sim.table.statistics().connections, sim.table.statistics().refused), (1, 0));
}
