//! Header parsing by the laws that hold for every packet.

use flow_common::abi::Key6;
use flow_ebpf::frames::{self, Ipv4, Ipv6, Tcp, ethernet, extension, icmp, tagged, udp};
use flow_ebpf::parse::{Bytes, Frame, Packet, Refusal, packet, plain4, plain6, refused};
use proptest::prelude::*;

fn parse(bytes: &[u8]) -> Result<Packet, Refusal> {
    parse_as(bytes, 14, false)
}

fn parse_as(bytes: &[u8], link: u32, gso: bool) -> Result<Packet, Refusal> {
    let ethertype = bytes.get(12..14).and_then(|two| two.first_chunk()).map_or(0, |two| u16::from_ne_bytes(*two));
    let length = u32::try_from(bytes.len()).expect("short");
    let mut into = Packet::default();
    let frame = Frame { protocol: ethertype, link, length, gso };
    packet(&Bytes(bytes), frame, &mut into).map(|()| into)
}

/// One of each kind that goes through another branch, with the length of its link layer's header and tags.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut options = Ipv4::new(6);
    options.options = vec![1; 8];
    let segment = Tcp::new(0x18).with(b"data");
    let datagram = udp([5_000, 53], b"question");
    let six = |next: u8, payload: &[u8]| Ipv6::new(next).frame(payload);
    let ah = extension(17, 4, 24, &datagram);
    let chain = extension(43, 0, 8, &extension(60, 1, 16, &extension(51, 2, 24, &extension(6, 0, 8, &segment))));
    vec![
        ("TCP", Ipv4::new(6).frame(&segment)),
        ("TCP behind IPv4 options", options.frame(&segment)),
        ("UDP", Ipv4::new(17).frame(&datagram)),
        ("SCTP", Ipv4::new(132).frame(&datagram)),
        ("GRE", Ipv4::new(47).frame(&datagram)),
        ("AH in IPv4", Ipv4::new(51).frame(&ah)),
        ("IPv6 in IPv4", Ipv4::new(41).frame(&Ipv6::new(17).with(&datagram))),
        ("ICMP echo", Ipv4::new(1).frame(&icmp(8, 0, 77, b"ping"))),
        ("ICMP error", Ipv4::new(1).frame(&icmp(3, 1, 0, &Ipv4::new(17).with(&datagram)))),
        ("VLAN", ethernet(0x8100, &tagged(frames::IPV4, &Ipv4::new(17).with(&datagram)))),
        ("QinQ", ethernet(0x88a8, &tagged(0x8100, &tagged(frames::IPV6, &Ipv6::new(17).with(&datagram))))),
        ("TCP over IPv6", six(6, &segment)),
        ("ICMPv6 echo", six(58, &icmp(128, 0, 77, b"ping"))),
        ("AH in IPv6", six(51, &ah)),
        ("four extension headers", six(0, &chain)),
        ("IPv6 fragment", six(44, &frames::fragment6(17, 0, true, 9, &datagram))),
        ("later IPv6 fragment", six(44, &frames::fragment6(17, 1, false, 9, b"rest"))),
        ("no next header", six(59, &[])),
    ]
}

#[test]
fn every_kind_cut_at_every_length_is_itself_or_malformed() {
    for (name, whole) in samples() {
        let expected = parse(&whole).expect(name);
        for cut in 0..whole.len() {
            let cut_off = whole.get(..cut).expect("shorter");
            match parse(cut_off) {
                Err(Refusal::Malformed) => {}
                // Without the ethertype there is no telling.
                Err(Refusal::NotIp(_)) if cut < 14 => {}
                other => panic!("{name} cut at {cut} of {}: {other:?}, whole: {expected:?}", whole.len()),
            }
        }
    }
}

#[test]
fn padding_is_neither_counted_nor_read_as_ports() {
    let mut short = Ipv4::new(17).frame(&[0x12, 0x34]);
    short.extend([0x56; 24]);
    let packet = parse(&short).expect("good IP");
    assert_eq!((packet.bytes, packet.key.port), (22, [0, 0]));
    let mut padded = Ipv6::new(17).frame(&udp([1, 2], b""));
    padded.extend([0; 6]);
    assert_eq!(parse(&padded).expect("good IP").bytes, 48);
}

#[test]
fn six_extension_headers_are_followed_and_the_seventh_is_not() {
    let nest = |depth: usize| {
        let inner = udp([1, 2], b"");
        (0..depth).fold((17, inner), |(next, payload), _| (60, extension(next, 0, 8, &payload)))
    };
    let (next, payload) = nest(6);
    let packet = parse(&Ipv6::new(next).frame(&payload)).expect("six");
    assert_eq!((packet.key.protocol, packet.key.port), (17, [1_u16.to_be(), 2_u16.to_be()]));
    let (next, payload) = nest(7);
    assert_eq!(parse(&Ipv6::new(next).frame(&payload)), Err(Refusal::Unsupported));
}

#[test]
fn length_zero_is_the_frames_only_for_gso() {
    let mut big = Ipv4::new(6).frame(&Tcp::new(0x10).with(&[0; 100]));
    for byte in big.get_mut(16..18).expect("the total length") {
        *byte = 0;
    }
    assert_eq!(parse_as(&big, 14, true).expect("BIG TCP").bytes, 140);
    assert_eq!(parse_as(&big, 14, false), Err(Refusal::Malformed));
    let mut big = Ipv6::new(6).frame(&Tcp::new(0x10).with(&[0; 100]));
    for byte in big.get_mut(18..20).expect("the payload length") {
        *byte = 0;
    }
    assert_eq!(parse_as(&big, 14, true).expect("BIG TCP").bytes, 160);
    assert_eq!(parse_as(&big, 14, false).expect("an empty packet").bytes, 40);
}

#[test]
fn requests_and_replies_have_one_key() {
    for (family, request, reply) in [(4, 8, 0), (4, 13, 14), (6, 128, 129)] {
        let frame = |kind: u8, back: bool| match (family, back) {
            (4, false) => Ipv4::new(1).frame(&icmp(kind, 0, 7, b"")),
            (4, true) => Ipv4::new(1).back().frame(&icmp(kind, 0, 7, b"")),
            (_, false) => Ipv6::new(58).frame(&icmp(kind, 0, 7, b"")),
            (_, true) => Ipv6::new(58).back().frame(&icmp(kind, 0, 7, b"")),
        };
        let there = parse(&frame(request, false)).expect("ICMP");
        let back = parse(&frame(reply, true)).expect("ICMP");
        assert_eq!(there.key, back.key);
        assert_eq!(there.key.port, [7_u16.to_be(), (u16::from(request) << 8).to_be()]);
        assert_eq!((there.direction ^ back.direction, there.state), (1, back.state), "one originator");
    }
}

fn swapped(bytes: &[u8], family: u32) -> Vec<u8> {
    let mut swapped = bytes.to_vec();
    let (addresses, size) = if family == 4 { (26, 4) } else { (22, 16) };
    let ports = addresses + 2 * size;
    for (first, second, size) in [(addresses, addresses + size, size), (ports, ports + 2, 2)] {
        for n in 0..size {
            swapped.swap(first + n, second + n);
        }
    }
    swapped
}

proptest! {
    #[test]
    fn no_bytes_fail(bytes in prop::collection::vec(any::<u8>(), 0..200), link in prop::sample::select(vec![0, 14]), gso: bool) {
        let _ = parse_as(&bytes, link, gso);
        let length = u32::try_from(bytes.len()).expect("short");
        let _ = (plain4(&Bytes(&bytes), link, length), plain6(&Bytes(&bytes), link, length));
    }

    #[test]
    fn damaged_packets_do_not_fail(sample in 0_usize..18, at in 14_usize..80, byte: u8) {
        let mut bytes = samples().swap_remove(sample).1;
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        if let Ok(packet) = parse(&bytes) {
            prop_assert!(packet.end as usize <= bytes.len());
            prop_assert!(packet.bytes >= 20);
        }
    }

    /// The plain paths know less and nothing else.
    #[test]
    fn plain_agrees(sample in 0_usize..18, at in 14_usize..60, byte: u8) {
        let mut bytes = samples().swap_remove(sample).1;
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        let length = u32::try_from(bytes.len()).expect("short");
        let whole = parse(&bytes);
        if bytes[12..14] == [0x08, 0] && let Some(plain) = plain4(&Bytes(&bytes), 14, length) {
            let whole = whole.expect("the plain path took it");
            prop_assert_eq!((Key6::from(plain.key), u32::from(plain.reversed), plain.bytes, plain.flags, plain.transport),
                (whole.key, whole.direction, whole.bytes, whole.flags, whole.transport));
        } else if bytes[12..14] == [0x86, 0xdd] && let Some(plain) = plain6(&Bytes(&bytes), 14, length) {
            let whole = whole.expect("the plain path took it");
            prop_assert_eq!((plain.key, u32::from(plain.reversed), plain.bytes, plain.flags, plain.transport),
                (whole.key, whole.direction, whole.bytes, whole.flags, whole.transport));
        }
    }

    #[test]
    fn both_directions_have_one_key(src: [u8; 4], dst: [u8; 4], ports: [u16; 2], six: bool) {
        let frame = if six {
            let mut ip = Ipv6::new(17);
            ip.src[12..].copy_from_slice(&src);
            ip.dst[12..].copy_from_slice(&dst);
            ip.frame(&udp(ports, b"x"))
        } else {
            Ipv4 { src, dst, ..Ipv4::new(17) }.frame(&udp(ports, b"x"))
        };
        let there = parse(&frame).expect("UDP");
        let back = parse(&swapped(&frame, there.family)).expect("UDP");
        prop_assert_eq!(there.key, back.key);
        if src != dst || ports[0] != ports[1] {
            prop_assert_eq!(there.direction ^ back.direction, 1);
        }
    }
}

#[test]
fn an_icmp_error_is_about_the_flow_whose_packet_it_shows() {
    let read = |frame: &[u8]| parse(frame).expect("a packet");
    let datagram = udp([40_000, 53], &[0; 500]);
    for (kind, code, about) in [(3, 3, true), (3, 13, true), (3, 4, false), (11, 0, false), (8, 0, false)] {
        let sent = Ipv4::new(17).with(&datagram);
        // An error shows the IP header and eight bytes.
        let error = Ipv4::new(1).back().frame(&icmp(kind, code, 0, &sent[..28]));
        let mut shown = Packet::default();
        assert_eq!(refused(&Bytes(&error), &read(&error), &mut shown), about, "{kind} {code}");
        let same = (shown.key, shown.direction) == (read(&Ipv4::new(17).frame(&datagram)).key, 0);
        assert_eq!(same, about, "{kind} {code}");
        let cut = Ipv4::new(1).back().frame(&icmp(kind, code, 0, &sent[..19]));
        assert!(!refused(&Bytes(&cut), &read(&cut), &mut shown), "cut short");
    }
    for (kind, code, about) in [(1, 4, true), (1, 1, true), (2, 0, false), (3, 0, false), (128, 0, false)] {
        let sent = Ipv6::new(17).with(&datagram);
        let error = Ipv6::new(58).back().frame(&icmp(kind, code, 0, &sent[..48]));
        let mut shown = Packet::default();
        assert_eq!(refused(&Bytes(&error), &read(&error), &mut shown), about, "{kind} {code}");
        assert_eq!(shown.key == read(&Ipv6::new(17).frame(&datagram)).key, about, "{kind} {code}");
    }
}
