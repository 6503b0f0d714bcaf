//! Full tables.

use crate::aggregate::{
    Aggregate, Settings,
    testing::{NODE_A, external, over, settings, source},
};
use flow_common::record::{ANTREA, FlowRecord, TEXT_LIMIT};

fn on_port(mut record: FlowRecord, port: u16) -> FlowRecord {
    record.head.src_port = port;
    record.extended.flow_id = u64::from(port) + 1;
    record
}

#[test]
fn a_full_table_exports_those_not_heard_of_for_long() {
    let mut table = Aggregate::new(&Settings { max_flows: 8, ..settings() });
    for port in 0..8 {
        table.hear(NODE_A, &[on_port(source(5, 1), port)], port.into());
    }
    assert_eq!(table.exports(), []);
    table.hear(NODE_A, &[on_port(source(5, 1), 8)], 8);
    let left = table.exports();
    assert_eq!(left.iter().map(|flow| flow.head.src_port).collect::<Vec<_>>(), [0]);
    assert_eq!((table.counts().evicted, table.fill().flows, table.fill().tombstones), (1, 8, 1));
}

#[test]
fn tombstones_beyond_the_bound_go_early() {
    let mut table = Aggregate::new(&Settings { max_tombstones: 5, ..settings() });
    for port in 0..2_000 {
        table.hear(NODE_A, &[over(on_port(external(5, 1), port))], 0);
    }
    assert_eq!((table.fill().tombstones, table.counts().tombstones_evicted), (5, 1_995));
    table.exports();
    table.hear(NODE_A, &[over(on_port(external(5, 1), 1_999))], 1);
    assert_eq!(table.counts().repeated, 1, "the youngest are there");
    table.hear(NODE_A, &[over(on_port(external(5, 1), 3))], 1);
    assert_eq!(table.exports().len(), 1, "the oldest are not");
    table.pass(2, 400);
    assert_eq!((table.fill().tombstones, table.fill().tails), (0, 0));
}

#[test]
fn due_flows_come_in_turns() {
    let mut table = Aggregate::new(&settings());
    for port in 0..100 {
        table.hear(NODE_A, &[on_port(source(5, 1), port)], 0);
    }
    let mut turns = 1;
    while table.expired(15, 10) {
        turns += 1;
    }
    assert!(turns >= 10, "{turns}");
    assert_eq!(table.exports().len(), 100);
}

#[test]
fn lowered_bounds_are_come_down_to_in_turns_and_what_goes_is_exported() {
    let mut table = Aggregate::new(&settings());
    for port in 0..100 {
        table.hear(NODE_A, &[on_port(source(5, 1), port)], 0);
        table.hear(NODE_A, &[over(on_port(external(5, 1), 1_000 + port))], 0);
    }
    table.exports();
    table.configure(&Settings { max_flows: 10, max_tombstones: 20, ..settings() }, 1);
    let mut turns = 1;
    while table.expired(1, 10) {
        assert!(table.take_batch().len() <= 10, "no turn takes more than it may");
        turns += 1;
    }
    assert!(turns >= 9, "{turns}");
    assert_eq!((table.fill().flows, table.fill().tombstones, table.counts().evicted), (10, 20, 90));
}

#[test]
fn shorter_timeouts_hold_for_flows_that_are_there() {
    let mut table = Aggregate::new(&Settings { inactive: 3_000, correlation: 2_000, ..settings() });
    table.hear(NODE_A, &[source(5, 1)], 0);
    table.configure(&Settings { inactive: 90, correlation: 15, ..settings() }, 10);
    table.pass(10, 14);
    assert_eq!(table.exports(), []);
    table.pass(15, 15);
    assert_eq!(table.exports().len(), 1);
}

#[test]
fn strings_that_come_too_long_are_cut_and_counted() {
    let mut table = Aggregate::new(&settings());
    let name = [&[255, 8, 0][..], &[b'n'; 2_048]].concat();
    table.hear_foreign([192, 0, 2, 71].into(), &[(ANTREA, 101, u16::MAX)], &name);
    let flow = table.exports().remove(0);
    assert_eq!((flow.tail.src_pod.len(), table.counts().texts_cut), (TEXT_LIMIT, 1));
    table.configure(&Settings { proxy: true, ..settings() }, 1);
    assert_eq!(table.counts().texts_cut, 1, "what was counted stays");
}
