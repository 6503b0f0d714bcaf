//! The load as another exporter sends it: elements in another order, counters in four bytes, times in milliseconds
//! alone, nothing of policies and translation, and elements of an enterprise that nobody here knows.
//!
//! Made value by value and by hand, not by our codec: what is slow here is no part of what is measured.

use crate::{
    build::{VARIABLE, message_of, set, template},
    load::Load,
};
use flow_common::record::{EncodedTail, Family, Field, FlowRecord, Layout, Tail, Type, Value};
use std::net::IpAddr;

/// Parts of the names of fields that this exporter has not.
const MISSING: [&str; 9] =
    ["_seconds", "policy", "rule", "action", "egress_", "app_protocol", "http", "icmp_", "nat_src"];
/// An enterprise with elements that mean nothing here.
const STRANGE: u32 = 4_711;
const TEMPLATE: u16 = 300;
/// Bytes of records in a message.
const FULL: usize = 60_000;

/// An exporter's session.
pub(crate) struct Exporter {
    domain: u32,
    sequence: u32,
    tails: Vec<Tail>,
    elements: Vec<Element>,
    is_told: bool,
}

/// What stands at one place of a record.
enum Element {
    /// The value of the field of this number, in so many bytes.
    Known { field: usize, id: (u32, u16), width: u16 },
    /// Bytes that say nothing to us.
    Strange { id: u16, width: u16 },
}

impl Exporter {
    /// With the names that it knows of each Pod's flows.
    pub(crate) fn new(domain: u32, tails: &[EncodedTail]) -> Exporter {
        let tail = |tail: &EncodedTail| Tail::decode(Family::V4, tail.bytes()).expect("it was encoded");
        let tails = tails.iter().map(tail).collect();
        Exporter { domain, sequence: 0, tails, elements: elements(), is_told: false }
    }

    /// One side's messages with these flows of one round.
    pub(crate) fn messages(&mut self, load: &Load, flows: &[u32], (round, side): (u32, u32)) -> Vec<u8> {
        let (mut sent, mut body, mut records) = (Vec::new(), Vec::new(), 0);
        if !std::mem::replace(&mut self.is_told, true) {
            let elements: Vec<_> = self.elements.iter().map(Element::declared).collect();
            sent.extend(message_of(self.domain, self.sequence, &[set(2, &template(TEMPLATE, &elements))]));
        }
        for (at, flow) in flows.iter().enumerate() {
            let (head, tail, extended) = load.record(*flow, round, side);
            self.write(&FlowRecord { head, tail: self.tails[tail].clone(), extended }, &mut body);
            records += 1;
            if body.len() > FULL || at + 1 == flows.len() {
                sent.extend(message_of(self.domain, self.sequence, &[set(TEMPLATE, &body)]));
                self.sequence = self.sequence.wrapping_add(records);
                body.clear();
                records = 0;
            }
        }
        sent
    }

    fn write(&self, record: &FlowRecord, body: &mut Vec<u8>) {
        let mut values = Vec::with_capacity(64);
        record.visit(|_, value| values.push(value));
        for element in &self.elements {
            match element {
                Element::Known { field, width, .. } => match values[*field] {
                    Value::Number(number) => body.extend(&number.to_be_bytes()[8 - usize::from(*width)..]),
                    Value::Addr(IpAddr::V4(addr)) => body.extend(addr.octets()),
                    Value::Addr(IpAddr::V6(addr)) => body.extend(addr.octets()),
                    Value::Text(text) => put(text.as_bytes(), body),
                },
                Element::Strange { width: VARIABLE, .. } => put(b"strange", body),
                Element::Strange { width, .. } => body.extend(std::iter::repeat_n(7, usize::from(*width))),
            }
        }
    }
}

impl Element {
    fn known((field, row): (usize, &Field)) -> Element {
        let counter = row.data_type == Type::Unsigned64 && row.rust_name != "flow_id";
        let width = if counter { 4 } else { row.width(Family::V4) };
        Element::Known { field, id: (row.enterprise, row.id(Family::V4)), width }
    }

    /// As the template has it.
    fn declared(&self) -> (u32, u16, u16) {
        match self {
            Element::Known { id: (enterprise, id), width, .. } => (*enterprise, *id, *width),
            Element::Strange { id, width } => (STRANGE, *id, *width),
        }
    }
}

/// An agent's from the last to the first, but for what is missing, with strange ones amid them.
fn elements() -> Vec<Element> {
    let fields: Vec<_> = Layout::agent(Family::V4, true).fields().enumerate().collect();
    let is_there = |(_, row): &(usize, &Field)| !MISSING.iter().any(|part| row.rust_name.contains(part));
    let mut elements: Vec<Element> = fields.into_iter().rev().filter(is_there).map(Element::known).collect();
    elements.insert(elements.len() / 2, Element::Strange { id: 1, width: 4 });
    elements.insert(elements.len() / 3, Element::Strange { id: 2, width: VARIABLE });
    elements
}

/// A short string.
fn put(text: &[u8], body: &mut Vec<u8>) {
    body.push(u8::try_from(text.len()).expect("short"));
    body.extend(text);
}
