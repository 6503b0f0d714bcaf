//! Laws that hold for any order, loss and repetition.

use crate::aggregate::{
    Aggregate, Settings, Source,
    testing::{EPOCH, NODE_A, NODE_B, destination, external, over, settings, since, source},
};
use flow_common::record::{AggregatedFlow, EndReason, FlowRecord, ForwardingStatus};
use proptest::prelude::*;
use std::collections::HashMap;

/// A Node's record of so many seconds and packets.
type Half = fn(u32, u64) -> FlowRecord;

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
            let (node, half): (Source, Half) =
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

/// What both Nodes send of connections that follow one another under one key, each so many seconds after the one before
/// and with these packets every five seconds; the number of each connection is its application's name.
/// The source's agent is another one after `restart` records of each, if that many come.
fn stories(
    connections: &[(u32, Vec<u64>)],
    skew: u64,
    [denied, plain]: [bool; 2],
    restart: usize,
) -> [Vec<FlowRecord>; 2] {
    let halves: [(u64, Half); 2] = [(0, source), (skew, destination)];
    halves.map(|(skew, half)| {
        let (mut begin, mut told) = (0, Vec::new());
        for (number, (gap, steps)) in connections.iter().enumerate() {
            begin += gap;
            let mut records = story(half, steps);
            if denied && skew == 0 {
                // An attempt that did not come through, which the other Node does not know of.
                let mut attempt = over(half(0, 1));
                attempt.extended.forwarding_status = ForwardingStatus::Dropped;
                records.iter_mut().for_each(|record| record.head.packet_total += 1);
                records.insert(0, attempt);
            }
            if skew == 0 && !denied && !plain && (1..steps.len()).contains(&restart) {
                // Killed, so that its next one counts from zero under another number.
                let before: u64 = steps[..restart].iter().sum();
                for record in &mut records[restart..] {
                    record.head.packet_total -= before;
                    record.extended.start_milliseconds += 5_000 * restart as u64;
                    record.extended.flow_id += 1;
                }
            }
            for mut record in records {
                let later = u64::from(begin) * 1000 + skew;
                record.extended.start_milliseconds += later;
                record.extended.end_milliseconds += later;
                record.extended.flow_id = if plain { 0 } else { record.extended.flow_id << 8 | number as u64 };
                record.tail.app_protocol = number.to_string();
                told.push(record);
            }
            begin += 5 * steps.len() as u32;
        }
        told
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Connections that follow one another under one key, with clocks that differ, one Node ahead of the other, ends told
    /// again, agents killed, denied attempts, time-outs and a table too small: of each what is exported adds up, and both
    /// ends are named.
    #[test]
    fn connections_under_one_key_are_told_apart(
        connections in prop::collection::vec((22..40_u32, prop::collection::vec(1..50_u64, 1..5)), 1..4),
        steps in prop::collection::vec((any::<bool>(), 0..12_u8, 1..30_u32), 60),
        skew in prop_oneof![Just(1), 1..8_000_u64],
        restart in 0..4_usize,
        [denied, plain, crowded]: [bool; 3],
    ) {
        let stories = stories(&connections, skew, [denied, plain], restart);
        let max_flows = if crowded { 1 } else { 1_000 };
        let mut table = Aggregate::new(&Settings { tombstone: 100_000, max_flows, ..settings() });
        let (mut at, mut now, mut exports) = ([0, 0], 0, Vec::new());
        let rest = [(false, 0, 1), (true, 0, 1)].repeat(30);
        for (step, (second, what, seconds)) in steps.into_iter().chain(rest).enumerate() {
            let (node, story) = ([NODE_A, NODE_B][usize::from(second)], &stories[usize::from(second)]);
            let at = &mut at[usize::from(second)];
            match what {
                11 => {
                    table.pass(now + 1, now + seconds);
                    now += seconds;
                }
                10 => {
                    let ends = story[..*at].iter().filter(|record| record.head.end_reason == EndReason::End);
                    table.hear(node, &ends.cloned().collect::<Vec<_>>(), now);
                }
                9 => {
                    // Another flow, for which the one at hand may have to make room.
                    let mut other = external(5, 1);
                    (other.head.src_port, other.extended.flow_id) = (step as u16, step as u64);
                    table.hear(NODE_A, &[other], now);
                }
                _ => {
                    table.hear(node, story.get(*at..=*at).unwrap_or_default(), now);
                    *at = story.len().min(*at + 1);
                }
            }
            exports.extend(table.exports());
        }
        table.pass(now + 1, now + 200);
        exports.extend(table.exports());
        for (number, (_, packets)) in connections.iter().enumerate() {
            let told = exports.iter().filter(|flow| flow.tail.app_protocol == number.to_string());
            let told: Vec<AggregatedFlow> = told.cloned().collect();
            prop_assert_eq!(sums(&told).0, packets.iter().sum::<u64>() + u64::from(denied));
            let last = told.last().map(|flow| (flow.tail.src_pod.as_str(), flow.tail.dst_pod.as_str()));
            prop_assert_eq!(last, Some(("client", "server")));
        }
    }
}
