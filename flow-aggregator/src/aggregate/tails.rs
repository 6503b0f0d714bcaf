//! The names of records, each distinct set of them kept once.
//!
//! Takes tails as they stand on the wire; gives numbers for them, counted by their users, and what correlation needs
//! to know of each. A tail arrives with every record and almost never differs from the one before: the caller compares
//! hashes and comes here only when they differ. The bytes are compared here, and checked to be UTF-8 once.

use super::table::Slab;
use crate::correlate::Facts;
use flow_common::{
    ipfix::collector::TailHash,
    record::{Cut, Family, Tail, tail::merge},
};
use hashbrown::HashTable;

/// Names of a tail in [`Tails`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TailId(pub(super) u32);

impl TailId {
    /// No tail.
    pub(super) const NONE: TailId = TailId(u32::MAX);
}

#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    hash: u64,
    users: u32,
    facts: Facts,
}

/// All tails of one family.
#[derive(Debug)]
pub(super) struct Tails {
    family: Family,
    entries: Slab<Entry>,
    index: HashTable<u32>,
    hasher: TailHash,
    /// Which element is the TCP state: it is the latest record's, not the source's.
    state: Option<usize>,
    scratch: Vec<u8>,
    /// What was too long in tails as they came.
    cut: Cut,
}

/// Which of two tails' values stand where both have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Latest {
    /// The first tail has the latest TCP state, too.
    First,
    /// The second tail has the latest TCP state.
    Second,
}

impl Tails {
    pub(super) fn new(family: Family, hasher: TailHash) -> Self {
        Tails {
            family,
            entries: Slab::new(),
            index: HashTable::new(),
            hasher,
            state: Tail::FIELDS.iter().position(|field| field.rust_name == "tcp_state"),
            scratch: Vec::new(),
            cut: Cut::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What was cut of tails that were too long for a record, each time one was looked up.
    pub(super) fn cut(&self) -> Cut {
        self.cut
    }

    pub(super) fn facts(&self, id: TailId) -> Facts {
        self.entries.at(id.0).map_or_else(Facts::default, |entry| entry.facts)
    }

    #[inline]
    pub(super) fn bytes(&self, id: TailId) -> &[u8] {
        self.entries.at(id.0).map_or(&[], |entry| &entry.bytes)
    }

    /// A word of what [`bytes`](Self::bytes) and [`release`](Self::release) need, so that it comes early.
    #[inline]
    pub(super) fn touch(&self, id: TailId) -> u64 {
        self.entries.at(id.0).map_or(0, |entry| {
            let bytes = [entry.bytes.first(), entry.bytes.get(entry.bytes.len() / 2), entry.bytes.last()];
            bytes.into_iter().flatten().fold(entry.hash, |sum, byte| sum ^ u64::from(*byte))
        })
    }

    /// The same of what [`keep`](Self::keep) needs.
    #[inline]
    pub(super) fn touch_hash(&self, hash: u64) -> u64 {
        self.index.find(hash, |_| true).map_or(0, |slot| self.touch(TailId(*slot)))
    }

    /// A tail with names to its values.
    pub(super) fn owned(&self, id: TailId) -> Option<Tail> {
        Tail::decode(self.family, self.bytes(id))
    }

    /// The number of a tail whose hash is not known yet, with one user more.
    pub(super) fn keep_new(&mut self, bytes: &[u8]) -> TailId {
        self.keep(bytes, self.hasher.of(bytes))
    }

    /// The number of a tail with this hash, with one user more.
    pub(super) fn keep(&mut self, bytes: &[u8], hash: u64) -> TailId {
        if let Some(id) = self.find(bytes, hash) {
            return self.share(id);
        }
        let Some(tail) = Tail::decode(self.family, bytes) else { return TailId::NONE };
        let mut clean = Vec::with_capacity(bytes.len());
        tail.encode(self.family, &mut clean, &mut self.cut);
        // Invalid UTF-8 and overlong lengths make two forms of one tail; the entry is found by the first, shown as the second.
        let entry = Entry { bytes: bytes.into(), hash, users: 1, facts: Facts::of(&tail) };
        let entry = if clean == bytes { entry } else { return self.keep_clean(&clean, entry.facts) };
        self.insert(entry)
    }

    /// One user more of a tail that is there.
    pub(super) fn share(&mut self, id: TailId) -> TailId {
        if let Some(entry) = self.entries.at_mut(id.0) {
            entry.users += 1;
        }
        id
    }

    /// One user less; the last one takes the tail away.
    pub(super) fn release(&mut self, id: TailId) {
        let Some(entry) = self.entries.at_mut(id.0) else { return };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        let hash = entry.hash;
        if let Ok(found) = self.index.find_entry(hash, |slot| *slot == id.0) {
            found.remove();
        }
        self.entries.remove(id.0);
    }

    /// A tail with each element of `first`, or of `second` where `first` has none; the result has one user more.
    pub(super) fn merge(&mut self, first: &[u8], second: &[u8]) -> TailId {
        let mut merged = std::mem::take(&mut self.scratch);
        merged.clear();
        merge(self.family, [first, second], None, "", &mut merged, &mut Cut::default());
        let id = self.keep_new(&merged);
        self.scratch = merged;
        id
    }

    /// Appends both halves' names as one: the first half's where it has them, else the second's; the TCP state of the
    /// latest. HTTP transactions that are given stand in their place.
    pub(super) fn join(&self, ids: [TailId; 2], latest: Latest, http: &str, out: &mut Vec<u8>, cut: &mut Cut) {
        let state = if latest == Latest::Second { self.state } else { None };
        merge(self.family, ids.map(|id| self.bytes(id)), state, http, out, cut);
    }

    fn find(&self, bytes: &[u8], hash: u64) -> Option<TailId> {
        let is_it =
            |slot: &u32| self.entries.at(*slot).is_some_and(|entry| entry.hash == hash && *entry.bytes == *bytes);
        self.index.find(hash, is_it).map(|slot| TailId(*slot))
    }

    fn keep_clean(&mut self, bytes: &[u8], facts: Facts) -> TailId {
        let hash = self.hasher.of(bytes);
        if let Some(id) = self.find(bytes, hash) {
            return self.share(id);
        }
        self.insert(Entry { bytes: bytes.into(), hash, users: 1, facts })
    }

    fn insert(&mut self, entry: Entry) -> TailId {
        let hash = entry.hash;
        let slot = self.entries.insert(entry);
        let entries = &self.entries;
        self.index.insert_unique(hash, slot, |slot| entries.at(*slot).map_or(0, |entry| entry.hash));
        TailId(slot)
    }
}
