//! What each fuzz target of flow-common does with its bytes. A test of flow-common runs the same over fuzz/corpus, so that no target
//! rots. (aggregator.rs and agent.rs: those of flow-aggregator and flow-agent.)

use flow_common::filter::{self, Filter, FlowView};
use flow_common::ipfix::collector::{Batch, Limits, Session, TailHash};
use flow_common::k8s::manifest::{self, Syntax};
use flow_common::k8s::{Index, Strings};
use flow_common::record::{Cut, EncodedTail, FlowRecord, Tail};
use flow_common::time::Timestamp;

/// A moment for code that takes one.
const NOW: u32 = 1_700_000_000;

/// Any bytes as a stream of IPFIX, and as a datagram.
pub fn collector(bytes: &[u8]) {
    let mut batch = Batch::new(64);
    let mut stream = Session::new(Limits::STREAM, TailHash::new(1));
    let mut at = 0;
    while let Ok(next) = stream.decode(bytes, at, NOW, &mut batch) {
        check(&batch, bytes);
        batch.clear();
        if next == at {
            break;
        }
        at = next;
    }
    batch.clear();
    let mut datagrams = Session::new(Limits::DATAGRAMS, TailHash::new(1));
    if datagrams.decode_datagram(bytes, 0..bytes.len(), NOW, &mut batch).is_err() {
        assert!(batch.records().is_empty(), "nothing of a malformed message");
    }
    check(&batch, bytes);
}

/// Bytes as a foreign template and records by it: the first says how many elements the template has, four bytes each.
pub fn foreign(bytes: &[u8]) {
    let Some((count, rest)) = bytes.split_first() else { return };
    let Some((elements, records)) = rest.split_at_checked(usize::from(*count) * 4) else { return };
    // Widths stay small, so that records are found; ids keep their enterprise bit out, but one in four is a reverse one.
    let mut template = vec![1, 0, 0, *count];
    for element in elements.chunks_exact(4) {
        let [id_high, id_low, width, kind] = [element[0] & 1, element[1], element[2] % 18, element[3]];
        let width = if width == 17 { [255, 255] } else { [0, width] };
        match kind % 4 {
            0 => template.extend([[id_high | 0x80, id_low], width, [0, 0], [0x72, 0x79]].concat()),
            1 => template.extend([[id_high | 0x80, id_low], width, [0, 0], [0xdc, 0xba]].concat()),
            _ => template.extend([[id_high, id_low], width].concat()),
        }
    }
    let Some(message) = message(&[(2, &template), (256, records)]) else { return };
    collector(&message);
}

/// Any text as a filter, whose canonical form must be the same filter, and with a cursor in each place of it.
pub fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(filter) = Filter::parse(text) {
        assert_eq!(Filter::parse(&filter.to_string()).as_ref(), Ok(&filter), "the canonical form is the same filter");
        filter.matches(&FlowView::from(&FlowRecord::default()));
    }
    for cursor in 0..text.len().min(64) {
        filter::complete(text, cursor);
    }
}

/// Any text as a manifest, whose objects come to an index and go again.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for syntax in [Syntax::Yaml, Syntax::Json] {
        let Ok(manifest) = manifest::parse(text, syntax, &mut Strings::default()) else { continue };
        let mut index = Index::new(1000);
        for (object, _) in &manifest.objects {
            index.apply(object.clone(), Timestamp::ZERO);
        }
        for (object, _) in &manifest.objects {
            index.delete(&object.reference(), Timestamp::ZERO);
        }
        assert!(index.statistics().objects.iter().all(|count| *count == 0), "what came is gone");
        assert_eq!(index.nodes().count(), 0, "what came is gone");
    }
}

/// A message of these sets, if it is short enough for one.
fn message(sets: &[(u16, &[u8])]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    for (id, set) in sets {
        body.extend(id.to_be_bytes());
        body.extend(u16::try_from(set.len() + 4).ok()?.to_be_bytes());
        body.extend(*set);
    }
    let length = u16::try_from(body.len() + 16).ok()?;
    let mut message = vec![0, 10];
    message.extend(length.to_be_bytes());
    message.extend([NOW, 0, 1].iter().flat_map(|word| word.to_be_bytes()));
    message.extend(body);
    Some(message)
}

/// What is decoded can be looked at and sent on.
fn check(batch: &Batch, bytes: &[u8]) {
    for record in batch.records() {
        let (family, tail) = (record.head.family(), batch.tail(record, bytes));
        assert!(Tail::decode(family, tail).is_some(), "one whole tail");
        let made = EncodedTail::from_wire(family, tail, &mut Cut::default()).expect("one whole tail");
        let again = EncodedTail::from_wire(family, made.bytes(), &mut Cut::default());
        assert_eq!(again.as_ref(), Some(&made), "made readable once and for all");
        let _ = batch.http(record, bytes);
    }
}
