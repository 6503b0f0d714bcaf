//! A session's sending side: packing, limits, sequence numbers, templates again.

use flow_common::ipfix::Accounting;
use flow_common::ipfix::exporter::{ProxiedParts, Refused, STREAM_LIMIT, Session, Settings};
use flow_common::record::{
    Content, Cut, Extended, Family, FlowRecord, Head, InterfaceCount, Labels, Metering, NodeAddr, NotSent, Origin,
    ProxiedFlow, Tail,
};

use super::build::{NOW, datagrams, owned, records, stream};
use flow_common::ipfix::collector::Batch;

fn settings() -> Settings {
    Settings {
        domain: 1,
        content: Content::Agent,
        extended: true,
        accounting: false,
        message_limit: STREAM_LIMIT,
        template_resend: None,
    }
}

fn session(settings: Settings) -> Session {
    let mut session = Session::new(settings);
    session.begin(NOW);
    session
}

fn record(number: u16, v6: bool) -> FlowRecord {
    let addr =
        |last: u8| if v6 { [0x20, 1, 0xd, 0xb8, 0, 0, 0, last].map(u16::from).into() } else { [10, 0, 0, last].into() };
    let mut record = FlowRecord { head: Head { src_port: number, ..Head::default() }, ..FlowRecord::default() };
    (record.head.src_addr, record.head.dst_addr) = (addr(1), addr(2));
    record.extended = Extended::absent(record.head.family());
    record.tail.service_addr = record.head.family().unspecified();
    record
}

fn sequence(message: &[u8]) -> u32 {
    u32::from_be_bytes(message[8..12].try_into().expect("four bytes"))
}

#[test]
fn records_share_messages_up_to_the_limit() {
    let mut session = session(Settings { message_limit: 500, ..settings() });
    let sent: Vec<FlowRecord> = (0..10).map(|number| record(number, false)).collect();
    for record in &sent {
        session.push_record(record).expect("small");
    }
    session.finish();
    let messages: Vec<&[u8]> = session.messages().skip(2).collect();
    // 160 bytes a record, three to a message.
    assert_eq!(messages.iter().map(|message| message.len()).collect::<Vec<_>>(), [500, 500, 500, 180]);
    assert_eq!(messages.iter().map(|message| sequence(message)).collect::<Vec<_>>(), [0, 3, 6, 9]);
    assert_eq!(records(&mut stream(), session.bytes()), sent);
    assert_eq!(session.messages().collect::<Vec<_>>().concat(), session.bytes());
    let counters = session.counters();
    assert_eq!((counters.records, counters.messages), (10, 6));
    assert_eq!(counters.octets, session.bytes().len() as u64);
}

/// Some collectors, go-ipfix's among them, read one set of a message alone.
#[test]
fn a_message_has_one_set() {
    for limit in [300, 420, 600, STREAM_LIMIT] {
        let mut session = session(Settings { message_limit: limit, accounting: true, ..settings() });
        let sent: Vec<FlowRecord> = (0..9).map(|number| record(number, number % 3 == 1)).collect();
        for record in &sent {
            session.push_record(record).expect("small");
            session.push_accounting(&Accounting::Metering(Metering::default())).expect("small");
            session.push_accounting(&Accounting::NotSent(NotSent::default())).expect("small");
        }
        session.finish();
        for message in session.messages() {
            let set = usize::from(u16::from_be_bytes([message[18], message[19]]));
            assert_eq!(message.len(), 16 + set);
        }
        assert!(session.messages().skip(7).all(|message| message.len() <= limit));
        let mut collector = stream();
        let mut received = records(&mut collector, session.bytes());
        received.sort_by_key(|record| record.head.src_port);
        assert_eq!(received, sent, "limit {limit}");
        assert_eq!((collector.counters().accounting, collector.counters().lost), (18, 0));
    }
}

#[test]
fn a_record_too_long_alone_is_refused_and_nothing_else() {
    let mut session = session(Settings { message_limit: 512, ..settings() });
    let mut long = record(2, true);
    long.tail.src_pod = "p".repeat(600);
    session.push_record(&record(1, false)).expect("small");
    let refused = session.push_record(&long);
    assert!(matches!(refused, Err(Refused::TooLong { limit: 492, .. })), "{refused:?}");
    session.push_record(&record(3, false)).expect("small");
    assert!(session.push_record(&long).is_err());
    session.finish();
    assert!(session.push_record(&long).is_err(), "also as the first of a message");
    session.finish();
    assert_eq!(records(&mut stream(), session.bytes()), [record(1, false), record(3, false)]);
    assert_eq!((session.counters().too_long, session.counters().records), (3, 2));
}

#[test]
fn a_tail_of_the_other_family_is_refused() {
    let mut session = session(settings());
    let tail = Tail::default().to_encoded(Family::V6, &mut Cut::default());
    let record = record(1, false);
    assert_eq!(session.push(&record.head, &tail, &record.extended), Err(Refused::Family));
}

#[test]
fn long_strings_are_cut_and_counted() {
    let mut session = session(settings());
    let mut long = record(1, false);
    long.tail.src_pod = "p".repeat(2000);
    long.tail.http = format!("{{\"0\":\"{}\",\"1\":\"{}\"}}", "a".repeat(10_000), "b".repeat(10_000));
    session.push_record(&long).expect("fits once it is cut");
    session.finish();
    let read = records(&mut stream(), session.bytes());
    assert_eq!(read[0].tail.src_pod, "p".repeat(1024));
    assert_eq!(read[0].tail.http, format!("{{\"0\":\"{}\"}}", "a".repeat(10_000)));
    assert_eq!(session.counters().cut, Cut { texts: 1, objects: 1 });
}

#[test]
fn templates_come_again_by_time_alone() {
    let mut session = session(Settings { template_resend: Some(600), ..settings() });
    let templates = session.bytes().len();
    session.clear();
    session.push_record(&record(1, false)).expect("small");
    session.begin(NOW + 599);
    session.push_record(&record(2, false)).expect("small");
    session.finish();
    assert_eq!(session.messages().map(<[u8]>::len).collect::<Vec<_>>(), [180, 180], "a message for each time");
    session.clear();
    session.begin(NOW + 600);
    assert_eq!(session.bytes().len(), templates);
    assert_eq!(sequence(session.bytes()), 2, "templates do not count");
    session.clear();
    session.begin(NOW + 601);
    assert!(session.is_empty());
}

#[test]
fn a_session_goes_on_where_it_was_when_its_buffer_is_cleared() {
    let mut session = session(settings());
    let mut collector = stream();
    let mut received = records(&mut collector, session.bytes());
    session.clear();
    for number in 0..20 {
        session.push_record(&record(number, number % 2 == 0)).expect("small");
        if number % 3 == 0 {
            session.finish();
        }
        if number % 4 == 0 {
            received.extend(records(&mut collector, session.bytes()));
            session.clear();
        }
    }
    session.finish();
    received.extend(records(&mut collector, session.bytes()));
    received.sort_by_key(|record| record.head.src_port);
    assert_eq!(received.iter().map(|record| record.head.src_port).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert_eq!(collector.counters().lost, 0);
}

#[test]
fn accounting_comes_out_as_it_went_in() {
    let accounting = [
        Accounting::Metering(Metering { metering_process: 1, messages: 2, records: 3, octets: 4 }),
        Accounting::NotSent(NotSent { flows: 5, packets: 6, octets: 7, ..NotSent::default() }),
        Accounting::Interface(InterfaceCount {
            interface: 8,
            reason: "seen".into(),
            interface_name: "eth0".into(),
            packets: 9,
            octets: 10,
        }),
        Accounting::Addr(NodeAddr {
            interface: 11,
            addr: [192, 0, 2, 1].into(),
            node: "node-a".into(),
            interface_name: "eth0".into(),
        }),
        Accounting::Addr(NodeAddr {
            interface: 11,
            addr: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
            node: "node-a".into(),
            interface_name: "eth0".into(),
        }),
    ];
    let mut session = session(Settings { accounting: true, message_limit: 120, ..settings() });
    for record in &accounting {
        session.push_accounting(record).expect("small");
    }
    session.finish();
    let mut batch = Batch::new(1);
    let mut collector = stream();
    assert_eq!(collector.decode(session.bytes(), 0, NOW, &mut batch), Ok(session.bytes().len()));
    assert_eq!(batch.accounting(), accounting.map(|record| (1, record)));
    assert_eq!((collector.counters().accounting, collector.counters().lost), (5, 0));
    assert_eq!(session.counters().options, 5);
}

#[test]
fn a_record_is_handed_on_with_whom_it_came_from() {
    let mut session = session(Settings { content: Content::Proxied, ..settings() });
    session.clear();
    let sent = ProxiedFlow {
        head: Head { start_seconds: NOW - 1, end_seconds: NOW, ..record(1, true).head },
        tail: Tail { src_pod: "client".into(), http: "{}".into(), ..record(1, true).tail },
        origin: Origin { observation_domain: 5, exporter_v4: [192, 0, 2, 1].into(), direction: 1, ..Origin::default() },
        labels: Labels { src_labels: r#"{"app":"web"}"#.into(), dst_labels: "{}".into() },
        extended: record(1, true).extended,
    };
    let tail = Tail { http: String::new(), ..sent.tail.clone() }.to_encoded(Family::V6, &mut Cut::default());
    let parts = ProxiedParts {
        head: &sent.head,
        tail: tail.bytes(),
        http: &sent.tail.http,
        origin: &sent.origin,
        labels: [&sent.labels.src_labels, &sent.labels.dst_labels],
        extended: &sent.extended,
    };
    assert_eq!(session.push_proxied(&parts), Ok(()));
    session.finish();
    let read = ProxiedFlow::decode(Family::V6, true, &session.bytes()[20..]);
    assert_eq!(read, Some((sent.clone(), &[][..])));
    assert_eq!(session.push_record(&record(1, true)), Err(Refused::NoTemplate));
    // To a collector of ours it is a flow like any other's.
    let templates = {
        let mut again = Session::new(Settings { content: Content::Proxied, ..settings() });
        again.begin(NOW);
        again.bytes().to_vec()
    };
    let mut collector = stream();
    let received = records(&mut collector, &[&templates, session.bytes()].concat());
    assert_eq!(received, [FlowRecord { head: sent.head, tail: sent.tail, extended: sent.extended }]);
    assert_eq!(collector.counters().foreign, 1);
}

#[test]
fn without_its_templates_accounting_is_refused() {
    let mut session = session(settings());
    let accounting = Accounting::Metering(Metering::default());
    assert_eq!(session.push_accounting(&accounting), Err(Refused::NoTemplate));
    assert_eq!(session.messages().count(), 2);
}

/// A template cannot be divided: a path too small for it gets it in a datagram that is too large.
#[test]
fn templates_go_out_on_the_smallest_path() {
    let mut session = session(Settings { content: Content::Joined, message_limit: 512, ..settings() });
    session.finish();
    let mut collector = datagrams();
    let mut batch = Batch::new(1);
    let mut at = 0;
    for message in session.messages() {
        let end = at + message.len();
        assert_eq!(collector.decode_datagram(session.bytes(), at..end, NOW, &mut batch), Ok(()));
        at = end;
    }
    assert_eq!(collector.counters().templates, 2);
}

#[test]
fn datagrams_are_read_one_by_one_out_of_one_buffer() {
    let mut session = session(Settings { message_limit: 512, ..settings() });
    let sent: Vec<FlowRecord> = (0..10).map(|number| record(number, number > 5)).collect();
    for record in &sent {
        session.push_record(record).expect("small");
    }
    session.finish();
    let (mut collector, mut batch, mut at) = (datagrams(), Batch::new(4), 0);
    for message in session.messages() {
        collector.decode_datagram(session.bytes(), at..at + message.len(), NOW, &mut batch).expect("whole");
        at += message.len();
    }
    let mut received: Vec<FlowRecord> =
        batch.records().iter().map(|record| owned(&batch, record, session.bytes())).collect();
    received.sort_by_key(|record| record.head.src_port);
    assert_eq!(received, sent);
}
