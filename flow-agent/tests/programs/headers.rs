//! Every kind of header: the flow a packet counts in, its ports and its layer-3 bytes.

use crate::harness::{Harness, Segments, Setting, pod, uplink};
use flow_common::abi::{Flow, Key6, Reason, STATE_FRAGMENTED, STATE_REVERSED};
use flow_ebpf::frames::{self, Ipv4, Ipv6, MORE, Tcp, ethernet, extension, fragment6, icmp, tagged, udp};

/// One packet through one hook of a fresh harness: protocol, ports in the order of the key, bytes.
fn counted(frame: &[u8]) -> (u8, [u16; 2], u64) {
    let harness = Harness::new(Setting::default());
    harness.pass(pod(2, false), frame);
    assert_eq!(harness.balance(), []);
    let (key, flow) = harness.only();
    let [low, high] = flow.direction;
    assert_eq!(low.packets + high.packets, 1);
    (key.protocol, key.port.map(u16::from_be), low.bytes + high.bytes)
}

/// One packet that counts in no flow: why.
fn lost(frame: &[u8]) -> Vec<(Reason, u64)> {
    let harness = Harness::new(Setting::default());
    harness.pass(pod(2, false), frame);
    assert_eq!(harness.flows(), []);
    harness.balance()
}

#[test]
fn ipv4() {
    assert_eq!(counted(&Ipv4::new(17).frame(&udp([5_000, 53], b"1234"))), (17, [5_000, 53], 32));
    let options = Ipv4 { options: vec![1; 12], ..Ipv4::new(6) };
    assert_eq!(counted(&options.frame(&Tcp::new(2).with(b""))), (6, [40_000, 80], 52));
    for protocol in [132, 33, 136] {
        assert_eq!(counted(&Ipv4::new(protocol).frame(&udp([7, 9], b""))), (protocol, [7, 9], 28));
    }
    for protocol in [4, 41, 47, 50, 51, 253] {
        assert_eq!(counted(&Ipv4::new(protocol).frame(&udp([7, 9], b""))), (protocol, [0, 0], 28), "no ports");
    }
    let inner = Ipv4::new(17).with(&udp([1, 2], b""));
    assert_eq!(counted(&Ipv6::new(4).frame(&inner)), (4, [0, 0], 68), "IPv4 in IPv6");
}

#[test]
fn ipv6() {
    let datagram = udp([5_000, 53], b"1234");
    assert_eq!(counted(&Ipv6::new(17).frame(&datagram)), (17, [5_000, 53], 52));
    assert_eq!(counted(&Ipv6::new(6).frame(&Tcp::new(2).with(b"12"))), (6, [40_000, 80], 62));
    let ah = extension(17, 4, 24, &datagram);
    assert_eq!(counted(&Ipv6::new(51).frame(&ah)), (17, [5_000, 53], 76), "AH is an extension header here");
    let mut next = (17, datagram);
    for kind in [60, 43, 60, 60, 43, 0] {
        next = (kind, extension(next.0, 1, 16, &next.1));
    }
    assert_eq!(counted(&Ipv6::new(next.0).frame(&next.1)), (17, [5_000, 53], 52 + 96), "six extension headers");
    let seven = extension(next.0, 0, 8, &next.1);
    assert_eq!(lost(&Ipv6::new(60).frame(&seven)), [(Reason::Unsupported, 1)]);
    assert_eq!(counted(&Ipv6::new(59).frame(b"")), (59, [0, 0], 40));
}

#[test]
fn vlan_tags() {
    let inner = Ipv4::new(17).with(&udp([1, 2], b""));
    let one = tagged(frames::IPV4, &inner);
    assert_eq!(counted(&ethernet(0x8100, &one)), (17, [1, 2], 28));
    assert_eq!(counted(&ethernet(0x88a8, &tagged(0x8100, &one))), (17, [1, 2], 28));
    let three = ethernet(0x88a8, &tagged(0x88a8, &tagged(0x8100, &one)));
    assert_eq!(lost(&three), [(Reason::NotIp, 1)], "two tags at most");
}

#[test]
fn what_is_no_ip_is_counted_by_its_ethertype() {
    let harness = Harness::new(Setting::default());
    for ethertype in [0x0806, 0x0806, 0x8847, 0x8863, 0x1234, 0x4321] {
        harness.pass(uplink(3, true), &ethernet(ethertype, &[0; 46]));
    }
    assert_eq!(harness.balance(), [(Reason::NotIp, 6)]);
    assert_eq!((harness.ethertype(0x0806), harness.ethertype(0x8847)), (2, 1));
    // The map of these tests holds four.
    assert_eq!(harness.ethertype(0x8863) + harness.ethertype(0x1234) + harness.ethertype(0x4321), 2);
}

#[test]
fn pings_there_and_back_are_one_flow_each() {
    let harness = Harness::new(Setting::default());
    for id in [5, 6] {
        harness.pass(pod(2, true), &Ipv4::new(1).back().frame(&icmp(0, 0, id, b"late")));
        harness.pass(pod(2, false), &Ipv4::new(1).frame(&icmp(8, 0, id, b"early")));
        harness.pass(pod(2, true), &Ipv6::new(58).back().frame(&icmp(129, 0, id, b"")));
        harness.pass(pod(2, false), &Ipv6::new(58).frame(&icmp(128, 0, id, b"")));
    }
    assert_eq!(harness.balance(), []);
    let flows = harness.flows();
    assert_eq!(flows.len(), 4);
    for (key, flow) in flows {
        let kind = if key.protocol == 1 { 8 << 8 } else { 128 << 8 };
        assert!([5, 6].contains(&u16::from_be(key.port[0])) && u16::from_be(key.port[1]) == kind);
        assert_eq!(flow.direction.map(|direction| direction.packets), [1, 1]);
        let request = flow.direction[flow.originator()];
        assert_eq!(request.owner, pod(2, false).packed(), "who asks is the originator, even if the answer came first");
    }
}

#[test]
fn icmp_errors_are_flows_of_their_own() {
    let cause = Ipv4::new(17).with(&udp([1, 2], b""));
    assert_eq!(counted(&Ipv4::new(1).back().frame(&icmp(3, 3, 0, &cause))), (1, [0, 3 << 8 | 3], 56));
    let cause = Ipv6::new(17).with(&udp([1, 2], b""));
    assert_eq!(counted(&Ipv6::new(58).back().frame(&icmp(1, 4, 0, &cause))), (58, [0, 1 << 8 | 4], 96));
    assert_eq!(counted(&Ipv6::new(58).frame(&icmp(135, 0, 99, b""))), (58, [0, 135 << 8], 48), "no identifier");
}

fn total(harness: &Harness) -> (Key6, Flow, u64) {
    let (key, flow) = harness.only();
    (key, flow, flow.direction.iter().map(|direction| direction.packets).sum())
}

#[test]
fn fragments_join_their_datagram() {
    let harness = Harness::new(Setting::default());
    let first = Ipv4 { id: 7, fragment: MORE, ..Ipv4::new(17) };
    let later = Ipv4 { id: 7, fragment: 3, ..Ipv4::new(17) };
    harness.pass(pod(2, false), &first.frame(&udp([5_000, 53], &[0; 16])));
    harness.pass(pod(2, false), &later.frame(&[0xee; 24]));
    let (key, flow, packets) = total(&harness);
    assert_eq!((key.port.map(u16::from_be), packets), ([5_000, 53], 2));
    assert_ne!(flow.state & STATE_FRAGMENTED, 0);
    assert_eq!(flow.direction.iter().map(|direction| direction.bytes).sum::<u64>(), 44 + 44);
    harness.pass(pod(2, false), &Ipv4 { id: 8, ..later }.frame(&[0xee; 24]));
    assert_eq!(harness.flows().len(), 2, "another datagram's, without its first: ports 0");
    assert_eq!(harness.counters(pod(2, false)).fragments_alone, 1);
    assert_eq!(harness.balance(), []);
}

#[test]
fn ipv6_fragments_join_their_datagram() {
    let harness = Harness::new(Setting::default());
    let datagram = extension(17, 0, 8, &udp([5_000, 53], &[0; 16]));
    // The fragmentable part begins with a destination options header, which only the first fragment shows.
    let fragment = |offset, more, bytes: &[u8]| Ipv6::new(44).frame(&fragment6(60, offset, more, 99, bytes));
    harness.pass(pod(2, false), &fragment(0, true, &datagram));
    harness.pass(pod(2, false), &fragment(4, false, b"the rest"));
    let (key, _, packets) = total(&harness);
    assert_eq!((key.protocol, key.port.map(u16::from_be), packets), (17, [5_000, 53], 2));
    let whole = Harness::new(Setting::default());
    whole.pass(pod(2, false), &fragment(0, false, &datagram));
    assert_eq!(whole.only().0.port.map(u16::from_be), [5_000, 53], "a fragment that is all of it");
}

#[test]
fn fragments_of_pings_count_in_their_direction() {
    let harness = Harness::new(Setting::default());
    let reply = Ipv4 { id: 7, fragment: MORE, ..Ipv4::new(1).back() };
    harness.pass(pod(2, true), &reply.frame(&icmp(0, 0, 5, &[0; 16])));
    harness.pass(pod(2, true), &Ipv4 { fragment: 3, ..reply }.frame(&[0; 8]));
    let (key, flow, _) = total(&harness);
    assert_eq!(key.port.map(u16::from_be), [5, 8 << 8]);
    assert_eq!(flow.direction[1 - flow.originator()].packets, 2, "both answer");
}

#[test]
fn first_fragments_too_short_for_ports_have_none() {
    let first = Ipv4 { id: 7, fragment: MORE, ..Ipv4::new(17) };
    assert_eq!(counted(&first.frame(&[0x13])), (17, [0, 0], 21));
    let mut padded = Ipv4::new(6).frame(&[0x13, 0x88, 0]);
    padded.extend([0xff; 30]);
    assert_eq!(counted(&padded), (6, [0, 0], 23), "padding is no port");
}

#[test]
fn truncated_at_every_length() {
    let four = Ipv4::new(6).with(&Tcp::new(2).with(b"payload"));
    let six = Ipv6::new(0).with(&extension(17, 0, 8, &udp([1, 2], b"payload")));
    let harness = Harness::new(Setting::default());
    let mut cuts = 0;
    // A test run takes no IP frame without a whole IP header; behind a tag it takes any that has a byte behind the link layer.
    for (frame, shortest) in [
        (ethernet(frames::IPV4, &four), 34),
        (ethernet(frames::IPV6, &six), 54),
        (ethernet(0x8100, &tagged(frames::IPV4, &four)), 15),
        (ethernet(0x88a8, &tagged(0x8100, &tagged(frames::IPV6, &six))), 15),
    ] {
        for cut in shortest..frame.len() {
            harness.pass(pod(2, false), &frame[..cut]);
            cuts += 1;
        }
    }
    assert_eq!(harness.balance(), [(Reason::Malformed, cuts)]);
    assert_eq!(harness.flows(), []);
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    let good = Ipv4::new(17).frame(&udp([1, 2], b""));
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    assert_eq!(lost(&with(14, &[0x44])), [(Reason::Malformed, 1)], "IHL 4");
    assert_eq!(lost(&with(14, &[0x65])), [(Reason::Malformed, 1)], "version 6");
    assert_eq!(lost(&with(16, &[0, 19])), [(Reason::Malformed, 1)], "shorter than its header");
    assert_eq!(lost(&with(16, &[0, 29])), [(Reason::Malformed, 1)], "longer than the frame");
    assert_eq!(lost(&with(16, &[0, 0])), [(Reason::Malformed, 1)], "no length, and no GSO");
}

#[test]
fn segments_of_gso_packets_are_counted_beside() {
    let harness = Harness::new(Setting::default());
    let mut frame = Ipv4::new(6).frame(&Tcp::new(0x10).with(&[0; 400]));
    harness.pass_as("pod_ingress", 2, &frame, Segments { count: 4, size: 100 });
    // BIG TCP has no room for its length.
    frame[16..18].fill(0);
    harness.pass_as("pod_ingress", 2, &frame, Segments { count: 4, size: 100 });
    let counters = harness.counters(pod(2, false));
    assert_eq!((counters.seen.packets, counters.segments, counters.seen.bytes), (2, 8, 880));
    assert_eq!(harness.balance(), []);
    assert_eq!(total(&harness).2, 2);
}

/// A test run puts an Ethernet header before the packet; these packets bring bytes that are both: the ethertype is a part of the
/// source address.
#[test]
fn layer_3_devices_have_no_ethernet_header() {
    let harness = Harness::new(Setting::default());
    let four = Ipv4 { src: [8, 0, 0, 1], ..Ipv4::new(17) };
    let mut six = Ipv6::new(17);
    six.src[4..6].copy_from_slice(&[0x86, 0xdd]);
    let payload = [0; 41];
    for (name, ifindex, packet) in [
        ("uplink_ingress_l3", 3, four.with(&udp([1, 2], &payload))),
        ("uplink_egress_l3", 3, six.with(&udp([1, 2], &payload))),
        ("pod_ingress_l3", 4, four.with(&udp([1, 3], &payload))),
        ("pod_egress_l3", 4, six.with(&udp([1, 3], &payload))),
    ] {
        harness.pass_as(name, ifindex, &packet, Segments::default());
    }
    assert_eq!(harness.balance(), []);
    let flows = harness.flows();
    assert_eq!(flows.len(), 4);
    let owners: Vec<u32> = flows.iter().flat_map(|(_, flow)| flow.direction.map(|direction| direction.owner)).collect();
    for point in [uplink(3, false), uplink(3, true), pod(4, false), pod(4, true)] {
        assert!(owners.contains(&point.packed()), "{point:?} owns one of {owners:?}");
    }
    assert!(
        flows.iter().all(|(_, flow)| flow.direction.iter().map(|direction| direction.bytes).sum::<u64>() % 10 == 9)
    );
}

#[test]
fn a_flow_with_oneself_has_two_directions() {
    let harness = Harness::new(Setting::default());
    let own = Ipv4 { dst: [10, 0, 0, 1], ..Ipv4::new(17) };
    harness.pass(pod(2, false), &own.frame(&udp([9, 5], b"")));
    harness.pass(pod(2, true), &own.frame(&udp([5, 9], b"")));
    let (_, flow, packets) = total(&harness);
    assert_eq!((packets, flow.direction.map(|direction| direction.packets)), (2, [1, 1]));
    let first = flow.direction[flow.originator()];
    assert_eq!(first.owner, pod(2, false).packed(), "{}", flow.state & STATE_REVERSED);
}
