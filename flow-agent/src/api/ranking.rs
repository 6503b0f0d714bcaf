//! The flows with the most traffic. Takes records as they are exported, gives the first ones by bits a second over a window.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::protocol::{Ranked, Top};
use crate::enrich::Record;
use flow_common::row::Row;

/// Flows that are ranked; of more only the first are, and all count in the sums.
const BOUND: usize = 65_536;

/// Records within a window, the latest a flow.
#[derive(Debug)]
pub(super) struct Ranking {
    window: Duration,
    latest: HashMap<u64, (Instant, Record)>,
}

impl Ranking {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, latest: HashMap::new() }
    }

    pub(super) fn add(&mut self, record: &Record, now: Instant) {
        let key = record.extended.flow_id;
        if self.latest.len() < BOUND || self.latest.contains_key(&key) {
            self.latest.insert(key, (now, record.clone()));
        }
    }

    pub(super) fn top(&mut self, rows: usize, now: Instant) -> Top {
        // A flow's next record may be a tick or two late.
        let window = self.window;
        let stay = window + window / 4;
        self.latest.retain(|_, (at, _)| now.duration_since(*at) < stay);
        let mut ranked: Vec<([u64; 2], &Record)> =
            self.latest.values().map(|(_, record)| (rates(record, window), record)).collect();
        ranked.retain(|(rates, _)| *rates != [0, 0]);
        let mut top = Top { active: u64::try_from(ranked.len()).unwrap_or(u64::MAX), ..Top::default() };
        for ([bits, packets], _) in &ranked {
            top.bits = top.bits.saturating_add(*bits);
            top.packets = top.packets.saturating_add(*packets);
        }
        ranked.sort_by_key(|(rates, record)| (std::cmp::Reverse(*rates), record.extended.flow_id));
        let row = |([bits, packets], record): &([u64; 2], &Record)| Ranked {
            bits: *bits,
            packets: *packets,
            row: Row::of(&record.owned()),
        };
        top.rows = ranked.iter().take(rows).map(row).collect();
        top
    }
}

/// Bits and packets a second, both directions.
fn rates(record: &Record, window: Duration) -> [u64; 2] {
    let [packets, octets, reverse_packets, reverse_octets] = record.head.deltas();
    let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = |count: u64| count.saturating_mul(1_000) / millis;
    [rate((octets + reverse_octets).saturating_mul(8)), rate(packets + reverse_packets)]
}
