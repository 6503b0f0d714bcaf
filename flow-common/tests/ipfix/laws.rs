//! What holds for any record and any bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow_common::ipfix::collector::Batch;
use flow_common::ipfix::exporter::{JoinedParts, STREAM_LIMIT, Session, Settings};
use flow_common::record::{
    AggregatedFlow, Content, Cut, Extended, Family, FlowRecord, Head, Labels, Layout, PerNode, Tail, TcpState, Value,
};
use proptest::prelude::*;

use super::build::{NOW, datagrams, records, stream};

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn addr(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).into()).boxed(),
        Family::V6 => any::<[u8; 16]>().prop_map(|octets| Ipv6Addr::from(octets).into()).boxed(),
    }
}

/// A fixed group of any bytes.
fn fixed<G: std::fmt::Debug + 'static>(
    family: Family,
    len: usize,
    decode: fn(Family, &[u8]) -> Option<G>,
) -> BoxedStrategy<G> {
    prop::collection::vec(any::<u8>(), len).prop_map(move |bytes| decode(family, &bytes).expect("long enough")).boxed()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z/:é.-]{0,20}", 1 => "[ -~]{250,300}"]
}

fn tail(family: Family) -> impl Strategy<Value = Tail> {
    let texts = prop::collection::vec(text(), 17);
    (texts, any::<[u8; 5]>(), any::<u16>(), "[A-Z_-]{0,23}", addr(family)).prop_map(
        |(texts, codes, port, state, addr)| {
            let mut texts = texts.into_iter();
            let mut text = || texts.next().expect("seventeen");
            Tail {
                src_pod: text(),
                src_namespace: text(),
                src_node: text(),
                dst_pod: text(),
                dst_namespace: text(),
                dst_node: text(),
                service_port: port,
                service: text(),
                ingress_policy: text(),
                ingress_policy_namespace: text(),
                ingress_policy_type: codes[0].into(),
                ingress_rule: text(),
                ingress_action: codes[1].into(),
                egress_policy: text(),
                egress_policy_namespace: text(),
                egress_policy_type: codes[2].into(),
                egress_rule: text(),
                egress_action: codes[3].into(),
                tcp_state: TcpState::from(state.as_str()),
                flow_type: codes[4].into(),
                egress_name: text(),
                egress_ip: text(),
                app_protocol: text(),
                http: text(),
                service_addr: addr,
            }
        },
    )
}

fn record() -> impl Strategy<Value = FlowRecord> {
    family().prop_flat_map(|family| {
        let head = fixed(family, Head::len(family), Head::decode);
        let extended = fixed(family, Extended::len(family), Extended::decode);
        (head, tail(family), extended).prop_map(|(head, tail, extended)| FlowRecord { head, tail, extended })
    })
}

fn joined() -> impl Strategy<Value = AggregatedFlow> {
    let per_node = fixed(Family::V4, PerNode::len(Family::V4), PerNode::decode);
    (record(), per_node, text(), text()).prop_map(|(record, per_node, src_labels, dst_labels)| AggregatedFlow {
        head: record.head,
        tail: record.tail,
        per_node,
        labels: Labels { src_labels, dst_labels },
        extended: record.extended,
    })
}

fn session(content: Content, extended: bool, message_limit: usize) -> Session {
    let settings = Settings { domain: 1, content, extended, accounting: true, message_limit, template_resend: None };
    let mut session = Session::new(settings);
    session.begin(NOW);
    session
}

/// What a record is after a way that leaves the extended elements out, or not.
fn after(record: &FlowRecord, extended: bool) -> FlowRecord {
    let absent = Extended::absent(record.head.family());
    FlowRecord { extended: if extended { record.extended } else { absent }, ..record.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_record_comes_out_of_its_bytes(record in record(), extended: bool) {
        let mut bytes = Vec::new();
        record.encode(extended, &mut bytes, &mut Cut::default());
        let read = FlowRecord::decode(record.head.family(), extended, &bytes);
        prop_assert_eq!(read, Some((after(&record, extended), &[][..])));
    }

    #[test]
    fn a_joined_record_comes_out_of_its_bytes(flow in joined()) {
        let mut bytes = Vec::new();
        flow.encode(true, &mut bytes, &mut Cut::default());
        let read = AggregatedFlow::decode(flow.head.family(), true, &bytes);
        prop_assert_eq!(read, Some((flow, &[][..])));
    }

    #[test]
    fn records_come_out_of_a_session(sent in prop::collection::vec(record(), 1..12), extended: bool, limit in 12_000_usize..STREAM_LIMIT) {
        let mut exporter = session(Content::Agent, extended, limit);
        for record in &sent {
            prop_assert_eq!(exporter.push_record(record), Ok(()));
        }
        exporter.finish();
        let mut collector = stream();
        let received = records(&mut collector, exporter.bytes());
        // A message holds one family's records: their order holds within the family.
        for family in Family::ALL {
            let of_family = |records: &[FlowRecord]| -> Vec<FlowRecord> {
                records.iter().filter(|record| record.head.family() == family).cloned().collect()
            };
            let expected: Vec<FlowRecord> = sent.iter().map(|record| after(record, extended)).collect();
            prop_assert_eq!(of_family(&received), of_family(&expected));
        }
        prop_assert_eq!(collector.counters().foreign, 0);
        prop_assert_eq!(collector.counters().lost, 0);
    }

    #[test]
    fn a_joined_record_in_parts_is_the_same_bytes(flow in joined(), extended: bool) {
        let family = flow.head.family();
        let tail = flow.tail.to_encoded(family, &mut Cut::default());
        let mut exporter = session(Content::Joined, extended, STREAM_LIMIT);
        exporter.clear();
        let parts = JoinedParts {
            head: &flow.head,
            tails: [tail.bytes(), &[]],
            http: "",
            per_node: &flow.per_node,
            labels: [&flow.labels.src_labels, &flow.labels.dst_labels],
            extended: &flow.extended,
        };
        prop_assert_eq!(exporter.push_joined(&parts), Ok(()));
        exporter.finish();
        let mut expected = Vec::new();
        flow.encode(extended, &mut expected, &mut Cut::default());
        prop_assert_eq!(&exporter.bytes()[20..], &expected[..]);
        prop_assert!(expected.len() >= flow.layout(extended).least_len());
    }

    /// By a template of our own elements in another order, records take the foreign way and say the same.
    #[test]
    fn foreign_ways_say_the_same(record in record(), extended: bool) {
        let family = record.head.family();
        let mut fields: Vec<_> = Layout::agent(family, extended).fields().collect();
        fields.reverse();
        let mut values = Vec::new();
        record.visit(|row, value| values.push((row, value)));
        let mut body = Vec::new();
        for field in &fields {
            let (_, value) = values.iter().find(|(row, _)| *row == *field).expect("every field has a value");
            match value {
                Value::Text(text) => {
                    body.push(255);
                    body.extend(u16::try_from(text.len()).expect("short").to_be_bytes());
                    body.extend(text.as_bytes());
                }
                Value::Addr(IpAddr::V4(addr)) => body.extend(addr.octets()),
                Value::Addr(IpAddr::V6(addr)) => body.extend(addr.octets()),
                Value::Number(number) => body.extend(&number.to_be_bytes()[8 - usize::from(field.width(family))..]),
            }
        }
        let elements: Vec<_> =
            fields.iter().map(|field| (field.enterprise, field.id(family), field.width(family))).collect();
        use super::build::{message, set, template};
        let bytes = message(0, &[set(2, &template(300, &elements)), set(300, &body)]);
        let mut collector = stream();
        let received = records(&mut collector, &bytes);
        let keyless = record.head.src_addr.is_unspecified() && record.head.dst_addr.is_unspecified();
        if !keyless {
            let [received] = &received[..] else { panic!("one record") };
            prop_assert_eq!(received.head.totals(), record.head.totals());
            prop_assert_eq!(received.head.src_addr, record.head.src_addr);
            prop_assert_eq!(received.head.src_port, record.head.src_port);
            prop_assert_eq!(received.head.end_reason, record.head.end_reason);
            prop_assert_eq!(&received.tail, &record.tail);
            if extended {
                prop_assert_eq!(received.extended.flow_id, record.extended.flow_id);
                prop_assert_eq!(received.extended.tcp_flags, record.extended.tcp_flags);
            }
        }
        prop_assert_eq!(collector.counters().foreign + collector.counters().keyless, 1);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut batch = Batch::new(128);
        let _ = stream().decode(&bytes, 0, NOW, &mut batch);
        let _ = datagrams().decode_datagram(&bytes, 0..bytes.len(), NOW, &mut batch);
        for record in batch.records() {
            let _ = (batch.tail(record, &bytes), batch.http(record, &bytes));
        }
    }

    /// Whole messages with bytes changed here and there.
    #[test]
    fn damaged_messages_are_read_or_refused(
        sent in prop::collection::vec(record(), 1..4),
        extended: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut exporter = session(Content::Agent, extended, STREAM_LIMIT);
        for record in &sent {
            prop_assert_eq!(exporter.push_record(record), Ok(()));
        }
        exporter.finish();
        let mut bytes = exporter.bytes().to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let mut batch = Batch::new(128);
        let mut collector = stream();
        let result = collector.decode(&bytes, 0, NOW, &mut batch);
        prop_assert_eq!(collector.counters().malformed, u64::from(result.is_err()));
        prop_assert_eq!(batch.records().len() as u64, collector.counters().records);
        for record in batch.records() {
            prop_assert!(Tail::decode(record.head.family(), batch.tail(record, &bytes)).is_some());
        }
    }
}
