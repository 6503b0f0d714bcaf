//! A record's tail as bytes: from the first name to the Service's address, one piece that rarely changes. Agents keep
//! it encoded, the aggregator keeps each distinct one once and merges two of them. The owned form is [`Tail`].

use super::{Cut, Family, Tail, VARIABLE};
use crate::ipfix::wire::Reader;

/// Elements of a tail.
pub const FIELDS: usize = Tail::FIELDS.len();
/// Where the HTTP transactions stand among them: they differ by record.
pub const HTTP: usize = FIELDS - 2;

const WIDTHS: [[u16; FIELDS]; 2] = [widths(Family::V4), widths(Family::V6)];

/// A tail as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncodedTail {
    family: Family,
    bytes: Box<[u8]>,
}

/// Where a tail's parts end, counted from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Length byte of the HTTP transactions.
    pub http: usize,
    /// First byte behind the HTTP transactions.
    pub addr: usize,
    /// First byte behind the tail.
    pub end: usize,
}

impl EncodedTail {
    /// The bytes between head and extended elements.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The family of the records it fits in.
    #[inline]
    pub fn family(&self) -> Family {
        self.family
    }
}

impl Tail {
    /// The tail as it stands in records of this family; what is too long is cut and counted.
    pub fn to_encoded(&self, family: Family, cut: &mut Cut) -> EncodedTail {
        let mut bytes = Vec::with_capacity(256);
        self.encode(family, &mut bytes, cut);
        EncodedTail { family, bytes: bytes.into_boxed_slice() }
    }

    /// Reads a tail that fills `bytes`. Invalid UTF-8 is replaced.
    pub fn decode(family: Family, bytes: &[u8]) -> Option<Tail> {
        let mut from = Reader::new(bytes);
        let tail = Tail::read(family, &mut from)?;
        from.is_empty().then_some(tail)
    }
}

/// The elements of a tail, each with its length in front.
pub fn fields(family: Family, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = Reader::new(bytes);
    WIDTHS[family.index()].iter().map_while(move |width| match *width {
        VARIABLE => from.variable_with_length(),
        width => from.bytes(usize::from(width)),
    })
}

/// Finds the end of the tail that `bytes` begin with; `None` if it is cut short.
#[inline]
pub fn bounds(family: Family, bytes: &[u8]) -> Option<Bounds> {
    match family {
        Family::V4 => walk(&const { widths(Family::V4) }, bytes),
        Family::V6 => walk(&const { widths(Family::V6) }, bytes),
    }
}

#[inline(always)]
fn walk(widths: &[u16; FIELDS], bytes: &[u8]) -> Option<Bounds> {
    let (mut at, mut http) = (0, 0);
    for (field, width) in widths.iter().enumerate() {
        if field == HTTP {
            http = at;
        }
        at += match *width {
            VARIABLE => match *bytes.get(at)? {
                255 => 3 + usize::from(u16::from_be_bytes(*bytes.get(at + 1..)?.first_chunk()?)),
                length => 1 + usize::from(length),
            },
            width => usize::from(width),
        };
    }
    let addr = at - usize::from(widths[FIELDS - 1]);
    (at <= bytes.len()).then_some(Bounds { http, addr, end: at })
}

/// Whether an element, as [`fields`] gives it, is absent: an empty string, a zero, no address.
#[inline]
pub fn is_absent(field: &[u8]) -> bool {
    match field {
        [only] => *only == 0,
        // An empty string with the long form of a length.
        [255, 0, 0] => true,
        // A string's length byte is not 0 unless it stands alone.
        [first, ..] => *first == 0 && field.iter().all(|byte| *byte == 0),
        [] => true,
    }
}

/// Appends the tail that has each element of `first`, or of `second` where `first` has none.
pub fn merge(family: Family, first: &[u8], second: &[u8], out: &mut Vec<u8>) {
    for (first, second) in fields(family, first).zip(fields(family, second)) {
        out.extend_from_slice(if is_absent(first) { second } else { first });
    }
}

const fn widths(family: Family) -> [u16; FIELDS] {
    let mut widths = [0; FIELDS];
    let mut at = 0;
    while at < FIELDS {
        widths[at] = Tail::FIELDS[at].width(family);
        at += 1;
    }
    widths
}
