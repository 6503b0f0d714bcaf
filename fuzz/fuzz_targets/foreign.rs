//! Any template and records by it before the IPFIX collector; what is done with them is `flow_fuzz::foreign`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flow_fuzz::foreign(bytes));
