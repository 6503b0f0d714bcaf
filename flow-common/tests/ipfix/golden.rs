//! Byte for byte: the example messages, and the templates as lists of numbers.

use flow_common::ipfix::accounting::Kind;
use flow_common::ipfix::exporter::{STREAM_LIMIT, Session, Settings};
use flow_common::ipfix::message::{Element, Header, put_template};
use flow_common::record::{Content, Cut, Extended, Family, FlowRecord, FlowType, Head, Layout, Tail, TcpState};

use super::build::{ANTREA, REVERSE, VARIABLE, hex, message, options_template, records, set, stream, template};

const TEMPLATE: &str = "000a0028 5f9a6b7f 00000000 00000001 00020018 01000003 00080004 000c0004 8065ffff 0000dcba";
const DATA: &str = "000a0021 5f9a6c12 00000000 00000001 01000011 01020304 05060708 04706f6431";

/// An agent's record of IPv4.
const AGENT: [(u32, u16, u16); 41] = [
    (0, 150, 4),
    (0, 151, 4),
    (0, 136, 1),
    (0, 7, 2),
    (0, 11, 2),
    (0, 4, 1),
    (0, 86, 8),
    (0, 85, 8),
    (0, 2, 8),
    (0, 1, 8),
    (0, 8, 4),
    (0, 12, 4),
    (REVERSE, 86, 8),
    (REVERSE, 85, 8),
    (REVERSE, 2, 8),
    (REVERSE, 1, 8),
    (ANTREA, 101, VARIABLE),
    (ANTREA, 100, VARIABLE),
    (ANTREA, 104, VARIABLE),
    (ANTREA, 103, VARIABLE),
    (ANTREA, 102, VARIABLE),
    (ANTREA, 105, VARIABLE),
    (ANTREA, 108, 2),
    (ANTREA, 109, VARIABLE),
    (ANTREA, 110, VARIABLE),
    (ANTREA, 111, VARIABLE),
    (ANTREA, 115, 1),
    (ANTREA, 141, VARIABLE),
    (ANTREA, 139, 1),
    (ANTREA, 112, VARIABLE),
    (ANTREA, 113, VARIABLE),
    (ANTREA, 118, 1),
    (ANTREA, 142, VARIABLE),
    (ANTREA, 140, 1),
    (ANTREA, 136, VARIABLE),
    (ANTREA, 137, 1),
    (ANTREA, 153, VARIABLE),
    (ANTREA, 154, VARIABLE),
    (ANTREA, 155, VARIABLE),
    (ANTREA, 156, VARIABLE),
    (ANTREA, 106, 4),
];
const EXTENDED: [(u32, u16, u16); 10] = [
    (0, 152, 8),
    (0, 153, 8),
    (0, 6, 2),
    (REVERSE, 6, 2),
    (0, 32, 2),
    (0, 148, 8),
    (0, 135, 8),
    (0, 89, 1),
    (0, 225, 4),
    (0, 227, 2),
];

/// The elements that are others in a record of IPv6.
fn v6(elements: &[(u32, u16, u16)]) -> Vec<(u32, u16, u16)> {
    let ids = [((0, 8), 27), ((0, 12), 28), ((ANTREA, 106), 107), ((0, 225), 281)];
    let other = |(enterprise, id, length)| match ids.iter().find(|(element, _)| *element == (enterprise, id)) {
        Some((_, id)) => (enterprise, *id, 16),
        None if (enterprise, id) == (0, 32) => (0, 139, 2),
        None => (enterprise, id, length),
    };
    elements.iter().copied().map(other).collect()
}

fn joined() -> Vec<(u32, u16, u16)> {
    let mut elements = AGENT.to_vec();
    for (src, dst) in [(123, 131), (121, 129), (122, 130), (120, 128), (127, 135), (125, 133), (126, 134), (124, 132)] {
        elements.extend([(ANTREA, src, 8), (ANTREA, dst, 8)]);
    }
    elements.extend([(ANTREA, 151, 4), (ANTREA, 152, 4)]);
    elements.extend([145, 147, 148, 146, 149, 150].map(|id| (ANTREA, id, 8)));
    elements.extend([(ANTREA, 143, VARIABLE), (ANTREA, 144, VARIABLE)]);
    elements
}

fn proxied() -> Vec<(u32, u16, u16)> {
    let origin = [(0, 405, 4), (0, 403, 4), (0, 404, 16), (0, 61, 1), (ANTREA, 143, VARIABLE), (ANTREA, 144, VARIABLE)];
    [&AGENT[..], &origin].concat()
}

#[test]
fn the_example_is_written_byte_for_byte() {
    let elements = [
        Element { enterprise: 0, id: 8, width: 4 },
        Element { enterprise: 0, id: 12, width: 4 },
        Element { enterprise: ANTREA, id: 101, width: VARIABLE },
    ];
    let mut body = Vec::new();
    put_template(256, 0, elements.into_iter(), &mut body);
    let header = Header { length: 40, export_time: 0x5f9a_6b7f, sequence: 0, domain: 1 };
    assert_eq!([&header.bytes()[..], &set(2, &body)].concat(), hex(TEMPLATE));
}

#[test]
fn the_example_is_read() {
    let read = records(&mut stream(), &[hex(TEMPLATE), hex(DATA)].concat());
    let [record] = &read[..] else { panic!("one record, not {}", read.len()) };
    assert_eq!(record.head.src_addr.to_string(), "1.2.3.4");
    assert_eq!(record.head.dst_addr.to_string(), "5.6.7.8");
    assert_eq!(record.tail, Tail { src_pod: "pod1".into(), ..Tail::default() });
    assert_eq!(record.head.end_seconds, 0x5f9a_6c12, "the message's time, as the record has none");
}

#[test]
fn templates_are_the_elements_in_their_order() {
    for (content, v4) in [(Content::Agent, AGENT.to_vec()), (Content::Joined, joined()), (Content::Proxied, proxied())]
    {
        for extended in [false, true] {
            let v4 = if extended { [&v4[..], &EXTENDED].concat() } else { v4.clone() };
            let settings = Settings {
                domain: 1,
                content,
                extended,
                accounting: false,
                message_limit: STREAM_LIMIT,
                template_resend: None,
            };
            let mut session = Session::new(settings);
            session.begin(super::build::NOW);
            let expected =
                [message(0, &[set(2, &template(256, &v4))]), message(0, &[set(2, &template(257, &v6(&v4)))])];
            assert_eq!(session.bytes(), expected.concat(), "{content:?} {extended}");
        }
    }
}

#[test]
fn options_templates_are_the_elements_in_their_order() {
    type Expected = (Kind, u16, u16, &'static [(u32, u16, u16)]);
    let expected: [Expected; 5] = [
        (Kind::Metering, 258, 1, &[(0, 143, 4), (0, 41, 8), (0, 42, 8), (0, 40, 8)]),
        (Kind::NotSent, 259, 1, &[(0, 144, 4), (0, 166, 8), (0, 167, 8), (0, 168, 8), (0, 323, 8), (0, 323, 8)]),
        (Kind::Interface, 260, 2, &[(0, 10, 4), (0, 335, VARIABLE), (0, 82, VARIABLE), (0, 86, 8), (0, 85, 8)]),
        (Kind::Addr4, 261, 2, &[(0, 10, 4), (0, 8, 4), (ANTREA, 104, VARIABLE), (0, 82, VARIABLE)]),
        (Kind::Addr6, 262, 2, &[(0, 10, 4), (0, 27, 16), (ANTREA, 104, VARIABLE), (0, 82, VARIABLE)]),
    ];
    for (kind, id, scope, elements) in expected {
        let mut body = Vec::new();
        put_template(kind.template(), kind.scope(), kind.elements(), &mut body);
        assert_eq!(body, options_template(id, scope, elements));
    }
}

#[test]
fn a_record_is_written_byte_for_byte() {
    let record = FlowRecord {
        head: Head {
            start_seconds: 1,
            end_seconds: 2,
            end_reason: 3.into(),
            src_port: 4,
            dst_port: 5,
            protocol: 6,
            packet_total: 7,
            octet_total: 8,
            packet_delta: 9,
            octet_delta: 10,
            src_addr: [10, 0, 0, 1].into(),
            dst_addr: [10, 0, 0, 2].into(),
            reverse_packet_total: 11,
            reverse_octet_total: 12,
            reverse_packet_delta: 13,
            reverse_octet_delta: 14,
        },
        tail: Tail {
            src_pod: "web".into(),
            dst_node: "é".into(),
            service_port: 80,
            tcp_state: TcpState::TimeWait,
            flow_type: FlowType::InterNode,
            http: "{}".into(),
            service_addr: [10, 96, 0, 1].into(),
            ..Tail::default()
        },
        extended: Extended {
            start_milliseconds: 1001,
            end_milliseconds: 2002,
            tcp_flags: 0x1b,
            reverse_tcp_flags: 0x12,
            icmp_type_code: 0x800,
            flow_id: 15,
            dropped_packets: 16,
            forwarding_status: 64.into(),
            nat_src_addr: [192, 0, 2, 1].into(),
            nat_src_port: 17,
        },
    };
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>();
    let expected = [
        hex("00000001 00000002 03 0004 0005 06"),
        numbers(&[7, 8, 9, 10]),
        hex("0a000001 0a000002"),
        numbers(&[11, 12, 13, 14]),
        hex("03 776562 00 00 00 00 02 c3a9 0050 00"),
        hex("00 00 00 00 00 00 00 00 00 00"),
        hex("09 54494d452d57414954 02 00 00 00 02 7b7d 0a600001"),
        numbers(&[1001, 2002]),
        hex("001b 0012 0800"),
        numbers(&[15, 16]),
        hex("40 c0000201 0011"),
    ]
    .concat();
    let mut written = Vec::new();
    record.encode(true, &mut written, &mut Cut::default());
    assert_eq!(written, expected);
    assert_eq!(FlowRecord::decode(Family::V4, true, &expected), Some((record, &[][..])));
    assert!(expected.len() > Layout::agent(Family::V4, true).least_len());
}
