//! Any bytes before the IPFIX collector; what is done with them is `flow_fuzz::collector`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flow_fuzz::collector(bytes));
