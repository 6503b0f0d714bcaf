//! Two halves, one flow.

use crate::aggregate::{
    Aggregate, Cursor,
    testing::{EPOCH, NODE_A, NODE_B, destination, external, over, settings, since, source},
};
use flow_common::filter::Filter;
use flow_common::record::{
    AggregatedFlow, EndReason, FlowRecord, FlowType, ForwardingStatus, RuleAction, Tail, TcpState,
};

fn table() -> Aggregate {
    Aggregate::new(&settings())
}

/// The one flow that was exported.
fn only(table: &mut Aggregate) -> AggregatedFlow {
    let mut exports = table.exports();
    assert_eq!(exports.len(), 1, "{exports:#?}");
    exports.remove(0)
}

#[test]
fn both_orders_give_the_same_record_at_once() {
    let (src, dst) = (source(5, 10), destination(6, 12));
    let joined = [[(NODE_A, &src), (NODE_B, &dst)], [(NODE_B, &dst), (NODE_A, &src)]].map(|order| {
        let mut table = table();
        for (at, (node, record)) in order.into_iter().enumerate() {
            assert_eq!(table.exports(), [], "nothing before both are in");
            table.hear(node, std::slice::from_ref(record), at as u32);
        }
        only(&mut table)
    });
    assert_eq!(joined[0], joined[1]);
    insta::assert_json_snapshot!(as_json(&joined[0]));
}

fn as_json(flow: &AggregatedFlow) -> serde_json::Value {
    let mut line = Vec::new();
    flow.json(true, flow_common::time::Timestamp::from_seconds(EPOCH.into()), &mut line);
    serde_json::from_slice(&line).unwrap()
}

#[test]
fn what_one_node_sees_alone_goes_out_at_once_and_stands_for_both_sides() {
    let mut table = table();
    table.hear(NODE_A, &[external(5, 10)], 0);
    let flow = only(&mut table);
    assert_eq!(flow.per_node.packet_total_from_src, 10);
    assert_eq!(flow.per_node.packet_total_from_dst, 10);
    assert_eq!(flow.per_node.end_seconds_from_dst, EPOCH + 5);
    assert_eq!(flow.per_node.throughput_from_dst, 1000 * 8 / 5);
}

#[test]
fn a_half_without_its_partner_goes_out_after_the_timeout_and_may_be_joined_later() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10)], 100);
    table.pass(101, 114);
    assert_eq!(table.exports(), []);
    table.pass(115, 115);
    let alone = only(&mut table);
    assert_eq!((alone.tail.dst_pod.as_str(), alone.per_node.packet_total_from_dst), ("", 0));
    assert_eq!(table.counts().uncorrelated, 1);

    table.hear(NODE_B, &[destination(7, 14)], 118);
    let joined = only(&mut table);
    assert_eq!((joined.tail.src_pod.as_str(), joined.tail.dst_pod.as_str()), ("client", "server"));
    assert_eq!((joined.head.packet_total, joined.head.packet_delta), (14, 4), "the first ten were exported before");
    assert_eq!(table.counts().uncorrelated, 1);
}

#[test]
fn an_ended_half_is_joined_by_a_partner_that_comes_minutes_late() {
    let mut table = table();
    table.hear(NODE_A, &[over(source(5, 10))], 0);
    table.pass(1, 200);
    assert_eq!((table.exports().len(), table.fill().flows), (1, 0));
    table.hear(NODE_B, &[over(destination(5, 10))], 200);
    let joined = only(&mut table);
    assert_eq!((joined.tail.src_pod.as_str(), joined.tail.dst_pod.as_str()), ("client", "server"));
    assert_eq!((joined.head.packet_total, joined.head.packet_delta), (10, 0));
}

/// A record of a Node whose clock is so many milliseconds ahead.
fn ahead(mut record: FlowRecord, milliseconds: u64) -> FlowRecord {
    record.extended.start_milliseconds += milliseconds;
    record.extended.end_milliseconds += milliseconds;
    record
}

#[test]
fn nodes_whose_clocks_differ_by_seconds_join_connections_that_are_shorter() {
    for skew in [0, 1_500, 8_000] {
        let halves =
            [[source(0, 10), ahead(destination(0, 10), skew)], [ahead(source(0, 10), skew), destination(0, 10)]];
        for [src, dst] in halves {
            let [src, dst] = [(NODE_A, over(src)), (NODE_B, over(dst))];
            for order in [[src.clone(), dst.clone()], [dst, src]] {
                let mut table = table();
                for (node, half) in order {
                    table.hear(node, &[half], 0);
                }
                let flow = only(&mut table);
                assert_eq!((flow.tail.src_pod.as_str(), flow.tail.dst_pod.as_str()), ("client", "server"), "{skew}");
                assert_eq!((table.counts().begun, table.counts().reused), (1, 0), "{skew}");
            }
        }
    }
}

#[test]
fn a_partner_that_comes_late_and_by_another_clock_finds_the_tombstone() {
    let mut table = table();
    table.hear(NODE_A, &[over(source(0, 10))], 0);
    table.pass(1, 60);
    assert_eq!((table.exports().len(), table.counts().uncorrelated), (1, 1));
    table.hear(NODE_B, &[ahead(over(destination(0, 10)), 4_000)], 60);
    assert_eq!(only(&mut table).tail.src_pod, "client");
}

#[test]
fn connections_that_follow_at_once_under_one_key_are_told_apart_by_clocks_in_step() {
    let next = |mut record: FlowRecord| {
        record.extended.flow_id += 1;
        ahead(record, 3_000)
    };
    let [src, dst] = [over(source(0, 10)), over(destination(0, 10))];
    let mut table = table();
    // The destination's agent was away for a moment.
    table.hear(NODE_A, &[src.clone(), next(src)], 0);
    assert_eq!(only(&mut table).extended.flow_id, 0xaaaa, "as it is");
    table.hear(NODE_B, &[dst.clone(), next(dst)], 1);
    let joined: Vec<_> =
        table.exports().iter().map(|flow| (flow.extended.flow_id, flow.tail.dst_pod.clone())).collect();
    assert_eq!(joined, [(0xaaaa, "server".to_owned()), (0xaaab, "server".to_owned())]);
}

/// A client outside, a NodePort on node A, a Pod on node B: node B sees node A's address.
fn masqueraded() -> [FlowRecord; 2] {
    let mut outer = source(5, 10);
    outer.head.src_addr = [198, 51, 100, 4].into();
    outer.head.src_port = 50_000;
    outer.extended.nat_src_addr = [192, 0, 2, 1].into();
    outer.extended.nat_src_port = 61_000;
    outer.tail = Tail {
        service: "shop/web:http".into(),
        service_port: 30080,
        service_addr: [192, 0, 2, 1].into(),
        flow_type: FlowType::FromExternal,
        ..Tail::default()
    };
    let mut inner = destination(5, 10);
    inner.head.src_addr = [192, 0, 2, 1].into();
    inner.head.src_port = 61_000;
    inner.tail.flow_type = FlowType::FromExternal;
    [outer, inner]
}

#[test]
fn halves_of_a_masqueraded_connection_meet_and_show_the_client() {
    for swapped in [false, true] {
        let [outer, inner] = masqueraded();
        let mut table = table();
        table.report_node_addr(NODE_A, [192, 0, 2, 1].into());
        let mut halves = [(NODE_A, outer), (NODE_B, inner)];
        if swapped {
            halves.reverse();
        }
        for (node, half) in halves {
            assert_eq!(table.exports(), [], "swapped: {swapped}");
            table.hear(node, &[half], 0);
        }
        let flow = only(&mut table);
        assert_eq!((flow.head.src_addr, flow.head.src_port), ([198, 51, 100, 4].into(), 50_000));
        assert_eq!((flow.extended.nat_src_addr, flow.extended.nat_src_port), ([192, 0, 2, 1].into(), 61_000));
        assert_eq!((flow.tail.service.as_str(), flow.tail.dst_pod.as_str()), ("shop/web:http", "server"));
        assert_eq!(table.counts().begun, 1);
    }
}

#[test]
fn masquerade_on_the_pods_own_node_needs_nobody() {
    let [mut outer, inner] = masqueraded();
    outer.tail.dst_pod = inner.tail.dst_pod;
    let mut table = table();
    table.hear(NODE_A, &[outer], 0);
    assert_eq!(only(&mut table).tail.dst_pod, "server");
}

#[test]
fn an_outside_client_that_is_seen_as_itself_needs_nobody() {
    let [_, mut inner] = masqueraded();
    inner.head.src_addr = [198, 51, 100, 4].into();
    let mut table = table();
    table.report_node_addr(NODE_A, [192, 0, 2, 1].into());
    table.hear(NODE_B, &[inner], 0);
    assert_eq!(only(&mut table).per_node.packet_total_from_src, 10);
}

fn denied(record: FlowRecord, status: ForwardingStatus) -> FlowRecord {
    let mut record = over(record);
    record.tail.tcp_state = TcpState::None;
    record.extended.forwarding_status = status;
    record
}

#[test]
fn a_denied_attempt_goes_out_alone_and_a_later_success_replaces_it() {
    let mut table = table();
    let mut first = denied(source(1, 2), ForwardingStatus::Dropped);
    first.tail.egress_policy = "deny-all".into();
    first.tail.egress_action = RuleAction::Drop;
    table.hear(NODE_A, &[first], 0);
    let flow = only(&mut table);
    assert_eq!((flow.head.end_reason, flow.extended.forwarding_status), (EndReason::End, ForwardingStatus::Dropped));

    // The same connection comes through at another attempt: its partner is waited for again.
    table.hear(NODE_A, &[since(source(9, 10), 8)], 9);
    assert_eq!(table.exports(), []);
    table.hear(NODE_B, &[destination(9, 8)], 10);
    let flow = only(&mut table);
    assert_eq!(
        (flow.head.end_reason, flow.extended.forwarding_status),
        (EndReason::Active, ForwardingStatus::Forwarded)
    );
    assert_eq!((flow.tail.egress_policy.as_str(), flow.tail.egress_action), ("", RuleAction::None));
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (10, 8));
}

#[test]
fn a_late_success_of_a_denied_connection_joins_the_half_that_came_before_it() {
    let mut table = table();
    table.hear(NODE_A, &[denied(source(1, 2), ForwardingStatus::Dropped)], 0);
    assert_eq!(only(&mut table).extended.forwarding_status, ForwardingStatus::Dropped);
    // What the destination's Node sees begins with the attempt that came through, long after the one that did not.
    table.hear(NODE_B, &[ahead(destination(1, 8), 31_000)], 32);
    assert_eq!(table.exports(), []);
    let success = since(source(32, 10), 8);
    table.hear(NODE_A, &[success.clone(), success], 32);
    let flow = only(&mut table);
    assert_eq!((flow.tail.src_pod.as_str(), flow.tail.dst_pod.as_str()), ("client", "server"));
    assert_eq!((flow.extended.flow_id, flow.extended.forwarding_status), (0xaaaa, ForwardingStatus::Forwarded));
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (10, 8), "the attempt was exported before");
    assert_eq!((table.counts().repeated, table.counts().uncorrelated), (1, 0));
}

#[test]
fn a_denied_attempt_that_arrives_after_the_success_changes_nothing() {
    let mut table = table();
    table.hear(NODE_A, &[source(9, 10)], 9);
    table.hear(NODE_B, &[destination(9, 10)], 9);
    let before = only(&mut table);
    table.hear(NODE_A, &[denied(source(1, 2), ForwardingStatus::Dropped)], 10);
    table.pass(11, 75);
    for flow in table.exports() {
        assert_eq!(flow.extended.forwarding_status, before.extended.forwarding_status);
        assert_eq!(flow.head.end_reason, before.head.end_reason);
    }
}

#[test]
fn fields_of_one_half_are_never_emptied_by_the_other_or_later() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10)], 0);
    table.hear(NODE_B, &[destination(5, 10)], 0);
    table.exports();
    let mut bare = since(source(10, 20), 10);
    bare.tail = Tail { flow_type: FlowType::InterNode, tcp_state: TcpState::TimeWait, ..Tail::default() };
    table.hear(NODE_A, &[bare], 5);
    table.pass(6, 65);
    let flow = only(&mut table);
    assert_eq!((flow.tail.src_pod.as_str(), flow.tail.service.as_str()), ("client", "shop/web:http"));
    assert_eq!(flow.tail.dst_pod, "server");
    assert_eq!(flow.tail.tcp_state, TcpState::TimeWait, "of the latest record");
}

#[test]
fn tcp_state_and_throughput_are_those_of_the_latest_end() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10)], 0);
    let mut late = destination(10, 40);
    late.tail.tcp_state = TcpState::FinWait1;
    table.hear(NODE_B, &[late], 0);
    let flow = only(&mut table);
    assert_eq!(flow.tail.tcp_state, TcpState::FinWait1);
    assert_eq!(flow.per_node.throughput, flow.per_node.throughput_from_dst);
    assert_eq!(flow.per_node.throughput_from_dst, 4000 * 8 / 10);
    assert_eq!(flow.head.end_seconds, EPOCH + 10);
    assert_eq!(flow.per_node.end_seconds_from_src, EPOCH + 5);
    assert_eq!(flow.head.packet_total, 40, "the larger of both");
    assert_eq!(flow.extended.flow_id, 0xaaaa, "the source's");
}

#[test]
fn a_third_exporter_that_names_nothing_is_counted_and_ignored() {
    let mut table = table();
    let plain = |addr: [u8; 4]| crate::aggregate::Source { addr: addr.into(), domain: 0 };
    let mut record = external(5, 10);
    (record.tail, record.extended.flow_id) = (Tail::default(), 0);
    for (at, router) in [[192, 0, 2, 71], [192, 0, 2, 72], [192, 0, 2, 73]].into_iter().enumerate() {
        let mut record = record.clone();
        record.head.packet_total += at as u64;
        table.hear(plain(router), &[record], 0);
    }
    let counts = table.counts();
    assert_eq!((counts.begun, counts.surplus, counts.received), (1, 1, 3));
    assert_eq!(table.page(&Filter::parse("").unwrap(), Cursor::BEGIN, 10).flows[0].head.packet_total, 11);
}

#[test]
fn routers_of_one_domain_that_number_flows_themselves_are_two() {
    let mut table = table();
    let elements = [(0, 86, 8), (0, 148, 8), (0, 152, 8), (0, 153, 8)];
    let start = u64::from(EPOCH) * 1000;
    for (router, flow_id) in [(71, 5), (72, 9)] {
        let values = [100, flow_id, start, start + 5_000].map(u64::to_be_bytes).concat();
        table.hear_foreign([192, 0, 2, router].into(), &elements, &values);
    }
    let counts = table.counts();
    assert_eq!((counts.received, counts.begun, counts.restarted, counts.reused), (2, 1, 0, 0));
    let flow = &table.page(&Filter::parse("").unwrap(), Cursor::BEGIN, 10).flows[0];
    assert_eq!(flow.head.packet_total, 100, "which both saw");
}
