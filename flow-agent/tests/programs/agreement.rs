//! The kernel programs and the parser on the host say the same of any packet, damaged ones included.

use crate::harness::{Harness, Setting, pod};
use flow_common::abi::Reason;
use flow_ebpf::frames::{self, Ipv4, Ipv6, Tcp, ethernet, extension, fragment6, icmp, tagged, udp};
use flow_ebpf::parse::{Bytes, Fragment, Frame, Packet, Refusal, packet};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn samples() -> Vec<Vec<u8>> {
    let segment = Tcp::new(0x18).with(b"data");
    let datagram = udp([5_000, 53], b"question");
    let options = Ipv4 { options: vec![1; 8], ..Ipv4::new(6) };
    vec![
        Ipv4::new(6).frame(&segment),
        Ipv4::new(17).frame(&datagram),
        options.frame(&segment),
        Ipv4::new(1).frame(&icmp(8, 0, 77, b"ping")),
        Ipv6::new(6).frame(&segment),
        Ipv6::new(17).frame(&datagram),
        Ipv6::new(58).frame(&icmp(129, 0, 77, b"pong")),
        Ipv6::new(0).frame(&extension(43, 0, 8, &extension(51, 1, 16, &extension(17, 2, 12, &datagram)))),
        Ipv6::new(44).frame(&fragment6(17, 0, true, 9, &datagram)),
        ethernet(0x8100, &tagged(frames::IPV4, &Ipv4::new(17).with(&datagram))),
        ethernet(0x88a8, &tagged(0x8100, &tagged(frames::IPV6, &Ipv6::new(6).with(&segment)))),
    ]
}

/// A sample with some bytes changed and its end cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((14_usize..90, any::<u8>()), 0..4);
    (prop::sample::select(samples()), changes, 0_usize..12).prop_map(|(mut bytes, changes, cut)| {
        for (at, byte) in changes {
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
        }
        bytes.truncate((bytes.len() - cut).max(15));
        bytes
    })
}

#[test]
fn the_programs_agree_with_the_parser() {
    let harness = Harness::new(Setting { max_flows: 8_192, ..Setting::default() });
    let mut runner = TestRunner::new(Config { cases: 1_000, ..Config::default() });
    runner.run(&damaged(), |bytes| agree(&harness, &bytes)).unwrap_or_else(|error| panic!("{error}"));
    harness.balance();
}

fn agree(harness: &Harness, bytes: &[u8]) -> Result<(), TestCaseError> {
    let length = u32::try_from(bytes.len()).expect("short");
    let protocol = u16::from_ne_bytes([bytes[12], bytes[13]]);
    let mut expected = Packet::default();
    let read = packet(&Bytes(bytes), Frame { protocol, link: 14, length, gso: false }, &mut expected);
    let before = state(harness, &expected);
    harness.pass(pod(2, false), bytes);
    let after = state(harness, &expected);
    let reason = match read {
        // The ports of a later fragment are in the programs' map.
        Ok(()) if expected.fragment == Fragment::Later => return Ok(()),
        Ok(()) => {
            prop_assert_eq!((after.0 - before.0, after.1 - before.1), (1, u64::from(expected.bytes)));
            return Ok(());
        }
        Err(Refusal::Malformed) => Reason::Malformed,
        Err(Refusal::Unsupported) => Reason::Unsupported,
        Err(Refusal::NotIp(_)) => Reason::NotIp,
    };
    prop_assert_eq!(after.2[reason as usize] - before.2[reason as usize], 1);
    Ok(())
}

/// Packets and bytes in the flow and direction of a packet, and packets lost by reason.
fn state(harness: &Harness, packet: &Packet) -> (u64, u64, [u64; 5]) {
    let flow = harness.flow(packet.family, &packet.key);
    let direction = flow.map(|flow| flow.direction[packet.direction as usize]).unwrap_or_default();
    let lost = harness.counters(pod(2, false)).lost.map(|count| count.packets);
    (direction.packets, direction.bytes, lost)
}
