//! Connections that connection tracking knows: those of which no packet was seen yet, and those with translated
//! addresses, which two map entries belong to. One that is not translated leaves as soon as its entry has been found.

use std::hash::BuildHasher;

use flow_common::time::Timestamp;
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::key::Key;
use super::slab::{NONE, Slab};
use crate::conntrack;

/// A tracked connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracked {
    /// Key of its packets before translation, and whether the originator is end 1.
    pub(super) original: (Key, bool),
    /// Key of its packets after translation, and whether the originator is end 1. The same if nothing is translated.
    pub(super) translated: (Key, bool),
    pub(super) start: Option<Timestamp>,
    pub(super) id: u32,
    pub(super) zone: u16,
    /// It was there before the agent.
    pub(super) is_old: bool,
    /// The kernel counts its packets.
    pub(super) has_counters: bool,
    /// A flow of it was ended although it went on: what follows is another.
    pub(super) is_continued: bool,
    /// It was over when a dump told of it.
    pub(super) is_over: bool,
    /// The kernel has forgotten it, and it waits for its flow.
    pub(super) has_departed: bool,
    /// The dump that is running has it.
    pub(super) in_dump: bool,
    /// Whether it can be found by its keys; not once the kernel has forgotten it.
    indexed: bool,
    live: bool,
    /// The flow that it is.
    pub(super) connection: u32,
}

/// A tracked connection that was over before a packet of it was told of, as one that is refused: connection tracking
/// forgets it at the RST, and says so earlier than its map entries are read. It is kept for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departed {
    pub(super) number: u32,
    pub(super) id: u32,
    pub(super) stop_ns: u64,
    /// When the kernel said so.
    pub(super) since_ns: u64,
}

impl Tracked {
    /// None where the tuples make no keys.
    pub(super) fn new(entry: &conntrack::Entry) -> Option<Self> {
        let icmp = entry.original.dst_port;
        let original = Key::of(&entry.original, icmp)?;
        let (key, answers_from_end_1) = Key::of(&entry.reply, icmp)?;
        Some(Self {
            original,
            translated: if key == original.0 { original } else { (key, !answers_from_end_1) },
            start: entry.start,
            id: entry.id,
            zone: entry.zone,
            is_old: false,
            has_counters: false,
            is_continued: false,
            is_over: false,
            has_departed: false,
            in_dump: true,
            indexed: true,
            live: true,
            connection: NONE,
        })
    }

    /// Whether its packets have two keys.
    pub(super) fn is_translated(&self) -> bool {
        self.original.0 != self.translated.0
    }

    /// Its side that has this key: whether the originator is end 1.
    pub(super) fn reversed_at(&self, key: &Key) -> bool {
        if self.translated.0 == *key { self.translated.1 } else { self.original.1 }
    }

    /// How many keys it has.
    fn sides(&self) -> u32 {
        if self.is_translated() { 2 } else { 1 }
    }

    fn key(&self, side: u32) -> &Key {
        if side == 0 { &self.original.0 } else { &self.translated.0 }
    }

    /// The tuple to ask for it with.
    pub(super) fn scope(key: &Key, reversed: bool, zone: u16) -> conntrack::Scope {
        let [(src, src_port), (dst, dst_port)] = key.ends(reversed);
        conntrack::Scope { tuple: conntrack::Tuple { src, dst, src_port, dst_port, protocol: key.protocol() }, zone }
    }
}

/// All of them, found by either key.
#[derive(Debug)]
pub(super) struct Tracker {
    slab: Slab<Tracked>,
    /// Number of the connection times two, plus 1 for its translated key.
    index: HashTable<u32>,
    hasher: RandomState,
    capacity: usize,
    /// Connections that found no room since it was last looked for.
    refused: usize,
}

impl Tracker {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(NONE as usize / 2);
        Self {
            slab: Slab::with_capacity(0),
            index: HashTable::new(),
            hasher: RandomState::default(),
            capacity,
            refused: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The numbers of all that there are.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.slab.numbers().filter(|number| self.slab[*number].live).collect()
    }

    /// Whether the number is still this connection's.
    pub(super) fn has(&self, number: u32, id: u32) -> bool {
        self.slab[number].live && self.slab[number].id == id
    }

    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        let found = self.index.find(self.hasher.hash_one(key), |element| *self.key(*element) == *key)?;
        Some(found / 2)
    }

    /// None if there is no room.
    pub(super) fn insert(&mut self, tracked: Tracked) -> Option<u32> {
        if self.slab.len() >= self.capacity && !self.make_room() {
            return None;
        }
        let number = self.slab.insert(tracked);
        let Self { slab, index, hasher, .. } = self;
        for side in 0..tracked.sides() {
            let hash = hasher.hash_one(slab[number].key(side));
            index.insert_unique(hash, number * 2 + side, |element| hasher.hash_one(slab[element / 2].key(element % 2)));
        }
        Some(number)
    }

    /// Lets those go of which no packet was seen and that have no translation to tell: a flow that comes after all is told of without
    /// them. The search goes over all, so it is not for each that finds no room.
    fn make_room(&mut self) -> bool {
        const EVERY: usize = 256;
        self.refused += 1;
        if self.refused % EVERY == 1 {
            for number in self.numbers() {
                if self.slab[number].connection == NONE && !self.slab[number].is_translated() {
                    self.remove(number);
                }
            }
        }
        self.slab.len() < self.capacity
    }

    /// Keeps it for its flow, but its keys are free for another.
    pub(super) fn forget(&mut self, number: u32) {
        let tracked = &mut self.slab[number];
        if !std::mem::take(&mut tracked.indexed) {
            return;
        }
        for side in 0..tracked.sides() {
            let hash = self.hasher.hash_one(tracked.key(side));
            if let Ok(element) = self.index.find_entry(hash, |element| *element == number * 2 + side) {
                element.remove();
            }
        }
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.forget(number);
        self.slab[number].live = false;
        self.slab.remove(number);
    }

    /// Lets those go that were over and have no flow.
    pub(super) fn forget_over(&mut self) {
        for number in self.numbers() {
            if self.slab[number].is_over && self.slab[number].connection == NONE {
                self.remove(number);
            }
        }
    }

    /// Its flow is gone. The kernel still knows the connection, unless it was forgotten before; if its packets have
    /// closed it, no more are to come.
    pub(super) fn release(&mut self, number: u32, was_closed: bool) {
        let tracked = &mut self.slab[number];
        if was_closed || !tracked.indexed {
            return self.remove(number);
        }
        tracked.connection = NONE;
        tracked.is_continued = true;
    }

    fn key(&self, element: u32) -> &Key {
        self.slab[element / 2].key(element % 2)
    }
}

impl std::ops::Index<u32> for Tracker {
    type Output = Tracked;

    fn index(&self, number: u32) -> &Tracked {
        &self.slab[number]
    }
}

impl std::ops::IndexMut<u32> for Tracker {
    fn index_mut(&mut self, number: u32) -> &mut Tracked {
        &mut self.slab[number]
    }
}
