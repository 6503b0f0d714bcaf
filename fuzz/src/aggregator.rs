//! Any bytes before the aggregator: what a ClickHouse server says, and flow-aggregator.conf.

use flow_aggregator::config;
use flow_aggregator::sinks::clickhouse::Refusal;
use flow_aggregator::sinks::clickhouse::packet::{self, REVISION};
use flow_aggregator::sinks::clickhouse::wire::{Answer, Reader};
use flow_common::config::print;

/// Any bytes as packets of the native protocol one after the other, with blocks in frames and without, of an old
/// server's revision and ours; as blocks that HTTP answers with; and as its refusals.
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
    let _ = Refusal::from_text(&String::from_utf8_lossy(bytes));
}

/// Any text as flow-aggregator.conf: what is accepted says the same once it is printed.
pub fn aggregator_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(loaded) = config::read("flow-aggregator.conf", text) else { return };
    let printed = print(&loaded.settings);
    let again = config::read("flow-aggregator.conf", &printed).expect("what is printed is accepted");
    assert_eq!(print(&again.settings), printed, "what is printed says the same");
}
