//! Any text as a filter; what is done with it is `flow_fuzz::filter`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flow_fuzz::filter(bytes));
