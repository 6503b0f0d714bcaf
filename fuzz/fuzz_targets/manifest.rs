//! Any text as a manifest; what is done with it is `flow_fuzz::manifest`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flow_fuzz::manifest(bytes));
