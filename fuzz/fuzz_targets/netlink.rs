//! Any bytes as a datagram of netlink; what is done with it is `agent.rs`.

#![no_main]

#[path = "../src/agent.rs"]
#[expect(dead_code, reason = "other targets' bodies")]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::netlink(bytes));
