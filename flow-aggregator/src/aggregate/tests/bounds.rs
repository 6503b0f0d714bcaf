//! Full tables.

use crate::aggregate::{
    Aggregate, Settings,
    testing::{NODE_A, external, over, settings, source},
};
use flow_common::record::FlowRecord;

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
