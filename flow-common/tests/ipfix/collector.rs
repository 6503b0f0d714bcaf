//! A session's receiving side: framing, templates, and everything that is not as it should be.

use flow_common::ipfix::collector::{Batch, Counters, Limits, Session, TailHash};
use flow_common::ipfix::message::MessageError;

use super::build::{NOW, datagrams, message, message_of, options_template, records, set, stream, template};

/// Source and destination address, packets.
const FLOW: [(u32, u16, u16); 3] = [(0, 8, 4), (0, 12, 4), (0, 2, 4)];

fn flow_template() -> Vec<u8> {
    set(2, &template(256, &FLOW))
}

fn flow(packets: u8) -> Vec<u8> {
    vec![10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, packets]
}

fn packets(session: &mut Session, bytes: &[u8]) -> Vec<u64> {
    records(session, bytes).iter().map(|record| record.head.packet_delta).collect()
}

fn error(bytes: &[u8]) -> MessageError {
    let mut session = stream();
    packets(&mut session, &message(0, &[flow_template()]));
    let error = session.decode(bytes, 0, NOW, &mut Batch::new(8)).expect_err("malformed");
    assert_eq!(session.counters().malformed, 1);
    error
}

#[test]
fn a_stream_is_cut_into_messages_wherever_it_is_read() {
    let bytes =
        [message(0, &[flow_template()]), message(0, &[set(256, &flow(1))]), message(1, &[set(256, &flow(2))])].concat();
    for cut in 0..=bytes.len() {
        let (mut session, mut batch) = (stream(), Batch::new(8));
        let at = session.decode(&bytes[..cut], 0, NOW, &mut batch).expect("a stream's begin");
        assert!(at <= cut);
        assert_eq!(session.decode(&bytes, at, NOW, &mut batch), Ok(bytes.len()));
        assert_eq!(batch.records().len(), 2);
    }
}

#[test]
fn a_full_batch_ends_a_call_between_messages() {
    let mut bytes = message(0, &[flow_template()]);
    for number in 0..5 {
        bytes.extend(message(2 * number, &[set(256, &[flow(1), flow(2)].concat())]));
    }
    let (mut session, mut batch, mut at, mut sizes) = (stream(), Batch::new(3), 0, Vec::new());
    while at < bytes.len() {
        at = session.decode(&bytes, at, NOW, &mut batch).expect("whole messages");
        sizes.push(batch.records().len());
        batch.clear();
    }
    assert_eq!(sizes, [4, 4, 2]);
}

#[test]
fn several_sets_and_padding_are_taken() {
    let padded = [flow(1), vec![0; 3]].concat();
    let sets = [
        set(2, &[template(256, &FLOW), vec![0; 2]].concat()),
        set(256, &padded),
        set(256, &[flow(2), flow(3)].concat()),
    ];
    assert_eq!(packets(&mut stream(), &message(0, &sets)), [1, 2, 3]);
}

#[test]
fn each_fault_of_a_message_is_named() {
    assert_eq!(error(&[0, 9, 0, 0]), MessageError::Version(9));
    assert_eq!(error(&[0, 10, 0, 15]), MessageError::Length(15));
    assert_eq!(error(&message(0, &[vec![1, 0, 0]])), MessageError::SetHeader(3));
    assert_eq!(error(&message(0, &[vec![1, 0, 0, 3]])), MessageError::SetLength { id: 256, length: 3, left: 4 });
    assert_eq!(error(&message(0, &[vec![1, 0, 0, 9, 0]])), MessageError::SetLength { id: 256, length: 9, left: 5 });
    let cut = template(300, &FLOW);
    assert_eq!(error(&message(0, &[set(2, &cut[..cut.len() - 1])])), MessageError::TemplateCut(300));
    assert_eq!(error(&message(0, &[set(3, &[1, 44, 0, 1])])), MessageError::TemplateCut(300));
    assert_eq!(error(&message(0, &[set(2, &template(255, &FLOW))])), MessageError::TemplateId(255));
    assert_eq!(error(&message(0, &[set(2, &[0, 9, 0, 0])])), MessageError::TemplateId(9));
    let scope = |scope| error(&message(0, &[set(3, &options_template(300, scope, &FLOW))]));
    assert_eq!(scope(0), MessageError::Scope { id: 300, scope: 0, elements: 3 });
    assert_eq!(scope(4), MessageError::Scope { id: 300, scope: 4, elements: 3 });
    let name = set(2, &template(300, &[(0, 8, 4), (0, 12, 4), (56506, 101, 65535)]));
    let record = set(300, &[10, 0, 0, 1, 10, 0, 0, 2, 5, b'p']);
    assert_eq!(error(&message(0, &[name, record])), MessageError::RecordCut(300));
}

#[test]
fn of_a_malformed_message_nothing_is_taken() {
    let (mut session, mut batch) = (stream(), Batch::new(8));
    let good = message(0, &[flow_template(), set(256, &flow(1))]);
    let bad = message(1, &[set(256, &flow(2)), vec![1, 0, 0, 3]]);
    let bytes = [good.clone(), bad].concat();
    assert!(session.decode(&bytes, 0, NOW, &mut batch).is_err());
    assert_eq!(batch.records().len(), 1);
    let expected = Counters {
        messages: 1,
        octets: good.len() as u64,
        malformed: 1,
        records: 1,
        foreign: 1,
        templates: 1,
        ..Counters::default()
    };
    assert_eq!(*session.counters(), expected);
}

#[test]
fn a_datagram_is_one_message() {
    let (mut session, mut batch) = (datagrams(), Batch::new(8));
    let whole = message(0, &[flow_template(), set(256, &flow(1))]);
    let mut decode = |bytes: &[u8]| session.decode_datagram(bytes, 0..bytes.len(), NOW, &mut batch);
    assert_eq!(decode(&whole[..9]), Err(MessageError::DatagramCut { length: 0, found: 9 }));
    assert_eq!(decode(&whole[..30]), Err(MessageError::DatagramCut { length: 52, found: 30 }));
    assert_eq!(decode(&[&whole[..], &[0]].concat()), Err(MessageError::DatagramRest(1)));
    assert_eq!(decode(&[0, 5, 0, 0]), Err(MessageError::Version(5)));
    assert_eq!(decode(&whole), Ok(()));
    assert_eq!((session.counters().malformed, session.counters().records), (4, 1));
}

#[test]
fn a_missing_template_spoils_nothing_else() {
    let mut session = stream();
    let sets = [set(999, &[1; 40]), flow_template(), set(256, &flow(1)), set(4, &[1; 3]), set(256, &flow(2))];
    assert_eq!(packets(&mut session, &message(0, &sets)), [1, 2]);
    let counters = session.counters();
    assert_eq!((counters.missing_templates, counters.unknown_sets), (1, 1));
    // How many records that were nobody knows: the next number is not a loss.
    packets(&mut session, &message(7, &[set(256, &flow(3))]));
    assert_eq!(session.counters().lost, 0);
}

#[test]
fn a_malformed_datagram_leaves_what_follows_it_counted() {
    let (mut session, mut batch) = (datagrams(), Batch::new(8));
    let mut decode = |bytes: &[u8], second| session.decode_datagram(bytes, 0..bytes.len(), NOW + second, &mut batch);
    assert_eq!(decode(&message(0, &[flow_template(), set(256, &flow(1))]), 0), Ok(()));
    // Its template is missing, and then it ends in the middle of a set.
    assert!(decode(&message(1, &[set(999, &[1; 40]), vec![1, 0, 0]]), 1).is_err());
    assert_eq!(decode(&message(1, &[set(256, &flow(2))]), 2), Ok(()));
    assert_eq!(decode(&message(12, &[set(256, &flow(3))]), 3), Ok(()));
    assert_eq!(session.finish().1, [(1, 10)]);
}

#[test]
fn a_template_sent_again_may_be_another() {
    let mut session = stream();
    assert_eq!(packets(&mut session, &message(0, &[flow_template(), set(256, &flow(1))])), [1]);
    assert_eq!(packets(&mut session, &message(1, &[flow_template(), set(256, &flow(2))])), [2]);
    let shorter = set(2, &template(256, &[(0, 8, 4), (0, 12, 4), (0, 2, 1)]));
    let record = set(256, &[10, 0, 0, 1, 10, 0, 0, 2, 9]);
    assert_eq!(packets(&mut session, &message(2, &[shorter, record])), [9]);
}

#[test]
fn templates_are_withdrawn() {
    let mut session = stream();
    let name = set(2, &template(257, &FLOW));
    let option = set(3, &options_template(258, 1, &FLOW));
    packets(&mut session, &message(0, &[flow_template(), name, option]));
    let data = |id| message(0, &[set(id, &flow(1))]);
    packets(&mut session, &message(0, &[set(2, &[1, 0, 0, 0])]));
    assert_eq!(packets(&mut session, &data(256)), [0; 0]);
    assert_eq!(packets(&mut session, &data(257)), [1]);
    packets(&mut session, &message(0, &[set(2, &[0, 2, 0, 0])]));
    assert_eq!(packets(&mut session, &data(257)), [0; 0]);
    packets(&mut session, &data(258));
    assert_eq!(session.counters().options, 1, "options templates are withdrawn apart");
    packets(&mut session, &message(0, &[set(3, &[0, 3, 0, 0])]));
    packets(&mut session, &data(258));
    let counters = session.counters();
    assert_eq!((counters.options, counters.withdrawals, counters.missing_templates), (1, 3, 3));
    packets(&mut session, &message(0, &[set(2, &[9, 9, 0, 0])]));
    assert_eq!(session.counters().withdrawals_ignored, 1);
}

#[test]
fn nobody_withdraws_by_datagram() {
    let (mut session, mut batch) = (datagrams(), Batch::new(8));
    for sets in [vec![flow_template()], vec![set(2, &[1, 0, 0, 0])], vec![set(256, &flow(1))]] {
        let bytes = message(0, &sets);
        session.decode_datagram(&bytes, 0..bytes.len(), NOW, &mut batch).expect("a message");
    }
    assert_eq!((session.counters().records, session.counters().withdrawals_ignored), (1, 1));
}

#[test]
fn templates_of_datagrams_expire() {
    let (mut session, mut batch) = (datagrams(), Batch::new(8));
    let mut decode = |sets: &[Vec<u8>], now| {
        let bytes = message(0, sets);
        session.decode_datagram(&bytes, 0..bytes.len(), now, &mut batch).expect("a message");
        session.counters().missing_templates
    };
    decode(&[flow_template()], NOW);
    assert_eq!(decode(&[set(256, &flow(1))], NOW + 1800), 0);
    assert_eq!(decode(&[set(256, &flow(1))], NOW + 1801), 1);
    decode(&[flow_template()], NOW + 1802);
    assert_eq!(decode(&[set(256, &flow(1))], NOW + 3602), 1);
}

#[test]
fn what_a_session_keeps_is_bounded() {
    let limits = Limits { domains: 2, templates: 3, elements: 8, template_life: None };
    let mut session = Session::new(limits, TailHash::new(7));
    let one = |id| set(2, &template(id, &FLOW));
    packets(&mut session, &message_of(1, 0, &[one(256), one(257)]));
    packets(&mut session, &message_of(2, 0, &[one(256)]));
    assert_eq!(session.counters().templates_refused, 1, "nine elements");
    packets(&mut session, &message_of(2, 0, &[set(2, &template(256, &FLOW[..2]))]));
    packets(&mut session, &message_of(2, 0, &[set(2, &template(257, &[]))]));
    assert_eq!(session.counters().templates_refused, 1);
    packets(&mut session, &message_of(1, 0, &[set(2, &template(258, &FLOW[..1]))]));
    assert_eq!(session.counters().templates_refused, 2, "four templates");
    // What is withdrawn makes room.
    packets(&mut session, &message_of(1, 0, &[set(2, &[1, 1, 0, 0]), one(300)]));
    assert_eq!(session.counters().templates_refused, 2);
    assert_eq!(packets(&mut session, &message_of(1, 0, &[set(300, &flow(5))])), [5]);
    let third = message_of(3, 0, &[one(256)]);
    assert_eq!(session.decode(&third, 0, NOW, &mut Batch::new(1)), Err(MessageError::Domains(3)));
}

#[test]
fn a_template_of_nothing_is_refused() {
    let mut session = stream();
    packets(&mut session, &message(0, &[set(2, &template(256, &[(0, 8, 0), (0, 12, 0)])), set(256, &[0; 8])]));
    assert_eq!((session.counters().templates_refused, session.counters().missing_templates), (1, 1));
}

#[test]
fn domains_have_templates_and_numbers_of_their_own() {
    let mut session = stream();
    packets(&mut session, &message_of(1, 0, &[flow_template()]));
    assert_eq!(packets(&mut session, &message_of(2, 0, &[set(256, &flow(1))])), [0; 0]);
    packets(&mut session, &message_of(2, 0, &[flow_template()]));
    assert_eq!(packets(&mut session, &message_of(2, 50, &[set(256, &flow(1))])), [1]);
    assert_eq!(packets(&mut session, &message_of(1, 0, &[set(256, &flow(2))])), [2]);
    assert_eq!((session.counters().missing_templates, session.counters().lost), (1, 50));
}

#[test]
fn gaps_in_the_sequence_are_lost_records() {
    let mut session = stream();
    packets(&mut session, &message(u32::MAX - 1, &[flow_template()]));
    let mut at = |sequence, records: u8| {
        packets(&mut session, &message(sequence, &[set(256, &(0..records).flat_map(flow).collect::<Vec<u8>>())]));
        (session.counters().lost, session.counters().late, session.counters().restarts)
    };
    assert_eq!(at(u32::MAX - 1, 3), (0, 0, 0), "modulo 2^32");
    assert_eq!(at(1, 2), (0, 0, 0));
    assert_eq!(at(10, 1), (7, 0, 0));
    assert_eq!(at(11, 1), (7, 0, 0));
    assert_eq!(at(100_012, 1), (100_007, 0, 0));
    assert_eq!(at(0, 1), (100_007, 0, 1), "began anew");
    assert_eq!(at(1, 1), (100_007, 0, 1));
    assert_eq!(at(1_000_000_000, 1), (100_007, 0, 2), "so many are not lost at once");
}

/// Datagrams of these sequence numbers and records, one a second; gives what is lost, late and anew at last.
fn sequenced(messages: &[(u32, u32)]) -> (u64, u64, u64) {
    let mut session = datagrams();
    let mut batch = Batch::new(1);
    let mut lost = 0;
    let mut take = |session: &mut Session, bytes: &[u8], now| {
        session.decode_datagram(bytes, 0..bytes.len(), now, &mut batch).expect("a good message");
        lost += batch.lost().iter().map(|(_, lost)| u64::from(*lost)).sum::<u64>();
        batch.clear();
    };
    take(&mut session, &message(messages[0].0, &[flow_template()]), NOW);
    for (second, (sequence, records)) in (0..).zip(messages) {
        let set = set(256, &flow(1).repeat(*records as usize));
        take(
            &mut session,
            &message(*sequence, if *records == 0 { &[] } else { std::slice::from_ref(&set) }),
            NOW + second,
        );
    }
    let (counters, rest) = session.finish();
    lost += rest.iter().map(|(_, lost)| u64::from(*lost)).sum::<u64>();
    assert_eq!(counters.lost, lost, "what is told by and by is what is counted");
    (counters.lost, counters.late, counters.restarts)
}

#[test]
fn datagrams_in_disorder_are_not_lost() {
    assert_eq!(sequenced(&[(0, 2), (2, 3), (5, 1), (6, 4)]), (0, 0, 0));
    assert_eq!(sequenced(&[(0, 2), (5, 1), (2, 3), (6, 4)]), (0, 1, 0), "two changed places");
    assert_eq!(sequenced(&[(0, 2), (9, 1), (5, 4), (2, 3), (10, 1)]), (0, 2, 0), "a gap is filled piece by piece");
    assert_eq!(sequenced(&[(0, 2), (9, 1), (2, 3), (10, 1)]), (4, 1, 0), "or not all of it");
    let late = [(0, 2), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1), (2, 3), (11, 1)];
    assert_eq!(sequenced(&late), (3, 1, 0), "too late");
    let wrapped = [(u32::MAX - 1, 1), (3, 2), (u32::MAX, 4), (5, 1), (8, 1)];
    assert_eq!(sequenced(&wrapped), (2, 1, 0), "modulo 2^32");
}

#[test]
fn repeated_datagrams_change_nothing() {
    assert_eq!(sequenced(&[(0, 2), (2, 3), (2, 3), (5, 1), (5, 1), (6, 2)]), (0, 2, 0));
    assert_eq!(sequenced(&[(0, 2), (2, 3), (5, 1), (0, 2), (6, 2)]), (0, 1, 0), "an old one");
    assert_eq!(sequenced(&[(0, 2), (7, 1), (2, 3), (2, 3), (8, 1)]), (2, 2, 0), "one that had filled a gap");
    assert_eq!(sequenced(&[(0, 2), (2, 0), (2, 3), (2, 0), (5, 1), (2, 0), (6, 1)]), (0, 2, 0), "without data");
}

#[test]
fn an_exporter_that_begins_anew_loses_nothing() {
    let anew = [(0, 2), (2, 3), (5, 20), (0, 2), (2, 3), (5, 1), (6, 4)];
    assert_eq!(sequenced(&anew), (0, 1, 1), "at the second message that is behind");
    assert_eq!(sequenced(&[(100_000, 2), (0, 2), (2, 3), (10, 1)]), (5, 0, 1));
    assert_eq!(sequenced(&[(3_000_000_000, 2), (0, 2), (2, 3)]), (0, 0, 1), "not a gap of a billion");
}

/// go-ipfix does, and so do Antrea's agents.
#[test]
fn an_exporter_may_count_a_messages_own_records_in() {
    let mut session = stream();
    packets(&mut session, &message(0, &[flow_template()]));
    for (sequence, records) in [(2, 2), (3, 1), (10, 7), (14, 4)] {
        packets(&mut session, &message(sequence, &[set(256, &(0..records).flat_map(flow).collect::<Vec<u8>>())]));
    }
    assert_eq!((session.counters().lost, session.counters().late), (0, 0));
    packets(&mut session, &message(100, &[set(256, &flow(1))]));
    assert_eq!(session.counters().lost, 85, "as this exporter counts");
}

#[test]
fn options_data_of_others_is_passed_over_and_counts_in_the_sequence() {
    let mut session = stream();
    let option = set(3, &options_template(258, 1, &[(0, 149, 4), (0, 41, 8)]));
    packets(&mut session, &message(0, &[flow_template(), option, set(258, &[0; 25]), set(256, &flow(1))]));
    packets(&mut session, &message(3, &[set(256, &flow(1))]));
    assert_eq!((session.counters().options, session.counters().lost), (2, 0));
}
