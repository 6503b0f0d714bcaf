//! Totals, deltas, bases, repeats.

use crate::aggregate::{
    Aggregate, Cursor, Source,
    testing::{EPOCH, NODE_A, NODE_B, destination, external, over, settings, since, source},
};
use flow_common::filter::Filter;
use flow_common::record::{EndReason, FlowRecord, Tail};

fn table() -> Aggregate {
    Aggregate::new(&settings())
}

/// Lets the active timeout pass from second `from` on and gives packet total and delta of the only flow.
fn exported(table: &mut Aggregate, from: u32) -> Option<(u64, u64)> {
    table.pass(from, from + 61);
    let exports = table.exports();
    assert!(exports.len() <= 1, "{exports:#?}");
    exports.first().map(|flow| (flow.head.packet_total, flow.head.packet_delta))
}

#[test]
fn packets_dropped_on_both_nodes_add_up_and_those_of_one_count_once() {
    let dropped = |mut record: FlowRecord, packets| {
        record.extended.dropped_packets = packets;
        record
    };
    let mut table = table();
    table.hear(NODE_A, &[dropped(external(5, 10), 3)], 0);
    assert_eq!(table.exports()[0].extended.dropped_packets, 3);
    table.hear(NODE_A, &[dropped(source(5, 10), 3)], 0);
    table.hear(NODE_B, &[dropped(destination(5, 10), 5_000_000_000)], 0);
    assert_eq!(table.exports()[0].extended.dropped_packets, 5_000_000_003);
}

#[test]
fn a_further_record_goes_out_with_the_active_timeout() {
    let mut table = table();
    table.hear(NODE_A, &[external(5, 10)], 0);
    table.exports();
    table.hear(NODE_A, &[since(external(10, 30), 20)], 5);
    table.hear(NODE_A, &[since(external(15, 35), 5)], 10);
    table.pass(11, 59);
    assert_eq!(table.exports(), []);
    table.pass(60, 60);
    let flow = table.exports().remove(0);
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (35, 25));
    assert_eq!((flow.head.octet_total, flow.head.octet_delta), (3500, 2500));
    assert_eq!((flow.head.reverse_packet_total, flow.head.reverse_packet_delta), (17, 12));
    assert_eq!(flow.per_node.throughput, 500 * 8 / 5, "since the record before, not the export before");
    assert_eq!(flow.per_node.octet_delta_from_src, 2500);

    // Nothing new: nothing goes out; then deltas and throughputs are zero.
    table.pass(61, 90);
    assert_eq!(table.exports(), []);
    let quiet = &table.page(&Filter::parse("").unwrap(), Cursor::BEGIN, 1).flows[0];
    assert_eq!((quiet.head.packet_total, quiet.head.packet_delta, quiet.per_node.throughput), (35, 0, 0));
}

#[test]
fn repeats_are_ignored_and_counted() {
    let mut table = table();
    let records = [external(5, 10), since(external(10, 30), 20)];
    table.hear(NODE_A, &records, 0);
    table.exports();
    table.hear(NODE_A, &records, 1);
    table.hear(NODE_A, &records[..1], 2);
    assert_eq!(table.counts().repeated, 3);
    assert_eq!(exported(&mut table, 3), None);
}

#[test]
fn the_end_without_a_packet_is_news() {
    let mut table = table();
    table.hear(NODE_A, &[external(5, 10)], 0);
    table.exports();
    table.hear(NODE_A, &[since(over(external(5, 10)), 0)], 7);
    let flow = table.exports().remove(0);
    assert_eq!((flow.head.end_reason, flow.head.packet_delta), (EndReason::End, 0));
    assert_eq!((table.fill().flows, table.fill().tombstones), (0, 1));
}

#[test]
fn an_idle_record_after_the_last_active_one_is_news_once() {
    let mut table = table();
    let mut idle = since(external(5, 10), 0);
    idle.head.end_reason = EndReason::Idle;
    table.hear(NODE_A, &[external(5, 10), idle.clone(), external(5, 10), idle], 0);
    assert_eq!(table.counts().repeated, 2);
    assert_eq!(table.exports()[0].head.end_reason, EndReason::Idle);
}

#[test]
fn an_exporter_that_begins_anew_adds_to_what_it_had() {
    let mut table = table();
    table.hear(NODE_A, &[external(50, 100)], 0);
    table.exports();
    // The agent was killed: another flow id, counting from zero; the connection's start is known again.
    let mut anew = external(60, 7);
    anew.extended.flow_id = 0xacac;
    anew.extended.start_milliseconds += 40_000;
    table.hear(NODE_A, &[anew.clone()], 10);
    anew.head.packet_total = 9;
    anew.extended.end_milliseconds += 1;
    table.hear(NODE_A, &[anew], 11);
    assert_eq!(exported(&mut table, 12), Some((109, 9)));
    assert_eq!(table.counts().restarted, 1);
}

#[test]
fn a_restarted_agent_that_knows_the_connection_goes_on() {
    let mut table = table();
    table.hear(NODE_A, &[external(50, 100)], 0);
    table.exports();
    // Same flow id, smaller totals: conntrack had them reset. They never shrink.
    table.hear(NODE_A, &[external(55, 40), external(60, 110)], 10);
    assert_eq!(exported(&mut table, 11), Some((110, 10)));
}

#[test]
fn a_reused_five_tuple_is_another_flow() {
    let mut table = table();
    let mut first = since(external(50, 100), 10);
    table.hear(NODE_A, &[external(5, 90)], 0);
    table.exports();
    first.head.end_reason = EndReason::Active;
    let mut second = external(0, 3);
    second.extended.flow_id = 0xacac;
    second.extended.start_milliseconds += 51_000;
    second.extended.end_milliseconds += 52_000;
    table.hear(NODE_A, &[first, second.clone()], 5);
    let totals: Vec<_> = table
        .exports()
        .iter()
        .map(|flow| (flow.head.packet_total, flow.head.packet_delta, flow.extended.flow_id))
        .collect();
    assert_eq!(totals, [(100, 10, 0xaaaa), (3, 3, 0xacac)], "the old one with what it had");
    assert_eq!(table.counts().reused, 1);
    assert_eq!((table.fill().flows, table.fill().tombstones), (1, 1));

    // A late record of the first is compared with its tombstone alone, and what it adds goes out.
    let late = since(over(external(50, 100)), 0);
    table.hear(NODE_A, &[late.clone(), late, since(over(external(51, 104)), 4)], 6);
    let late: Vec<_> = table
        .exports()
        .iter()
        .map(|flow| (flow.head.packet_total, flow.head.packet_delta, flow.extended.flow_id))
        .collect();
    assert_eq!(late, [(100, 0, 0xaaaa), (104, 4, 0xaaaa)]);
    assert_eq!(table.counts().repeated, 1);
    assert_eq!((table.fill().flows, table.fill().tombstones), (1, 1));
}

#[test]
fn without_flow_ids_the_start_times_decide() {
    let mut table = table();
    let plain = |mut record: FlowRecord, start: u32, end: u32| {
        record.extended = flow_common::record::Extended::default();
        (record.head.start_seconds, record.head.end_seconds) = (EPOCH + start, EPOCH + end);
        record
    };
    let packets = |mut record: FlowRecord, packets| {
        record.head.packet_total = packets;
        record
    };
    table.hear(NODE_A, &[plain(external(0, 50), 0, 20)], 0);
    table.exports();
    table.hear(NODE_A, &[packets(plain(external(0, 60), 0, 25), 60)], 1);
    assert_eq!(table.counts().restarted, 0, "same start: counted on");
    table.hear(NODE_A, &[packets(plain(external(0, 5), 10, 30), 5)], 2);
    assert_eq!(table.counts().restarted, 1, "a later start within the flow: began anew");
    assert_eq!(table.page(&Filter::parse("").unwrap(), Cursor::BEGIN, 1).flows[0].head.packet_total, 65);
    table.hear(NODE_A, &[packets(plain(external(0, 8), 31, 33), 8)], 3);
    assert_eq!(table.counts().reused, 1, "a start after the end: another flow");
    assert_eq!(table.exports().len(), 2);
    table.hear(NODE_A, &[packets(plain(external(0, 5), 10, 30), 5)], 4);
    assert_eq!(
        (table.counts().repeated, table.exports().len()),
        (1, 0),
        "a late repeat of the first is none of the second"
    );
}

#[test]
fn without_flow_ids_a_clock_that_is_ahead_is_no_exporter_that_begins_anew() {
    let ahead = |mut record: FlowRecord| {
        record.extended.flow_id = 0;
        record.extended.start_milliseconds += 2_000;
        record.extended.end_milliseconds += 2_000;
        record
    };
    let mut first = source(5, 10);
    first.extended.flow_id = 0;
    let mut table = table();
    table.hear(NODE_A, &[first], 0);
    table.hear(NODE_B, &[ahead(destination(5, 10))], 0);
    table.pass(1, 100);
    assert_eq!((table.exports().len(), table.fill().tombstones), (1, 1));
    table.hear(NODE_B, &[120, 125].map(|second| since(ahead(destination(second, u64::from(second) - 105)), 5)), 125);
    assert_eq!(exported(&mut table, 126), Some((20, 10)));
    assert_eq!(table.counts().restarted, 0);
}

#[test]
fn senders_of_deltas_alone_add_up_and_are_never_repeats() {
    let mut table = table();
    let router = Source { addr: [192, 0, 2, 77].into(), domain: 0 };
    let slice = |start: u32, packets: u64| {
        let mut record = external(0, 0);
        (record.tail, record.extended) = (Tail::default(), flow_common::record::Extended::default());
        (record.head.start_seconds, record.head.end_seconds) = (EPOCH + start, EPOCH + start + 5);
        (record.head.packet_delta, record.head.octet_delta) = (packets, packets * 60);
        record
    };
    table.hear(router, &[slice(0, 4), slice(0, 4), slice(5, 3), slice(20, 2)], 0);
    let flow = table.exports().remove(0);
    assert_eq!((flow.head.packet_total, flow.head.packet_delta, flow.head.octet_total), (13, 13, 780));
    assert_eq!((table.counts().repeated, table.counts().restarted, table.counts().begun), (0, 0, 1));
}

#[test]
fn a_sender_may_give_totals_of_packets_and_deltas_of_octets() {
    let mut table = table();
    // flowStartSeconds, flowEndSeconds, packetTotalCount, octetDeltaCount.
    let elements = [(0, 150, 4), (0, 151, 4), (0, 86, 1), (0, 1, 2)];
    let mut tell = |end: u32, packets: u8, octets: u16| {
        let times = [EPOCH, EPOCH + end].map(u32::to_be_bytes).concat();
        let values = [&times[..], &[packets], &octets.to_be_bytes()].concat();
        table.hear_foreign([192, 0, 2, 77].into(), &elements, &values);
    };
    tell(5, 4, 240);
    tell(10, 7, 180);
    tell(10, 7, 0);
    assert_eq!((table.counts().repeated, table.counts().begun), (1, 1));
    let flow = &table.page(&Filter::parse("").unwrap(), Cursor::BEGIN, 10).flows[0];
    assert_eq!((flow.head.packet_total, flow.head.octet_total), (7, 420));
}

#[test]
fn a_flow_met_in_mid_life_begins_with_what_its_halves_had_not_told() {
    let mut table = table();
    table.hear(NODE_A, &[since(source(50, 100), 10)], 0);
    table.hear(NODE_B, &[since(destination(50, 98), 5)], 0);
    let flow = table.exports().remove(0);
    // The source had told 90, the destination 93: another aggregator may have exported 93.
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (100, 7));
    assert_eq!((flow.per_node.packet_delta_from_src, flow.per_node.packet_delta_from_dst), (10, 5));
}

#[test]
fn a_flow_that_one_half_saw_begin_is_exported_from_its_beginning() {
    for source_first in [true, false] {
        let mut table = table();
        // The destination's first record was lost.
        let mut halves = [(NODE_A, source(5, 10)), (NODE_B, since(destination(10, 20), 10))];
        if !source_first {
            halves.reverse();
        }
        for (node, half) in halves {
            table.hear(node, &[half], 0);
        }
        let flow = table.exports().remove(0);
        assert_eq!((flow.head.packet_total, flow.head.packet_delta), (20, 20), "source first: {source_first}");
    }
}

#[test]
fn throughput_is_zero_where_no_time_passed() {
    let mut table = table();
    table.hear(NODE_A, &[external(0, 10)], 0);
    assert_eq!(table.exports()[0].per_node.throughput, 0);
}

#[test]
fn records_without_extended_elements_count_in_seconds() {
    let mut table = table();
    let plain = |mut record: FlowRecord| {
        record.extended = flow_common::record::Extended::default();
        record
    };
    let mut last = plain(over(external(5, 11)));
    last.head.packet_delta = 1;
    table.hear(NODE_A, &[plain(external(5, 10))], 0);
    table.hear(NODE_A, &[last], 1);
    let exports = table.exports();
    assert_eq!(exports[0].per_node.throughput, 1000 * 8 / 5);
    assert_eq!((exports[1].head.packet_delta, exports[1].tail.tcp_state.name()), (1, "CLOSED"));

    let mut ping = plain(external(5, 10));
    (ping.head.protocol, ping.head.dst_port) = (1, 8 << 8);
    table.hear(NODE_A, &[ping], 2);
    assert_eq!(table.exports()[0].extended.icmp_type_code, 8 << 8);
}
