//! Any bytes from a ClickHouse server; what is done with them is `aggregator.rs`.

#![no_main]

#[path = "../src/aggregator.rs"]
#[expect(dead_code, reason = "other targets' bodies")]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::clickhouse(bytes));
