//! Decoded records of one read, in vectors that are used again. Strings are not among them: a record knows where in the
//! read buffer, or in the batch's scratch, its names lie.

use crate::ipfix::accounting::Accounting;
use crate::record::{Extended, Head};

/// Where bytes lie: in the buffer that was decoded or in the batch's scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
    pub(super) in_scratch: bool,
}

impl Span {
    /// Of the buffer. Buffers end far below 4 GiB; beyond, a span is empty.
    #[inline]
    pub(super) fn buffer(start: usize, length: usize) -> Span {
        match (u32::try_from(start), u32::try_from(length)) {
            (Ok(start), Ok(length)) => Span { start, length, in_scratch: false },
            _ => Span::default(),
        }
    }

    /// Of the scratch, from `start` to its present end.
    #[inline]
    pub(super) fn scratch(start: usize, scratch: &[u8]) -> Span {
        Span { in_scratch: true, ..Span::buffer(start, scratch.len() - start) }
    }

    #[inline]
    fn of(self, bytes: &[u8]) -> &[u8] {
        let (Ok(start), Ok(length)) = (usize::try_from(self.start), usize::try_from(self.length)) else { return &[] };
        bytes.get(start..).and_then(|rest| rest.get(..length)).unwrap_or_default()
    }
}

/// A flow record, whoever sent it.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When, between whom, how much.
    pub head: Head,
    /// Elements beyond Antrea's list; all zero where the sender leaves them out.
    pub extended: Extended,
    /// Hash of the tail's bytes, by the session's [`super::TailHash`].
    pub tail_hash: u64,
    /// Observation domain.
    pub domain: u32,
    /// When the message was sent, in seconds since 1970.
    pub export_time: u32,
    /// Which counters, in the order of [`Head::totals`], the sender counts since the flow's begin. The total of another is zero, and only
    /// its delta tells.
    pub has_total: [bool; 4],
    /// Whether it came by an agent's own template: its domain names a Node, and its flow id is of one connection alone.
    pub is_agents: bool,
    pub(super) tail: Span,
    pub(super) http: Span,
}

/// Records of one buffer.
#[derive(Debug)]
pub struct Batch {
    pub(super) records: Vec<Record>,
    pub(super) accounting: Vec<(u32, Accounting)>,
    pub(super) lost: Vec<(u32, u32)>,
    pub(super) scratch: Vec<u8>,
    target: usize,
}

impl Batch {
    /// A batch that is full once it holds `target` records; what a message holds beyond is still taken.
    pub fn new(target: usize) -> Batch {
        let (accounting, lost, scratch) = (Vec::new(), Vec::new(), Vec::new());
        Batch { records: Vec::with_capacity(target), accounting, lost, scratch, target }
    }

    /// The flow records, in the order they came.
    #[inline]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The records of accounting, each with its observation domain, in the order they came.
    pub fn accounting(&self) -> &[(u32, Accounting)] {
        &self.accounting
    }

    /// How many records sequence numbers showed to be lost, each with the observation domain.
    pub fn lost(&self) -> &[(u32, u32)] {
        &self.lost
    }

    /// A record's tail, in the family of its addresses and without HTTP transactions. `buffer` is what was decoded.
    /// Its strings are as they came: [`crate::record::EncodedTail::from_wire`] makes them readable.
    #[inline]
    pub fn tail<'a>(&'a self, record: &Record, buffer: &'a [u8]) -> &'a [u8] {
        record.tail.of(if record.tail.in_scratch { &self.scratch } else { buffer })
    }

    /// A record's HTTP transactions as they came; empty if it has none. `buffer` is what was decoded.
    #[inline]
    pub fn http<'a>(&'a self, record: &Record, buffer: &'a [u8]) -> &'a [u8] {
        record.http.of(if record.http.in_scratch { &self.scratch } else { buffer })
    }

    /// Whether it is time to work on what there is.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.records.len() >= self.target
    }

    /// Empties it for the next buffer.
    pub fn clear(&mut self) {
        self.records.clear();
        self.accounting.clear();
        self.lost.clear();
        self.scratch.clear();
    }

    pub(super) fn mark(&self) -> [usize; 3] {
        [self.records.len(), self.accounting.len(), self.scratch.len()]
    }

    pub(super) fn rewind(&mut self, [records, accounting, scratch]: [usize; 3]) {
        self.records.truncate(records);
        self.accounting.truncate(accounting);
        self.scratch.truncate(scratch);
    }
}
