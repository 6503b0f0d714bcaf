//! A record's tail as bytes: from the first name to the Service's address, one piece that rarely changes. Agents keep
//! it encoded, the aggregator keeps each distinct one once and merges two of them. The owned form is [`Tail`].

use super::{Cut, Family, Field, JSON_LIMIT, TEXT_LIMIT, Tail, Type, VARIABLE, value};
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
    /// A tail as it came from outside, once and for all made such that its strings are UTF-8 and not too long.
    /// `None` if the bytes are not one tail.
    pub fn from_wire(family: Family, bytes: &[u8], cut: &mut Cut) -> Option<EncodedTail> {
        let within = |(row, field): (&Field, &[u8])| match row.data_type {
            Type::String => field.len() <= TEXT_LIMIT && std::str::from_utf8(value::text_of(field)).is_ok(),
            Type::Json => field.len() <= JSON_LIMIT && std::str::from_utf8(value::text_of(field)).is_ok(),
            _ => true,
        };
        if bounds(family, bytes)?.end != bytes.len() {
            return None;
        }
        if Tail::FIELDS.iter().zip(fields(family, bytes)).all(within) {
            return Some(EncodedTail { family, bytes: bytes.into() });
        }
        Some(Tail::decode(family, bytes)?.to_encoded(family, cut))
    }

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
fn fields(family: Family, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
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

/// Appends the tail that has each element of the first, or of the second where the first has none; of the element
/// `turned` the second's goes before. Either may be an empty slice. HTTP transactions that are given take the place of both
/// tails'; too long ones are cut and counted.
pub fn merge(family: Family, tails: [&[u8]; 2], turned: Option<usize>, http: &str, out: &mut Vec<u8>, cut: &mut Cut) {
    if let ([only, []] | [[], only], "") = (tails, http)
        && !only.is_empty()
    {
        out.extend_from_slice(only);
        return;
    }
    match family {
        Family::V4 => Merge::new(tails).run(&const { widths(Family::V4) }, turned, http, out, cut),
        Family::V6 => Merge::new(tails).run(&const { widths(Family::V6) }, turned, http, out, cut),
    }
}

/// Two tails on their way to one. Elements that follow one another in the same tail are appended together.
struct Merge<'a> {
    tails: [&'a [u8]; 2],
    /// Where the next element begins in each.
    at: [usize; 2],
    /// From here to `at`, the elements of tail `from` wait to be appended.
    begin: usize,
    from: usize,
}

impl<'a> Merge<'a> {
    fn new(tails: [&'a [u8]; 2]) -> Self {
        Merge { tails, at: [0; 2], begin: 0, from: 0 }
    }

    #[inline(always)]
    fn run(mut self, widths: &[u16; FIELDS], turned: Option<usize>, http: &str, out: &mut Vec<u8>, cut: &mut Cut) {
        let [first, second] = self.tails;
        out.reserve(first.len() + second.len());
        for (field, width) in widths.iter().enumerate() {
            let (a, b) = (element(first, self.at[0], *width), element(second, self.at[1], *width));
            let own = field == HTTP && !http.is_empty();
            let from = match (a.present, b.present) {
                (true, true) => usize::from(turned == Some(field)),
                (true, false) => 0,
                (false, true) => 1,
                // Neither: whichever is at hand, of those that have a place for it.
                (false, false) if a.end == self.at[0] => 1,
                (false, false) if b.end == self.at[1] => 0,
                (false, false) => self.from,
            };
            let nowhere = if from == 0 { a.end == self.at[0] } else { b.end == self.at[1] };
            if own || nowhere {
                self.append(out);
                match own {
                    true => value::put_text(&cut.json(http), out),
                    false => out.resize(out.len() + absent_width(*width), 0),
                }
                self.at = [a.end, b.end];
                self.begin = self.at[self.from];
                continue;
            }
            if from != self.from {
                self.append(out);
                (self.from, self.begin) = (from, self.at[from]);
            }
            self.at = [a.end, b.end];
        }
        self.append(out);
    }

    #[inline]
    fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.tails[self.from].get(self.begin..self.at[self.from]).unwrap_or_default());
    }
}

/// An element in its tail: where it ends, which is where it begins if there is none, and whether it says anything.
struct Element {
    end: usize,
    present: bool,
}

#[inline(always)]
fn element(bytes: &[u8], at: usize, width: u16) -> Element {
    let bytes = bytes.get(at..).unwrap_or_default();
    let (length, present) = match (width, bytes) {
        (VARIABLE, []) => (0, false),
        (VARIABLE, [255, high, low, ..]) => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            (3 + length, length > 0)
        }
        (VARIABLE, [length, ..]) => (1 + usize::from(*length), *length > 0),
        (width, bytes) => {
            let value = bytes.get(..width.into()).unwrap_or_default();
            (value.len(), value.iter().any(|byte| *byte != 0))
        }
    };
    Element { end: at + length.min(bytes.len()), present }
}

/// Appends a tail without any element.
pub fn absent(family: Family, out: &mut Vec<u8>) {
    let length: usize = WIDTHS[family.index()].iter().map(|width| absent_width(*width)).sum();
    out.resize(out.len() + length, 0);
}

const fn absent_width(width: u16) -> usize {
    if width == VARIABLE { 1 } else { width as usize }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FlowType, TcpState};

    fn encoded(tail: &Tail) -> EncodedTail {
        tail.to_encoded(Family::V4, &mut Cut::default())
    }

    fn source() -> Tail {
        Tail {
            src_pod: "client".into(),
            service_port: 80,
            service_addr: [10, 96, 0, 10].into(),
            flow_type: FlowType::InterNode,
            tcp_state: TcpState::Established,
            ..Tail::default()
        }
    }

    #[test]
    fn a_tail_knows_its_end_whatever_follows() {
        let mut tail = source();
        tail.src_node = "n".repeat(300);
        tail.http = r#"{"0":{}}"#.into();
        let bytes = encoded(&tail).bytes().to_vec();
        let found = bounds(Family::V4, &[&bytes[..], b"more"].concat()).expect("whole");
        assert_eq!(found.end, bytes.len());
        assert_eq!(found.addr, bytes.len() - 4);
        assert_eq!(bytes[found.http..found.addr], *b"\x08{\"0\":{}}");
        assert_eq!(Tail::decode(Family::V4, &bytes), Some(tail));
        for length in 0..bytes.len() {
            assert_eq!(bounds(Family::V4, &bytes[..length]), None);
        }
    }

    #[test]
    fn a_merged_tail_takes_what_the_first_lacks_from_the_second() {
        let first = source();
        let second = Tail { src_pod: "other".into(), dst_pod: "server".into(), service_port: 81, ..Tail::default() };
        let merged = |tails: [&[u8]; 2], http| {
            let mut out = Vec::new();
            merge(Family::V4, tails, None, http, &mut out, &mut Cut::default());
            Tail::decode(Family::V4, &out).expect("a whole tail")
        };
        let (a, b) = (encoded(&first), encoded(&second));
        let both = Tail { dst_pod: "server".into(), ..first.clone() };
        assert_eq!(merged([a.bytes(), b.bytes()], ""), both);
        assert_eq!(merged([a.bytes(), b.bytes()], "{}"), Tail { http: "{}".into(), ..both });
        assert_eq!(merged([a.bytes(), &[]], ""), first);
        assert_eq!(merged([&[], a.bytes()], ""), first);
        assert_eq!(merged([&[], &[]], ""), Tail::default());
        let other = merged([b.bytes(), a.bytes()], "");
        assert_eq!((other.service_port, other.service_addr), (81, first.service_addr));
    }

    #[test]
    fn a_tail_from_outside_is_made_readable() {
        let good = encoded(&source());
        assert_eq!(EncodedTail::from_wire(Family::V4, good.bytes(), &mut Cut::default()).as_ref(), Some(&good));
        assert_eq!(EncodedTail::from_wire(Family::V6, good.bytes(), &mut Cut::default()), None);
        let mut cut = Cut::default();
        let mut blank = Vec::new();
        absent(Family::V4, &mut blank);
        let bytes = [&[255, 8, 0][..], &[0xff; 2048], &blank[1..]].concat();
        assert_eq!(EncodedTail::from_wire(Family::V4, &bytes[1..], &mut cut), None);
        let repaired = EncodedTail::from_wire(Family::V4, &bytes, &mut cut).expect("one tail");
        let tail = Tail::decode(Family::V4, repaired.bytes()).expect("one tail");
        assert_eq!(tail.src_pod.chars().filter(|c| *c == '\u{fffd}').count(), 341);
        assert_eq!(cut.texts, 1);
    }
}
