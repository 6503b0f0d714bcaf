//! A session's sending side: records in, whole messages out, gathered in one buffer until the caller wrote them.
//! Keeps sequence numbers, sends templates at the begin and over datagrams again, packs records up to the message's
//! limit. Knows neither sockets nor clock, and allocates nothing a record once its buffer has grown.

use super::accounting::{Accounting, Kind};
use super::message::{self, Element, HEADER_LEN, Header, OPTIONS_TEMPLATE_SET, SET_HEADER_LEN, TEMPLATE_SET};
use crate::record::{
    Content, Cut, EncodedTail, Extended, Family, FlowRecord, Head, Labels, Layout, Origin, PerNode, tail,
};

/// Largest message that a stream carries.
pub const STREAM_LIMIT: usize = 65_535;
/// Largest message that every network carries in one datagram (RFC 7011, section 10.3.3).
pub const UNKNOWN_PATH_LIMIT: usize = 512;

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

/// The message under construction: where it and its last set begin, and what they hold.
#[derive(Clone, Copy, Debug)]
struct Open {
    start: usize,
    set_start: usize,
    set_id: u16,
    records: u32,
    set_records: u32,
}

/// One session with one collector.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    out: Vec<u8>,
    /// Where each finished message ends.
    ends: Vec<usize>,
    open: Option<Open>,
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
            open: None,
            sequence: 0,
            now: 0,
            announced: None,
            counters: Counters::default(),
        }
    }

    /// Sets the time in seconds since 1970 that messages bear from here on, and sends the templates if they are due.
    /// To be called before the first record, and before records after a pause.
    pub fn begin(&mut self, now: u32) {
        if self.open.is_some() && now != self.now {
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
        let start = self.record_start(Content::Agent, family)?;
        head.encode(family, &mut self.out);
        self.out.extend_from_slice(tail.bytes());
        self.end_flow(start, family, extended)
    }

    /// Appends an agent's record in its owned form.
    pub fn push_record(&mut self, record: &FlowRecord) -> Result<(), Refused> {
        let tail = record.tail.to_encoded(record.head.family(), &mut self.counters.cut);
        self.push(&record.head, &tail, &record.extended)
    }

    /// Appends a joined record. The tails are of the head's family.
    pub fn push_joined(&mut self, parts: &JoinedParts<'_>) -> Result<(), Refused> {
        let family = parts.head.family();
        let start = self.record_start(Content::Joined, family)?;
        parts.head.encode(family, &mut self.out);
        tail::merge(family, parts.tails, parts.http, &mut self.out, &mut self.counters.cut);
        parts.per_node.encode(family, &mut self.out);
        Labels::encode_texts(parts.labels, &mut self.out, &mut self.counters.cut);
        self.end_flow(start, family, parts.extended)
    }

    /// Appends a record that is encoded already, as this session's template of the family has it.
    #[inline]
    pub fn push_encoded(&mut self, family: Family, record: &[u8]) -> Result<(), Refused> {
        let start = self.record_start(self.settings.content, family)?;
        self.out.extend_from_slice(record);
        self.settle(start)?;
        self.counters.records += 1;
        Ok(())
    }

    /// Appends a record as it came, with whom it came from. The tail is of the head's family.
    pub fn push_proxied(&mut self, parts: &ProxiedParts<'_>) -> Result<(), Refused> {
        let family = parts.head.family();
        let start = self.record_start(Content::Proxied, family)?;
        parts.head.encode(family, &mut self.out);
        tail::merge(family, [parts.tail, &[]], parts.http, &mut self.out, &mut self.counters.cut);
        parts.origin.encode(family, &mut self.out);
        Labels::encode_texts(parts.labels, &mut self.out, &mut self.counters.cut);
        self.end_flow(start, family, parts.extended)
    }

    /// Appends a record of options data.
    pub fn push_accounting(&mut self, accounting: &Accounting) -> Result<(), Refused> {
        if !self.settings.accounting {
            return Err(Refused::NoTemplate);
        }
        self.open_set(accounting.kind().template());
        let start = self.out.len();
        accounting.encode(&mut self.out, &mut self.counters.cut);
        self.settle(start)?;
        self.counters.options += 1;
        Ok(())
    }

    /// Ends the message under construction. To be called before the buffer is written.
    pub fn finish(&mut self) {
        let end = self.out.len();
        self.close(end);
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

    /// Bytes gathered so far, those of the message under construction among them.
    #[inline]
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing is gathered.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Forgets the finished messages, which the caller wrote. The one under construction is finished before, if need be.
    pub fn clear(&mut self) {
        let written = self.ends.last().copied().unwrap_or(0);
        self.ends.clear();
        self.out.drain(..written);
        if let Some(open) = &mut self.open {
            open.start -= written;
            open.set_start -= written;
        }
    }

    /// What was sent so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    #[inline]
    fn record_start(&mut self, content: Content, family: Family) -> Result<usize, Refused> {
        if content != self.settings.content {
            return Err(Refused::NoTemplate);
        }
        self.open_set(match family {
            Family::V4 => TEMPLATE_V4,
            Family::V6 => TEMPLATE_V6,
        });
        Ok(self.out.len())
    }

    #[inline]
    fn end_flow(&mut self, start: usize, family: Family, extended: &Extended) -> Result<(), Refused> {
        if self.settings.extended {
            extended.encode(family, &mut self.out);
        }
        self.settle(start)?;
        self.counters.records += 1;
        Ok(())
    }

    /// Makes the last set of the open message one of this id.
    #[inline]
    fn open_set(&mut self, id: u16) {
        match self.open {
            Some(open) if open.set_id == id => {}
            Some(open) => {
                let end = self.out.len();
                message::put_length(&mut self.out, open.set_start + 2, end - open.set_start);
                self.out.extend_from_slice(&set_header(id));
                self.open = Some(Open { set_start: end, set_id: id, set_records: 0, ..open });
            }
            None => {
                let start = self.out.len();
                self.out.extend_from_slice(&self.header().bytes());
                self.out.extend_from_slice(&set_header(id));
                self.open = Some(Open { start, set_start: start + HEADER_LEN, set_id: id, records: 0, set_records: 0 });
            }
        }
    }

    /// Counts the record that begins at `start` in, or moves it to a message of its own where this one is full.
    #[inline]
    fn settle(&mut self, start: usize) -> Result<(), Refused> {
        match &mut self.open {
            Some(open) if self.out.len() - open.start <= self.settings.message_limit => {
                open.records += 1;
                open.set_records += 1;
                Ok(())
            }
            _ => self.overflow(start),
        }
    }

    #[cold]
    fn overflow(&mut self, start: usize) -> Result<(), Refused> {
        const HEADERS: usize = HEADER_LEN + SET_HEADER_LEN;
        let Some(open) = self.open else { return Ok(()) };
        let length = self.out.len() - start;
        let limit = self.settings.message_limit - HEADERS;
        // A set that was opened for this record alone goes with it.
        let end = if open.set_records == 0 { open.set_start } else { start };
        if length > limit {
            self.out.truncate(end);
            self.close(end);
            self.counters.too_long += 1;
            return Err(Refused::TooLong { length, limit });
        }
        self.out.resize(end + HEADERS + length, 0);
        self.out.copy_within(start..start + length, end + HEADERS);
        self.close(end);
        let header = self.header().bytes();
        let headers = self.out.get_mut(end..end + HEADERS).unwrap_or_default();
        for (to, byte) in headers.iter_mut().zip(header.into_iter().chain(set_header(open.set_id))) {
            *to = byte;
        }
        self.open =
            Some(Open { start: end, set_start: end + HEADER_LEN, set_id: open.set_id, records: 1, set_records: 1 });
        Ok(())
    }

    /// Ends the open message at `end`; one without a record is taken back.
    fn close(&mut self, end: usize) {
        let Some(open) = self.open.take() else { return };
        if open.records == 0 {
            self.out.truncate(open.start);
            return;
        }
        if open.set_records > 0 {
            message::put_length(&mut self.out, open.set_start + 2, end - open.set_start);
        }
        self.sequence = self.sequence.wrapping_add(open.records);
        self.end_message(open.start, end);
    }

    fn end_message(&mut self, start: usize, end: usize) {
        message::put_length(&mut self.out, start + 2, end - start);
        self.ends.push(end);
        self.counters.messages += 1;
        self.counters.octets += u64::try_from(end - start).unwrap_or(0);
    }

    /// Sends every template, each in a message of its own: a small path takes the small ones at least.
    fn announce(&mut self) {
        self.finish();
        let Settings { content, extended, accounting, .. } = self.settings;
        let mut template = Vec::new();
        for (family, id) in [(Family::V4, TEMPLATE_V4), (Family::V6, TEMPLATE_V6)] {
            let fields: Vec<Element> =
                Layout { family, content, extended }.fields().map(|field| Element::of(field, family)).collect();
            template.clear();
            message::put_template(id, 0, fields.into_iter(), &mut template);
            self.push_template(TEMPLATE_SET, &template);
        }
        for kind in Kind::ALL.into_iter().filter(|_| accounting) {
            template.clear();
            message::put_template(kind.template(), kind.scope(), kind.elements(), &mut template);
            self.push_template(OPTIONS_TEMPLATE_SET, &template);
        }
        self.announced = Some(self.now);
    }

    fn push_template(&mut self, set: u16, template: &[u8]) {
        let start = self.out.len();
        self.out.extend_from_slice(&self.header().bytes());
        let set_start = self.out.len();
        self.out.extend_from_slice(&set_header(set));
        self.out.extend_from_slice(template);
        let end = self.out.len();
        message::put_length(&mut self.out, set_start + 2, end - set_start);
        self.end_message(start, end);
    }

    fn header(&self) -> Header {
        Header { length: 0, export_time: self.now, sequence: self.sequence, domain: self.settings.domain }
    }
}

/// A set's header, its length still to come.
#[inline]
fn set_header(id: u16) -> [u8; SET_HEADER_LEN] {
    (u32::from(id) << 16).to_be_bytes()
}
