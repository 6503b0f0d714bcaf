//! How flows leave the table, and come back.

use crate::aggregate::{
    Aggregate, Cursor, Settings,
    testing::{NODE_A, NODE_B, destination, external, over, settings, since, source},
};
use flow_common::filter::Filter;
use flow_common::record::EndReason;

fn table() -> Aggregate {
    Aggregate::new(&settings())
}

#[test]
fn the_end_from_both_sides_is_exported_at_once_and_leaves_a_tombstone() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10)], 0);
    table.hear(NODE_B, &[destination(5, 10)], 0);
    table.exports();
    table.hear(NODE_A, &[since(over(source(8, 12)), 2)], 3);
    assert_eq!(table.exports(), [], "the other side is still to say so");
    table.hear(NODE_B, &[since(over(destination(8, 12)), 2)], 3);
    let flow = table.exports().remove(0);
    assert_eq!((flow.head.end_reason, flow.head.packet_total, flow.head.packet_delta), (EndReason::End, 12, 2));
    assert_eq!((table.fill().flows, table.fill().tombstones), (0, 1));
}

#[test]
fn the_spools_repeats_find_the_tombstone_until_it_is_gone() {
    let mut table = table();
    let last = over(external(5, 10));
    table.hear(NODE_A, std::slice::from_ref(&last), 0);
    assert_eq!(table.exports().len(), 1);
    table.hear(NODE_A, &[last.clone(), last.clone()], 90);
    assert_eq!((table.counts().repeated, table.fill().flows, table.exports().len()), (2, 0, 0));
    table.pass(91, 300);
    assert_eq!((table.fill().tombstones, table.fill().tails), (0, 0));
    table.hear(NODE_A, &[last], 301);
    assert_eq!(table.exports().len(), 1, "after five minutes it is a flow again");
}

#[test]
fn a_quiet_flow_leaves_and_goes_on_where_it_was() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10)], 0);
    table.hear(NODE_B, &[destination(5, 10)], 0);
    table.hear(NODE_A, &[since(source(10, 15), 5)], 5);
    assert_eq!(table.exports().len(), 1);
    table.pass(6, 200);
    let rest: Vec<u64> = table.exports().iter().map(|flow| flow.head.packet_delta).collect();
    assert_eq!(rest, [5]);
    assert_eq!((table.fill().flows, table.fill().tombstones), (0, 1));

    table.hear(NODE_A, &[since(source(250, 40), 25)], 250);
    assert_eq!((table.fill().flows, table.fill().tombstones, table.counts().revived), (1, 0, 1));
    table.pass(251, 320);
    let flow = table.exports().remove(0);
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (40, 25));
    assert_eq!((flow.tail.src_pod.as_str(), flow.tail.dst_pod.as_str()), ("client", "server"));
    assert_eq!(table.counts().begun, 1);
}

#[test]
fn the_base_of_an_exporter_that_began_anew_outlives_burial() {
    let mut table = table();
    table.hear(NODE_A, &[external(50, 100)], 0);
    let mut anew = external(60, 7);
    anew.extended.flow_id = 0xacac;
    anew.extended.start_milliseconds += 40_000;
    table.hear(NODE_A, &[anew.clone()], 1);
    table.pass(2, 200);
    table.exports();
    anew.head.packet_total = 9;
    anew.extended.end_milliseconds += 100_000;
    table.hear(NODE_A, &[over(anew)], 200);
    let flow = table.exports().remove(0);
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (109, 2));
}

#[test]
fn an_exporter_that_begins_anew_goes_on_with_a_flow_that_had_to_make_room() {
    let mut table = Aggregate::new(&Settings { max_flows: 1, ..settings() });
    table.hear(NODE_A, &[external(50, 100), source(5, 1)], 0);
    assert_eq!((table.exports().len(), table.counts().evicted), (1, 1));
    // Killed in the middle of the connection, the agent's next one counts from zero under another number.
    let mut anew = external(60, 7);
    anew.extended.flow_id = 0xacac;
    anew.extended.start_milliseconds += 40_000;
    table.hear(NODE_A, &[anew.clone(), over(anew)], 10);
    let flow = table.exports().pop().unwrap();
    assert_eq!((flow.head.packet_total, flow.head.packet_delta), (107, 7));
    assert_eq!((table.counts().restarted, table.counts().revived), (1, 1));
}

#[test]
fn the_process_end_exports_what_is_news() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10), external(5, 3)], 0);
    assert_eq!(table.exports().len(), 1);
    table.finish(1);
    let flow = table.exports().remove(0);
    assert_eq!(flow.head.packet_delta, 10, "a half whose partner did not come yet");
    table.finish(2);
    assert_eq!(table.exports(), []);
}

#[test]
fn http_transactions_gather_and_are_no_new_names() {
    let mut table = table();
    let with = |mut record: flow_common::record::FlowRecord, http: &str| {
        record.tail.http = http.to_owned();
        record.tail.app_protocol = "http".to_owned();
        record
    };
    table.hear(NODE_A, &[with(external(5, 10), r#"{"0":{"url":"/a"}}"#)], 0);
    table.hear(NODE_A, &[with(since(external(6, 20), 10), r#"{"1":{"url":"/b"}}"#)], 1);
    assert_eq!(table.fill().tails, 1);
    table.hear(NODE_A, &[with(since(over(external(7, 20)), 0), "")], 2);
    let http: Vec<String> = table.exports().into_iter().map(|flow| flow.tail.http).collect();
    assert_eq!(http, [r#"{"0":{"url":"/a"}}"#, r#"{"0":{"url":"/a"},"1":{"url":"/b"}}"#]);
}

#[test]
fn both_families_have_tables_of_their_own() {
    let mut table = table();
    let mut six = external(5, 10);
    six.head.src_addr = "2001:db8::5".parse().unwrap();
    six.head.dst_addr = "2001:db8::7".parse().unwrap();
    six.extended.nat_src_addr = "::".parse().unwrap();
    table.hear(NODE_A, &[external(5, 3), six.clone()], 0);
    let exports = table.exports();
    assert_eq!(exports.len(), 2);
    let flow = exports.iter().find(|flow| flow.head.src_addr.is_ipv6()).unwrap();
    assert_eq!((flow.head.src_addr, flow.head.dst_addr), (six.head.src_addr, six.head.dst_addr));
    assert_eq!(flow.head.packet_total, 10);
}

#[test]
fn a_snapshot_shows_what_is_wanted() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10), external(5, 3)], 0);
    let all = Filter::parse("").unwrap();
    let first = table.page(&all, Cursor::BEGIN, 1);
    let next = first.next.unwrap();
    let second = table.page(&all, next, 10);
    assert_eq!((first.flows.len(), second.flows.len()), (1, 1));
    assert_ne!(first.flows[0].head.dst_addr, second.flows[0].head.dst_addr);
    assert_eq!(next.to_string().parse(), Ok(next));
    let none = table.page(&all, second.next.unwrap(), 10);
    assert_eq!((none.flows.len(), none.next), (0, None), "of IPv6");
    let wanted = table.page(&Filter::parse("dst = 203.0.113.9").unwrap(), Cursor::BEGIN, 10).flows;
    assert_eq!(wanted[0].head.dst_addr, std::net::IpAddr::from([203, 0, 113, 9]));
}
