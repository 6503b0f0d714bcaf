//! A session's receiving side: bytes of a stream, or datagrams, in; flow records and accounting out, a batch at a time.
//! Keeps the session's templates by observation domain, and counts what is lost, unknown or refused. Knows neither
//! sockets nor clock, and looks at no string: a record's names stay one piece of bytes with a hash (see [`Batch`]).

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use hashbrown::HashMap;

use super::message::{FIRST_TEMPLATE, Header, MessageError, OPTIONS_TEMPLATE_SET, SET_HEADER_LEN, TEMPLATE_SET};
use super::wire::Reader;

mod batch;
mod data;
mod foreign;
mod sequence;
mod template;

pub use batch::{Batch, Record};

use sequence::{Place, Sequence};
use template::{Kept, Store, Templates};

/// What a session may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Observation domains.
    pub domains: usize,
    /// Templates of all domains.
    pub templates: usize,
    /// Elements of all templates.
    pub elements: usize,
    /// Seconds after which a template that was not sent again is forgotten; for datagrams.
    pub template_life: Option<u32>,
}

impl Limits {
    /// For a stream: templates live as long as it does.
    pub const STREAM: Limits = Limits { domains: 256, templates: 1024, elements: 16 * 1024, template_life: None };
    /// For datagrams: templates live three times as long as senders wait before they repeat them.
    pub const DATAGRAMS: Limits = Limits { template_life: Some(1800), ..Limits::STREAM };

    /// Templates live for ever where they cannot be lost.
    fn by_datagram(&self) -> bool {
        self.template_life.is_some()
    }
}

/// The hash by which a side of a flow knows its tail again. All sessions of a program share one; its seed is secret.
#[derive(Clone, Debug)]
pub struct TailHash(foldhash::fast::FixedState);

impl TailHash {
    /// From random bits.
    pub fn new(seed: u64) -> TailHash {
        TailHash(foldhash::fast::FixedState::with_seed(seed))
    }

    /// The hash of a tail's bytes.
    #[inline]
    pub fn of(&self, tail: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(tail);
        hasher.finish()
    }
}

/// Declares the counters and their sum.
macro_rules! counters {
    ($( $(#[doc = $doc:literal])+ $counter:ident, )+) => {
        /// What a session received. A session's counters only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $( $(#[doc = $doc])+ pub $counter: u64, )+ }

        impl std::ops::AddAssign for Counters {
            fn add_assign(&mut self, other: Counters) {
                $( self.$counter += other.$counter; )+
            }
        }
    };
}

counters! {
    /// Messages, malformed ones not among them.
    messages,
    /// Bytes of these messages.
    octets,
    /// Messages that could not be parsed.
    malformed,
    /// Flow records.
    records,
    /// Those of them that came by another template than an agent's.
    foreign,
    /// Records of accounting.
    accounting,
    /// Other records of options data.
    options,
    /// Records with a piece of a sampled packet, which are no flows.
    sampled,
    /// Records that do not say between whom, which are no flows.
    keyless,
    /// Templates, repeated ones among them.
    templates,
    /// Templates beyond the session's limits, or such whose records would be empty.
    templates_refused,
    /// Templates withdrawn.
    withdrawals,
    /// Withdrawals of what was not there, or by datagram, where none may come.
    withdrawals_ignored,
    /// Sets of data whose template is not there.
    missing_templates,
    /// Sets with an id that RFC 7011 gives no meaning.
    unknown_sets,
    /// Records that the sequence numbers say were sent and that did not come; of datagrams once they can no more come late.
    lost,
    /// Messages that came behind a later one.
    late,
    /// Exporters that began to count anew.
    restarts,
}

/// What is kept for one observation domain.
#[derive(Debug, Default)]
struct Domain {
    templates: Templates,
    sequence: Sequence,
    /// When the exporter's uptime began, in milliseconds since 1970, where options data said so.
    system_init: u64,
}

/// One transport session: a connection, or the datagrams of one address and port.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    hash: TailHash,
    domains: HashMap<u32, Domain>,
    kept: Kept,
    counters: Counters,
}

impl Session {
    /// A session that knows no template yet.
    pub fn new(limits: Limits, hash: TailHash) -> Session {
        Session { limits, hash, domains: HashMap::new(), kept: Kept::default(), counters: Counters::default() }
    }

    /// Decodes whole messages of a stream from `from` on, until the batch is full or no whole message is left, and gives
    /// where the next message begins. `now` is in seconds since 1970. After an error the stream cannot go on; what the
    /// batch holds by then is good, and nothing of the malformed message is among it.
    pub fn decode(&mut self, buffer: &[u8], from: usize, now: u32, batch: &mut Batch) -> Result<usize, MessageError> {
        let mut at = from;
        while !batch.is_full() {
            let rest = buffer.get(at..).unwrap_or_default();
            let Some(header) = Header::read(&mut Reader::new(rest)) else { break };
            let length = match header {
                Ok(header) => usize::from(header.length),
                Err(error) => return Err(self.malformed(error)),
            };
            if rest.len() < length {
                break;
            }
            self.message(buffer, at..at + length, now, batch)?;
            at += length;
        }
        Ok(at)
    }

    /// Decodes the one message of the datagram that lies at `datagram` in the buffer. After an error the session goes on,
    /// and nothing of the malformed message is in the batch.
    pub fn decode_datagram(
        &mut self,
        buffer: &[u8],
        datagram: Range<usize>,
        now: u32,
        batch: &mut Batch,
    ) -> Result<(), MessageError> {
        let bytes = buffer.get(datagram.clone()).unwrap_or_default();
        let error = match Header::read(&mut Reader::new(bytes)) {
            None => MessageError::DatagramCut { length: 0, found: bytes.len() },
            Some(Err(error)) => error,
            Some(Ok(header)) if usize::from(header.length) > bytes.len() => {
                MessageError::DatagramCut { length: header.length, found: bytes.len() }
            }
            Some(Ok(header)) if usize::from(header.length) < bytes.len() => {
                MessageError::DatagramRest(bytes.len() - usize::from(header.length))
            }
            Some(Ok(_)) => return self.message(buffer, datagram, now, batch),
        };
        Err(self.malformed(error))
    }

    /// What was received so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The session is over. Gives what was received in all, and the records by observation domain that are lost now that
    /// nothing can come late any more.
    pub fn finish(mut self) -> (Counters, Vec<(u32, u32)>) {
        let missing = self.domains.iter_mut().map(|(domain, state)| (*domain, state.sequence.finish()));
        let missing: Vec<(u32, u32)> = missing.filter(|(_, lost)| *lost > 0).collect();
        self.counters.lost += missing.iter().map(|(_, lost)| u64::from(*lost)).sum::<u64>();
        (self.counters, missing)
    }

    fn malformed(&mut self, error: MessageError) -> MessageError {
        self.counters.malformed += 1;
        error
    }

    /// A whole message: all of it is taken or nothing.
    fn message(
        &mut self,
        buffer: &[u8],
        message: Range<usize>,
        now: u32,
        batch: &mut Batch,
    ) -> Result<(), MessageError> {
        let mark = (batch.mark(), self.counters);
        let octets = u64::try_from(message.len()).unwrap_or(0);
        let result = self.sets(buffer, message, now, batch);
        if let Err(error) = result {
            batch.rewind(mark.0);
            self.counters = mark.1;
            return Err(self.malformed(error));
        }
        self.counters.messages += 1;
        self.counters.octets += octets;
        Ok(())
    }

    fn sets(&mut self, buffer: &[u8], message: Range<usize>, now: u32, batch: &mut Batch) -> Result<(), MessageError> {
        let end = message.end;
        let mut from = Reader::new(buffer.get(message).unwrap_or_default());
        let header = match Header::read(&mut from) {
            Some(header) => header?,
            None => return Err(MessageError::SetHeader(from.len())),
        };
        if self.domains.len() >= self.limits.domains && !self.domains.contains_key(&header.domain) {
            return Err(MessageError::Domains(header.domain));
        }
        let Session { limits, hash, domains, kept, counters } = self;
        let domain = domains.entry(header.domain).or_default();
        let (records_before, missing_before) = (counters.data_records(), counters.missing_templates);
        while !from.is_empty() {
            let left = from.len();
            let (Some(id), Some(length)) = (from.u16(), from.u16()) else { return Err(MessageError::SetHeader(left)) };
            let body = usize::from(length).checked_sub(SET_HEADER_LEN).and_then(|length| from.bytes(length));
            let Some(body) = body else { return Err(MessageError::SetLength { id, length, left }) };
            match id {
                TEMPLATE_SET | OPTIONS_TEMPLATE_SET => {
                    let options = id == OPTIONS_TEMPLATE_SET;
                    domain.templates.read_set(options, body, &mut Store { now, limits, kept, counters })?;
                }
                FIRST_TEMPLATE.. => {
                    let set = data::Set { id, body, at: end - from.len() - body.len(), header: &header, hash };
                    set.read(domain, now, limits, batch, counters)?;
                }
                _ => counters.unknown_sets += 1,
            }
        }
        let records = counters.data_records() - records_before;
        let uncounted = counters.missing_templates != missing_before;
        let place = Place { sequence: header.sequence, records, uncounted, now, by_datagram: limits.by_datagram() };
        match domain.sequence.end(place, counters) {
            0 => {}
            lost => batch.lost.push((header.domain, lost)),
        }
        Ok(())
    }
}

impl Counters {
    /// Everything that counts in sequence numbers.
    fn data_records(&self) -> u64 {
        self.records + self.accounting + self.options + self.sampled + self.keyless
    }
}
