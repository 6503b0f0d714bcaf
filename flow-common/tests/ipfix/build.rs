//! Messages by hand, so that tests do not check the codec with itself.

use flow_common::ipfix::collector::{Batch, Limits, Record, Session, TailHash};
use flow_common::record::{Family, FlowRecord, Tail};

pub(crate) const NOW: u32 = 1_700_000_000;
pub(crate) const VARIABLE: u16 = 65535;
pub(crate) const ANTREA: u32 = 56506;
pub(crate) const REVERSE: u32 = 29305;

/// Bytes from hexadecimal digits; spaces are for the reader.
pub(crate) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> = digits.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits")).collect()
}

/// A message of domain 1 with these sets.
pub(crate) fn message(sequence: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    message_of(1, sequence, sets)
}

pub(crate) fn message_of(domain: u32, sequence: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let body = sets.concat();
    let length = u32::try_from(body.len() + 16).expect("short");
    let header = [10 << 16 | length, NOW, sequence, domain];
    [header.iter().flat_map(|word| word.to_be_bytes()).collect(), body].concat()
}

pub(crate) fn set(id: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).expect("short");
    [&id.to_be_bytes(), &length.to_be_bytes(), body].concat()
}

/// A template record of (enterprise, id, length).
pub(crate) fn template(id: u16, elements: &[(u32, u16, u16)]) -> Vec<u8> {
    let mut out = [id.to_be_bytes(), u16::try_from(elements.len()).expect("few").to_be_bytes()].concat();
    for (enterprise, id, length) in elements {
        let bit = if *enterprise == 0 { 0 } else { 0x8000 };
        out.extend((id | bit).to_be_bytes());
        out.extend(length.to_be_bytes());
        if *enterprise != 0 {
            out.extend(enterprise.to_be_bytes());
        }
    }
    out
}

pub(crate) fn options_template(id: u16, scope: u16, elements: &[(u32, u16, u16)]) -> Vec<u8> {
    let mut out = template(id, elements);
    out.splice(4..4, scope.to_be_bytes());
    out
}

pub(crate) fn stream() -> Session {
    Session::new(Limits::STREAM, TailHash::new(7))
}

pub(crate) fn datagrams() -> Session {
    Session::new(Limits::DATAGRAMS, TailHash::new(7))
}

/// What a session makes of a stream's bytes that hold whole messages.
pub(crate) fn records(session: &mut Session, bytes: &[u8]) -> Vec<FlowRecord> {
    let mut batch = Batch::new(100_000);
    assert_eq!(session.decode(bytes, 0, NOW, &mut batch), Ok(bytes.len()));
    batch.records().iter().map(|record| owned(&batch, record, bytes)).collect()
}

/// A decoded record with its names.
pub(crate) fn owned(batch: &Batch, record: &Record, buffer: &[u8]) -> FlowRecord {
    let family: Family = record.head.family();
    let mut tail = Tail::decode(family, batch.tail(record, buffer)).expect("one whole tail");
    assert_eq!(tail.http, "", "HTTP transactions are not part of a decoded tail");
    tail.http = String::from_utf8_lossy(batch.http(record, buffer)).into_owned();
    FlowRecord { head: record.head, tail, extended: record.extended }
}
