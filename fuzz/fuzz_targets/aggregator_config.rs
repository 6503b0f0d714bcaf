//! Any text as flow-aggregator.conf; what is done with it is `aggregator.rs`.

#![no_main]

#[path = "../src/aggregator.rs"]
#[expect(dead_code, reason = "other targets' bodies")]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::aggregator_config(bytes));
