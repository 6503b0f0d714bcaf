//! Records of other senders: whatever their template, the same head, tail and extended elements.

use flow_common::ipfix::collector::{Batch, Session};
use flow_common::record::{FlowRecord, FlowType, Tail, TcpState};

use super::build::{ANTREA, NOW, REVERSE, VARIABLE, message, options_template, owned, records, set, stream, template};

const ENDS: [(u32, u16, u16); 2] = [(0, 8, 4), (0, 12, 4)];
const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const MS: u64 = NOW as u64 * 1000;

/// One element after the ends, and its value.
type Given<'a> = ((u32, u16, u16), &'a [u8]);

fn bytes_of(given: &[Given<'_>]) -> Vec<u8> {
    let elements: Vec<_> = ENDS.into_iter().chain(given.iter().map(|(element, _)| *element)).collect();
    let mut body = [A, B].concat();
    for (element, value) in given {
        if element.2 == VARIABLE {
            body.push(u8::try_from(value.len()).expect("short"));
        }
        body.extend(*value);
    }
    message(0, &[set(2, &template(300, &elements)), set(300, &body)])
}

fn read_by(session: &mut Session, given: &[Given<'_>]) -> FlowRecord {
    let read = records(session, &bytes_of(given));
    assert_eq!(read.len(), 1);
    read.into_iter().next().expect("one record")
}

fn read(given: &[Given<'_>]) -> FlowRecord {
    read_by(&mut stream(), given)
}

/// Start and end in seconds, start and end in milliseconds.
fn times(given: &[Given<'_>]) -> (u32, u32, u64, u64) {
    let FlowRecord { head, extended, .. } = read(given);
    (head.start_seconds, head.end_seconds, extended.start_milliseconds, extended.end_milliseconds)
}

#[test]
fn times_are_taken_as_they_come() {
    let (start, end) = (MS - 20_500, MS - 10_250);
    let exact = (NOW - 21, NOW - 11, start, end);
    assert_eq!(times(&[((0, 152, 8), &start.to_be_bytes()), ((0, 153, 8), &end.to_be_bytes())]), exact);
    let ntp = |ms: u64| (((ms / 1000 + 2_208_988_800) << 32) + ((ms % 1000) << 32) / 1000 + 1).to_be_bytes();
    assert_eq!(times(&[((0, 154, 8), &ntp(start)), ((0, 155, 8), &ntp(end))]), exact);
    assert_eq!(times(&[((0, 156, 8), &ntp(start)), ((0, 157, 8), &ntp(end))]), exact);
    let delta = |us: u32| us.to_be_bytes();
    assert_eq!(times(&[((0, 158, 4), &delta(20_500_000)), ((0, 159, 4), &delta(10_250_000))]), exact);
    let seconds = |seconds: u32| seconds.to_be_bytes();
    assert_eq!(times(&[((0, 150, 4), &seconds(5)), ((0, 151, 4), &seconds(6))]), (5, 6, 0, 0));
    assert_eq!(times(&[]), (NOW, NOW, 0, 0));
}

#[test]
fn a_missing_time_follows_from_the_others() {
    let (start, end) = (MS - 20_500, MS - 10_250);
    let exact = (NOW - 21, NOW - 11, start, end);
    let milliseconds = 10_250_u32.to_be_bytes();
    assert_eq!(times(&[((0, 153, 8), &end.to_be_bytes()), ((0, 161, 4), &milliseconds)]), exact);
    assert_eq!(times(&[((0, 152, 8), &start.to_be_bytes()), ((0, 162, 4), &10_250_000_u32.to_be_bytes())]), exact);
    assert_eq!(times(&[((0, 152, 8), &start.to_be_bytes())]), (NOW - 21, NOW, start, 0));
    assert_eq!(times(&[((0, 323, 8), &end.to_be_bytes())]), (NOW - 11, NOW - 11, end, end));
}

#[test]
fn uptimes_count_from_the_senders_begin() {
    let (start, end) = (MS - 20_500, MS - 10_250);
    let init = MS - 100_000;
    let uptimes = [((0, 22, 4), 79_500_u32.to_be_bytes()), ((0, 21, 4), 89_750_u32.to_be_bytes())];
    let given = [(uptimes[0].0, &uptimes[0].1[..]), (uptimes[1].0, &uptimes[1].1[..])];
    let with_init = [given[0], given[1], ((0, 160, 8), &init.to_be_bytes())];
    assert_eq!(times(&with_init), (NOW - 21, NOW - 11, start, end));
    assert_eq!(times(&given), (NOW - 11, NOW, 0, 0), "its duration alone is known");
    // The begin may come once, as options data.
    let mut session = stream();
    let option = set(3, &options_template(400, 1, &[(0, 143, 4), (0, 160, 8)]));
    let data = set(400, &[&[0, 0, 0, 1][..], &init.to_be_bytes()].concat());
    records(&mut session, &message(0, &[option, data]));
    assert_eq!(read_by(&mut session, &given).extended.start_milliseconds, start);
}

#[test]
fn both_families_in_one_record_are_told_apart() {
    let elements = [(0, 8, 4), (0, 12, 4), (0, 27, 16), (0, 28, 16)];
    let (v6, none) = ([0x20; 16], [0; 16]);
    let body = [&A[..], &B, &none, &none, &[0; 8], &v6, &v6, &[0; 40], &[0, 0, 0, 0], &B, &none, &none].concat();
    let mut session = stream();
    let read = records(&mut session, &message(0, &[set(2, &template(300, &elements)), set(300, &body)]));
    let ends: Vec<_> = read.iter().map(|record| (record.head.src_addr, record.head.dst_addr)).collect();
    assert_eq!(ends, [(A.into(), B.into()), (v6.into(), v6.into()), ([0, 0, 0, 0].into(), B.into())]);
    assert_eq!(session.counters().keyless, 1);
}

#[test]
fn counters_are_taken_from_any_element_that_has_them() {
    let FlowRecord { head, .. } = read(&[((0, 86, 1), &[5]), ((0, 85, 3), &[1, 0, 0]), ((REVERSE, 85, 2), &[1, 0])]);
    assert_eq!(head.totals(), [5, 65536, 0, 256]);
    assert_eq!(head.deltas(), head.totals(), "a sender that has no deltas tells a flow once");
    let FlowRecord { head, .. } = read(&[((0, 298, 8), &[0, 0, 0, 0, 0, 0, 0, 7]), ((0, 232, 4), &[0, 0, 1, 0])]);
    assert_eq!((head.totals(), head.deltas()), ([0; 4], [7, 0, 0, 256]));
    let FlowRecord { head, .. } = read(&[((0, 352, 4), &[0, 0, 0, 9]), ((0, 1, 4), &[0, 0, 0, 3])]);
    assert_eq!(head.octet_delta, 3, "layer 3 is what we count");
}

#[test]
fn a_record_says_of_each_counter_whether_it_is_a_total() {
    let packets: Given<'_> = ((0, 86, 1), &[5]);
    let slice_packets: Given<'_> = ((0, 2, 1), &[2]);
    let slice_octets: Given<'_> = ((0, 1, 1), &[90]);
    let reversed: Given<'_> = ((0, 239, 1), &[2]);
    type Counters = ([bool; 4], [u64; 4], [u64; 4]);
    let cases: [(&[Given<'_>], Counters); 4] = [
        (&[packets], ([true, false, false, false], [5, 0, 0, 0], [5, 0, 0, 0])),
        (&[slice_packets], ([false; 4], [0; 4], [2, 0, 0, 0])),
        (&[packets, slice_octets], ([true, false, false, false], [5, 0, 0, 0], [5, 90, 0, 0])),
        (&[packets, slice_octets, reversed], ([false, false, true, false], [0, 0, 5, 0], [0, 0, 5, 90])),
    ];
    for (given, expected) in cases {
        let (bytes, mut batch) = (bytes_of(given), Batch::new(1));
        stream().decode(&bytes, 0, NOW, &mut batch).expect("a message");
        let record = &batch.records()[0];
        assert_eq!((record.has_total, record.head.totals(), record.head.deltas()), expected);
    }
}

#[test]
fn a_reversed_flow_is_turned() {
    let given: [Given<'_>; 6] = [
        ((0, 7, 2), &[0, 80]),
        ((0, 11, 2), &[200, 0]),
        ((0, 86, 1), &[1]),
        ((REVERSE, 86, 1), &[2]),
        ((0, 6, 1), &[0x12]),
        ((0, 239, 1), &[2]),
    ];
    let FlowRecord { head, extended, .. } = read(&given);
    assert_eq!((head.src_addr, head.src_port, head.dst_port), (B.into(), 51_200, 80));
    assert_eq!((head.packet_total, head.reverse_packet_total), (2, 1));
    assert_eq!((extended.tcp_flags, extended.reverse_tcp_flags), (0, 0x12));
}

#[test]
fn translated_ends_are_told() {
    let given: [Given<'_>; 5] = [
        ((0, 11, 2), &[0, 80]),
        ((0, 226, 4), &[10, 0, 0, 9]),
        ((0, 228, 2), &[31, 144]),
        ((0, 225, 4), &[192, 0, 2, 1]),
        ((0, 227, 2), &[4, 0]),
    ];
    let FlowRecord { head, tail, extended } = read(&given);
    assert_eq!((head.dst_addr, head.dst_port), ([10, 0, 0, 9].into(), 8080));
    assert_eq!((tail.service_addr, tail.service_port), (B.into(), 80));
    assert_eq!((extended.nat_src_addr, extended.nat_src_port), ([192, 0, 2, 1].into(), 1024));
    let unchanged = read(&[((0, 225, 4), &A)]);
    assert!(unchanged.extended.nat_src_addr.is_unspecified());
}

#[test]
fn icmp_has_its_type_where_ports_are() {
    let echo: [Given<'_>; 3] = [((0, 4, 1), &[1]), ((0, 176, 1), &[8]), ((0, 177, 1), &[0])];
    assert_eq!(read(&echo).head.dst_port, 0x800);
    let unreachable = read(&[((0, 4, 1), &[1]), ((0, 32, 2), &[3, 1])]);
    assert_eq!((unreachable.head.dst_port, unreachable.extended.icmp_type_code), (0x301, 0x301));
    let tcp = read(&[((0, 4, 1), &[6]), ((0, 32, 2), &[3, 1])]);
    assert_eq!((tcp.head.dst_port, tcp.extended.icmp_type_code), (0, 0));
}

#[test]
fn names_come_in_any_order_and_width() {
    let given: [Given<'_>; 7] = [
        ((ANTREA, 137, 4), &[0, 0, 0, 2]),
        ((ANTREA, 103, 8), b"server\0\0"),
        ((9, 4711, VARIABLE), b"skipped"),
        ((ANTREA, 101, VARIABLE), b"client"),
        ((ANTREA, 136, 11), b"ESTABLISHED"),
        ((ANTREA, 156, VARIABLE), b"{\"0\":{}}"),
        ((ANTREA, 108, 1), &[80]),
    ];
    let expected = Tail {
        src_pod: "client".into(),
        dst_pod: "server".into(),
        service_port: 80,
        tcp_state: TcpState::Established,
        flow_type: FlowType::InterNode,
        http: "{\"0\":{}}".into(),
        ..Tail::default()
    };
    assert_eq!(read(&given).tail, expected);
}

#[test]
fn equal_tails_have_equal_hashes_whichever_way_they_came() {
    let (bytes, mut batch) = (bytes_of(&[((ANTREA, 101, VARIABLE), b"client")]), Batch::new(1));
    stream().decode(&bytes, 0, NOW, &mut batch).expect("a message");
    let foreign = batch.records()[0];
    let record = owned(&batch, &foreign, &bytes);
    let settings = flow_common::ipfix::exporter::Settings {
        domain: 1,
        content: flow_common::record::Content::Agent,
        extended: true,
        accounting: false,
        message_limit: 65_535,
        template_resend: None,
    };
    let mut exporter = flow_common::ipfix::exporter::Session::new(settings);
    exporter.begin(NOW);
    exporter.push_record(&record).expect("small");
    let with_http = FlowRecord { tail: Tail { http: "{\"0\":{}}".into(), ..record.tail.clone() }, ..record };
    exporter.push_record(&with_http).expect("small");
    exporter.finish();
    let mut own = Batch::new(2);
    stream().decode(exporter.bytes(), 0, NOW, &mut own).expect("messages");
    assert_eq!(own.records().iter().map(|record| record.tail_hash).collect::<Vec<_>>(), [foreign.tail_hash; 2]);
    assert_eq!(own.http(&own.records()[1], exporter.bytes()), b"{\"0\":{}}");
}

#[test]
fn numbers_of_an_impossible_width_are_passed_over() {
    let FlowRecord { head, .. } = read(&[((0, 2, 9), &[1; 9]), ((0, 1, VARIABLE), &[1]), ((0, 7, 4), &[0, 1, 0, 0])]);
    assert_eq!((head.deltas(), head.src_port), ([0; 4], 0));
}

#[test]
fn what_is_no_flow_is_counted() {
    let mut session = stream();
    let sample = set(2, &template(300, &[(0, 8, 4), (0, 12, 4), (0, 315, VARIABLE)]));
    let keyless = set(2, &template(301, &[(0, 56, 6), (0, 80, 6), (0, 2, 8)]));
    let sets = [sample, keyless, set(300, &[1, 2, 3, 4, 5, 6, 7, 8, 1, 9]), set(301, &[1; 40])];
    assert_eq!(records(&mut session, &message(0, &sets)), []);
    assert_eq!((session.counters().sampled, session.counters().keyless), (1, 2));
    records(&mut session, &message(3, &[]));
    assert_eq!(session.counters().lost, 0);
}
