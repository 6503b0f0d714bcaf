//! Laws that hold for any order, loss and repetition.

use crate::aggregate::{
    Aggregate, Settings, Source,
    testing::{EPOCH, NODE_A, NODE_B, destination, over, settings, since, source},
};
use flow_common::record::{AggregatedFlow, FlowRecord};
use proptest::prelude::*;
use std::collections::HashMap;

/// What a Node sends of one connection: a record every five seconds with what was counted until then.
fn story(half: impl Fn(u32, u64) -> FlowRecord, steps: &[u64]) -> Vec<FlowRecord> {
    let mut total = 0;
    let mut records: Vec<FlowRecord> = steps
        .iter()
        .enumerate()
        .map(|(at, packets)| {
            total += packets;
            since(half(5 * (at as u32 + 1), total), *packets)
        })
        .collect();
    if let Some(last) = records.pop() {
        records.push(over(last));
    }
    records
}

/// Sums of deltas, and the last totals.
fn sums(exports: &[AggregatedFlow]) -> (u64, u64) {
    let deltas = exports.iter().map(|flow| flow.head.packet_delta).sum();
    let total = exports.iter().map(|flow| flow.head.packet_total).max().unwrap_or(0);
    (deltas, total)
}

#[derive(Clone, Debug)]
enum Step {
    /// The Node's next record, or an earlier one again.
    Hear {
        second: bool,
        back: usize,
    },
    Pass(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), prop_oneof![4 => Just(0), 1 => 0..4_usize])
            .prop_map(|(second, back)| Step::Hear { second, back }),
        1 => (1..70_u32).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Loss, repetition, reordering and time: what is exported adds up to the total, no delta is negative, and the
    /// total is the greatest that was heard.
    #[test]
    fn deltas_add_up_to_the_total(
        steps in prop::collection::vec(step(), 1..60),
        counts in prop::collection::vec(0..50_u64, 4..12),
        lost in prop::collection::vec(any::<bool>(), 24),
    ) {
        let stories = [story(source, &counts), story(destination, &counts)];
        // A repeat that is older than its tombstone is a new flow: here tombstones stay.
        let mut table = Aggregate::new(&Settings { tombstone: 100_000, ..settings() });
        let (mut at, mut now, mut exports, mut greatest) = ([0_usize, 0], 0, Vec::new(), 0);
        for step in steps {
            match step {
                Step::Pass(seconds) => {
                    table.pass(now + 1, now + seconds);
                    now += seconds;
                }
                Step::Hear { second, back } => {
                    let node = usize::from(second);
                    let Some(record) = stories[node].get(at[node].saturating_sub(back).min(counts.len() - 1)) else { continue };
                    at[node] += 1;
                    // The first record of a Node is never lost: without it the flow is one met in mid-life.
                    if at[node] > 1 && lost[(at[node] + node) % lost.len()] {
                        continue;
                    }
                    greatest = greatest.max(record.head.packet_total);
                    table.hear([NODE_A, NODE_B][node], std::slice::from_ref(record), now);
                }
            }
            exports.extend(table.exports());
        }
        table.finish(now);
        exports.extend(table.exports());
        let (deltas, total) = sums(&exports);
        prop_assert_eq!(total, greatest);
        prop_assert_eq!(deltas, total);
    }

    /// However the records of both Nodes interleave and repeat, as long as each Node's are in order, the end is the same.
    #[test]
    fn any_interleaving_ends_the_same(
        choices in prop::collection::vec((any::<bool>(), any::<bool>()), 40),
        counts in prop::collection::vec(0..50_u64, 1..8),
    ) {
        let stories = [story(source, &counts), story(destination, &counts)];
        let play = |order: &[(bool, bool)]| {
            let mut table = Aggregate::new(&settings());
            let (mut at, mut last) = ([0, 0], None);
            let rest = [(false, false), (true, false)].repeat(counts.len());
            for (second, repeat) in order.iter().copied().chain(rest) {
                let node = usize::from(second);
                let Some(record) = stories[node].get(at[node]) else { continue };
                at[node] += 1;
                for _ in 0..=usize::from(repeat) {
                    table.hear([NODE_A, NODE_B][node], std::slice::from_ref(record), 0);
                }
                last = table.exports().pop().or(last);
            }
            let mut last = last.expect("both ended");
            // What differs by the exports in between.
            last.head.set_deltas([0; 4]);
            last.per_node = Default::default();
            last
        };
        prop_assert_eq!(play(&choices), play(&[]));
    }

    /// Many connections of a few keys, in any order of records: the table holds together, keeps no tail without a
    /// user, and exports only flows whose deltas are within their totals.
    #[test]
    fn anything_leaves_an_empty_table(
        records in prop::collection::vec((0..3_u16, 0..4_u64, 0..60_u32, 0..60_u32, 0..40_u64, any::<(bool, bool, bool)>()), 0..120),
    ) {
        let mut table = Aggregate::new(&settings());
        let mut exported = HashMap::new();
        for (now, (port, flow_id, start, end, packets, (second, ended, plain))) in records.into_iter().enumerate() {
            let (node, half): (Source, fn(u32, u64) -> FlowRecord) =
                if second { (NODE_B, destination) } else { (NODE_A, source) };
            let mut record = half(start + end, packets);
            record.head.src_port = port;
            record.head.start_seconds = EPOCH + start;
            record.extended.start_milliseconds = u64::from(EPOCH + start) * 1000;
            record.extended.flow_id = flow_id;
            record.head.packet_delta = packets / 2;
            if plain {
                record.tail = Default::default();
            }
            table.hear(node, &[if ended { over(record) } else { record }], now as u32);
            table.pass(now as u32 + 1, now as u32 + 1);
            for flow in table.exports() {
                prop_assert!(flow.head.packet_delta <= flow.head.packet_total);
                *exported.entry(flow.head.src_port).or_insert(0) += flow.head.packet_delta;
            }
        }
        table.pass(121, 900);
        let fill = table.fill();
        prop_assert_eq!((fill.flows, fill.tombstones, fill.tails), (0, 0, 0));
    }
}
