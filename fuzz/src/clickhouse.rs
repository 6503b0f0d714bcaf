//! Any bytes as what a ClickHouse server says: packets of the native protocol one after the other, with blocks in frames
//! and without, of an old server's revision and ours; and blocks as HTTP answers with.

use flow_aggregator::sinks::clickhouse::packet::{self, REVISION};
use flow_aggregator::sinks::clickhouse::wire::{Answer, Reader};

/// What the fuzz target does with its bytes.
pub fn clickhouse(bytes: &[u8]) {
    for (revision, compressed) in [(REVISION, false), (REVISION, true), (54_412, false), (54_000, true)] {
        let mut from = Reader::new(bytes);
        while !from.is_empty() {
            let left = from.len();
            if packet::read(&mut from, revision, compressed).is_err() {
                break;
            }
            assert!(from.len() < left, "a packet has a byte at least");
        }
    }
    let (mut from, mut answer) = (Reader::new(bytes), Answer::default());
    while !from.is_empty() && from.block(&mut answer).is_ok() {}
}
