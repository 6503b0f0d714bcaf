//! Any bytes from a ClickHouse server; what is done with them is `clickhouse.rs`.

#![no_main]

#[path = "../src/clickhouse.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::clickhouse(bytes));
