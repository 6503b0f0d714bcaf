//! A session's sending side: records in, whole messages out, gathered in one buffer until the caller wrote them.
//! Keeps sequence numbers, sends templates at the begin and over datagrams again, packs records up to the message's
//! limit, one template's in a message. Knows neither sockets nor clock, and allocates nothing a record once its buffer has grown.

use super::accounting::{Accounting, Kind};
use super::message::{self, Element, HEADER_LEN, Header, OPTIONS_TEMPLATE_SET, SET_HEADER_LEN, TEMPLATE_SET};
use crate::record::{
    Content, Cut, EncodedTail, Extended, Family, FlowRecord, Head, Labels, Layout, Origin, PerNode, tail,
};

/// Largest message that a stream carries.
pub const STREAM_LIMIT: usize = 65_535;

/// Id of the template of IPv4 records.
pub const TEMPLATE_V4: u16 = message::FIRST_TEMPLATE;
/// Id of the template of IPv6 records.
pub const TEMPLATE_V6: u16 = TEMPLATE_V4 + 1;

/// What a session sends, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Observation domain.
    pub domain: u32,
    /// What the flow records tell.
    pub content: Content,
    /// Whether the extended elements stand in them.
    pub extended: bool,
    /// Whether the options templates are announced, without which no [`Accounting`] can follow.
    pub accounting: bool,
    /// Bytes of a message at most. One template that is larger goes out nevertheless, alone.
    pub message_limit: usize,
    /// Seconds between templates, for transports that may lose them.
    pub template_resend: Option<u32>,
}

/// Why a record is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not fit a message even alone.
    #[error("a record of {length} bytes does not fit a message of {limit}")]
    TooLong {
        /// Bytes of the record.
        length: usize,
        /// Bytes that a message has for it.
        limit: usize,
    },
    /// Its tail was encoded for the other family of addresses.
    #[error("a tail of the other address family than the record's")]
    Family,
    /// The session announced no template for it.
    #[error("no template of this session fits the record")]
    NoTemplate,
}

/// What a session sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages.
    pub messages: u64,
    /// Flow records.
    pub records: u64,
    /// Records of options data.
    pub options: u64,
    /// Bytes of the messages.
    pub octets: u64,
    /// Records refused because they fit no message.
    pub too_long: u64,
    /// Strings that were cut.
    pub cut: Cut,
}

/// A joined record in parts, as the aggregation keeps it.
#[derive(Clone, Copy, Debug)]
pub struct JoinedParts<'a> {
    /// When, between whom, how much.
    pub head: &'a Head,
    /// Both halves' tails, or an empty slice where one is missing; a field that the first lacks is the second's.
    pub tails: [&'a [u8]; 2],
    /// HTTP transactions, which take the place of the tails' if there are any.
    pub http: &'a str,
    /// What each Node counted.
    pub per_node: &'a PerNode,
    /// Labels of both Pods.
    pub labels: [&'a str; 2],
    /// Elements beyond Antrea's list.
    pub extended: &'a Extended,
}

/// A record handed on unjoined, in parts.
#[derive(Clone, Copy, Debug)]
pub struct ProxiedParts<'a> {
    /// When, between whom, how much.
    pub head: &'a Head,
    /// The record's tail.
    pub tail: &'a [u8],
    /// HTTP transactions, which take the place of the tail's if there are any.
    pub http: &'a str,
    /// Whom the record came from.
    pub origin: &'a Origin,
    /// Labels of both Pods.
    pub labels: [&'a str; 2],
    /// Elements beyond Antrea's list.
    pub extended: &'a Extended,
}

const HEADERS: usize = HEADER_LEN + SET_HEADER_LEN;

/// Places of the messages under construction.
const V4: usize = 0;
const V6: usize = 1;
const OPTIONS: usize = 2;

/// A message under construction. It holds records of one template: some collectors read the first set of a message alone.
#[derive(Debug, Default)]
struct Message {
    /// Room for the headers, then the records; empty without records.
    bytes: Vec<u8>,
    records: u32,
    template: u16,
}

/// One session with one collector.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    /// Finished messages.
    out: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    /// Messages under construction: of IPv4 records, of IPv6 records, of options data.
    open: [Message; 3],
    sequence: u32,
    now: u32,
    announced: Option<u32>,
    counters: Counters,
}

impl Session {
    /// A session whose templates are still to be sent: [`Session::begin`] does.
    pub fn new(settings: Settings) -> Session {
        let message_limit = settings.message_limit.clamp(HEADER_LEN + SET_HEADER_LEN + 1, STREAM_LIMIT);
        Session {
            settings: Settings { message_limit, ..settings },
            out: Vec::with_capacity(2 * STREAM_LIMIT),
            ends: Vec::new(),
            open: Default::default(),
            sequence: 0,
            now: 0,
            announced: None,
            counters: Counters::default(),
        }
    }

    /// Sets the time in seconds since 1970 that messages bear from here on, and sends the templates if they are due.
    /// To be called before the first record, and before records after a pause.
    pub fn begin(&mut self, now: u32) {
        if now != self.now {
            self.finish();
        }
        self.now = now;
        let due = match (self.announced, self.settings.template_resend) {
            (None, _) => true,
            (Some(at), Some(interval)) => now.wrapping_sub(at) >= interval,
            (Some(_), None) => false,
        };
        if due {
            self.announce();
        }
    }

    /// Appends an agent's record.
    #[inline]
    pub fn push(&mut self, head: &Head, tail: &EncodedTail, extended: &Extended) -> Result<(), Refused> {
        let family = head.family();
        if tail.family() != family {
            return Err(Refused::Family);
        }
        self.push_flow(Content::Agent, head, extended, |out, _| out.extend_from_slice(tail.bytes()))
    }

    /// Appends an agent's record in its owned form.
    pub fn push_record(&mut self, record: &FlowRecord) -> Result<(), Refused> {
        let tail = record.tail.to_encoded(record.head.family(), &mut self.counters.cut);
        self.push(&record.head, &tail, &record.extended)
    }

    /// Appends a joined record. The tails are of the head's family.
    pub fn push_joined(&mut self, parts: &JoinedParts<'_>) -> Result<(), Refused> {
        let family = parts.head.family();
        self.push_flow(Content::Joined, parts.head, parts.extended, |out, cut| {
            tail::merge(family, parts.tails, None, parts.http, out, cut);
            parts.per_node.encode(family, out);
            Labels::encode_texts(parts.labels, out, cut);
        })
    }

    /// Appends a record as it came, with whom it came from. The tail is of the head's family.
    pub fn push_proxied(&mut self, parts: &ProxiedParts<'_>) -> Result<(), Refused> {
        let family = parts.head.family();
        self.push_flow(Content::Proxied, parts.head, parts.extended, |out, cut| {
            tail::merge(family, [parts.tail, &[]], None, parts.http, out, cut);
            parts.origin.encode(family, out);
            Labels::encode_texts(parts.labels, out, cut);
        })
    }

    /// Appends a record that is encoded already, as this session's template of the family has it.
    #[inline]
    pub fn push_encoded(&mut self, family: Family, record: &[u8]) -> Result<(), Refused> {
        let (slot, template) = flow_slot(family);
        self.push_to(slot, template, |out, _| out.extend_from_slice(record))?;
        self.counters.records += 1;
        Ok(())
    }

    /// Appends a record of options data.
    pub fn push_accounting(&mut self, accounting: &Accounting) -> Result<(), Refused> {
        if !self.settings.accounting {
            return Err(Refused::NoTemplate);
        }
        let template = accounting.kind().template();
        let [_, _, open] = &self.open;
        if open.template != template {
            self.close(OPTIONS);
        }
        self.push_to(OPTIONS, template, |out, cut| accounting.encode(out, cut))?;
        self.counters.options += 1;
        Ok(())
    }

    /// Ends the messages under construction. To be called before the buffer is written.
    pub fn finish(&mut self) {
        for slot in [V4, V6, OPTIONS] {
            self.close(slot);
        }
    }

    /// All finished messages, one after the other, as a stream carries them.
    pub fn bytes(&self) -> &[u8] {
        self.out.get(..self.ends.last().copied().unwrap_or(0)).unwrap_or_default()
    }

    /// The finished messages, each by itself, as datagrams carry them.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends.iter().copied()).map(|(start, end)| self.out.get(start..end).unwrap_or_default())
    }

    /// Bytes gathered so far, those of messages under construction among them.
    #[inline]
    pub fn len(&self) -> usize {
        self.out.len() + self.open.iter().map(|message| message.bytes.len()).sum::<usize>()
    }

    /// Whether nothing is gathered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the finished messages, which the caller wrote. Those under construction stay.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.out.clear();
    }

    /// What was sent so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Appends a flow record, whose middle the caller writes.
    #[inline]
    fn push_flow(
        &mut self,
        content: Content,
        head: &Head,
        extended: &Extended,
        middle: impl FnOnce(&mut Vec<u8>, &mut Cut),
    ) -> Result<(), Refused> {
        if content != self.settings.content {
            return Err(Refused::NoTemplate);
        }
        let family = head.family();
        let (slot, template) = flow_slot(family);
        let has_extended = self.settings.extended;
        self.push_to(slot, template, |out, cut| {
            head.encode(family, out);
            middle(out, cut);
            if has_extended {
                extended.encode(family, out);
            }
        })?;
        self.counters.records += 1;
        Ok(())
    }

    /// Appends a record to the message in this slot, or to a new one where that is full.
    #[inline]
    fn push_to(
        &mut self,
        slot: usize,
        template: u16,
        write: impl FnOnce(&mut Vec<u8>, &mut Cut),
    ) -> Result<(), Refused> {
        let Some(open) = self.open.get_mut(slot) else { return Err(Refused::NoTemplate) };
        if open.bytes.is_empty() {
            open.bytes.resize(HEADERS, 0);
            open.template = template;
        }
        let start = open.bytes.len();
        write(&mut open.bytes, &mut self.counters.cut);
        if open.bytes.len() > self.settings.message_limit {
            return self.overflow(slot, start);
        }
        open.records += 1;
        Ok(())
    }

    /// Moves the record that begins at `start` to a message of its own, or takes it back where it fits none.
    #[cold]
    fn overflow(&mut self, slot: usize, start: usize) -> Result<(), Refused> {
        let Some(open) = self.open.get_mut(slot) else { return Ok(()) };
        let (length, limit) = (open.bytes.len() - start, self.settings.message_limit - HEADERS);
        if length > limit {
            open.bytes.truncate(if open.records == 0 { 0 } else { start });
            self.counters.too_long += 1;
            return Err(Refused::TooLong { length, limit });
        }
        let mut full = std::mem::take(open);
        let template = full.template;
        self.end_message(&mut full.bytes, start, template);
        self.sequence = self.sequence.wrapping_add(full.records);
        full.bytes.copy_within(start..start + length, HEADERS);
        full.bytes.truncate(HEADERS + length);
        if let Some(open) = self.open.get_mut(slot) {
            *open = Message { bytes: full.bytes, records: 1, template };
        }
        Ok(())
    }

    /// Ends the message in this slot, if it holds a record.
    fn close(&mut self, slot: usize) {
        let Some(open) = self.open.get_mut(slot).filter(|open| open.records > 0) else { return };
        let Message { mut bytes, records, template } = std::mem::take(open);
        let end = bytes.len();
        self.end_message(&mut bytes, end, template);
        self.sequence = self.sequence.wrapping_add(records);
        bytes.clear();
        if let Some(open) = self.open.get_mut(slot) {
            open.bytes = bytes;
        }
    }

    /// Writes both headers over the room for them, and gathers the message that ends at `end`.
    fn end_message(&mut self, message: &mut [u8], end: usize, set: u16) {
        let length = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let Settings { domain, .. } = self.settings;
        let header = Header { length: length(end), export_time: self.now, sequence: self.sequence, domain };
        if let Some((room, rest)) = message.split_first_chunk_mut() {
            *room = header.bytes();
            if let Some(room) = rest.first_chunk_mut::<SET_HEADER_LEN>() {
                *room = (u32::from(set) << 16 | u32::from(length(end - HEADER_LEN))).to_be_bytes();
            }
        }
        self.out.extend_from_slice(message.get(..end).unwrap_or_default());
        self.ends.push(self.out.len());
        self.counters.messages += 1;
        self.counters.octets += u64::from(header.length);
    }

    /// Sends every template, each in a message of its own: a small path takes the small ones at least.
    fn announce(&mut self) {
        self.finish();
        let Settings { content, extended, accounting, .. } = self.settings;
        let mut template = Vec::new();
        for (family, id) in [(Family::V4, TEMPLATE_V4), (Family::V6, TEMPLATE_V6)] {
            let fields: Vec<Element> =
                Layout { family, content, extended }.fields().map(|field| Element::of(field, family)).collect();
            template.resize(HEADERS, 0);
            message::put_template(id, 0, fields.into_iter(), &mut template);
            let end = template.len();
            self.end_message(&mut template, end, TEMPLATE_SET);
            template.clear();
        }
        for kind in Kind::ALL.into_iter().filter(|_| accounting) {
            template.resize(HEADERS, 0);
            message::put_template(kind.template(), kind.scope(), kind.elements(), &mut template);
            let end = template.len();
            self.end_message(&mut template, end, OPTIONS_TEMPLATE_SET);
            template.clear();
        }
        self.announced = Some(self.now);
    }
}

/// Where records of a family are gathered, and by which template.
#[inline]
fn flow_slot(family: Family) -> (usize, u16) {
    match family {
        Family::V4 => (V4, TEMPLATE_V4),
        Family::V6 => (V6, TEMPLATE_V6),
    }
}
