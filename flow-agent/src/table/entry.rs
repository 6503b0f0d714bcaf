//! What is known of each entry of the kernel's maps: its key, its counters as they were last seen, and whose connection
//! it counts.

use std::hash::{BuildHasher, Hasher};

use flow_common::abi::{self, Key4, Key6};
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::counters::Counters;
use super::key::Key;
use super::slab::{NONE, Slab};

/// In [`Entry::flags`]: the key is an IPv6 one.
const WIDE: u32 = 1;
/// In [`Entry::flags`]: the connection's originator is end 1.
pub(super) const REVERSED: u32 = 1 << 1;
/// In [`Entry::flags`]: to be looked at by the next sweep even if nothing was counted.
pub(super) const ATTENTION: u32 = 1 << 2;
/// In [`Entry::flags`]: its deletion is asked for.
pub(super) const DELETING: u32 = 1 << 3;
/// In [`Entry::flags`]: it is one.
const LIVE: u32 = 1 << 4;
/// In [`Entry::flags`], by direction: its take-over was told of, so the next owner may be another.
pub(super) const HANDED_OVER: [u32; 2] = [1 << 5, 1 << 6];
/// In [`Entry::flags`]: a sweep found it ahead of a take-over that was not told of yet.
pub(super) const AHEAD: u32 = 1 << 7;

/// One map entry. A sweep that finds nothing new reads the first cache line alone.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Entry {
    /// The key in the IPv4 map; in the IPv6 map the first address stands for its number among the wide keys.
    key: Key4,
    /// The map's counters as they were last seen.
    pub(super) seen: Counters,
    pub(super) generation: u32,
    /// The connection whose packets it sees.
    pub(super) connection: u32,
    pub(super) flags: u32,
    /// What owners before the present ones counted for the connection.
    pub(super) portions: u32,
    /// The map's counters up to which each direction's packets are in portions (or were another connection's).
    pub(super) booked: Counters,
    /// The points that count each direction.
    pub(super) owner: [u32; 2],
}

const _: () = assert!(size_of::<Entry>() == 128);

impl Entry {
    #[inline]
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(super) fn set(&mut self, flag: u32, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    /// The counters in the order of the connection.
    #[inline]
    pub(super) fn oriented(&self, counters: Counters) -> Counters {
        let [a, b, c, d] = counters;
        if self.has(REVERSED) { [c, d, a, b] } else { counters }
    }

    /// Whether a Pod's own interface counts here.
    pub(super) fn at_pod(&self) -> bool {
        self.owner.iter().any(|owner| abi::owner::is_pod(*owner))
    }
}

/// All of them, found by key.
#[derive(Debug)]
pub(super) struct Entries {
    slab: Slab<Entry>,
    wide: Slab<Key6>,
    narrow_index: HashTable<u32>,
    wide_index: HashTable<u32>,
    hasher: RandomState,
}

impl Entries {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slab: Slab::with_capacity(capacity),
            wide: Slab::with_capacity(0),
            narrow_index: HashTable::with_capacity(capacity),
            wide_index: HashTable::new(),
            hasher: RandomState::default(),
        }
    }

    /// Entries of the IPv4 map and of the IPv6 map.
    pub(super) fn lengths(&self) -> [usize; 2] {
        [self.narrow_index.len(), self.wide_index.len()]
    }

    /// The numbers of all that there are.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.slab.numbers().filter(|slot| self.slab[*slot].has(LIVE))
    }

    /// One, if there is one.
    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        (slot != NONE).then(|| &self.slab[slot])
    }

    pub(super) fn key(&self, slot: u32) -> Key {
        let entry = &self.slab[slot];
        if entry.has(WIDE) { Key::V6(self.wide[entry.key.addr[0]]) } else { Key::V4(entry.key) }
    }

    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        match key {
            Key::V4(key) => self.find_narrow(self.hash_narrow(key), key),
            Key::V6(key) => self.find_wide(self.hash_wide(key), key),
        }
    }

    #[inline]
    pub(super) fn hash_narrow(&self, key: &Key4) -> u64 {
        hash_narrow(&self.hasher, key)
    }

    #[inline]
    pub(super) fn hash_wide(&self, key: &Key6) -> u64 {
        hash_wide(&self.hasher, key)
    }

    #[inline]
    pub(super) fn find_narrow(&self, hash: u64, key: &Key4) -> Option<u32> {
        self.narrow_index.find(hash, |slot| self.slab[*slot].key == *key).copied()
    }

    #[inline]
    pub(super) fn find_wide(&self, hash: u64, key: &Key6) -> Option<u32> {
        self.wide_index.find(hash, |slot| self.wide[self.slab[*slot].key.addr[0]] == *key).copied()
    }

    /// A new entry, nothing of which was seen yet.
    pub(super) fn insert(&mut self, key: &Key, generation: u32) -> u32 {
        let (narrow, flags) = match key {
            Key::V4(key) => (*key, LIVE),
            Key::V6(key) => (Key4 { addr: [self.wide.insert(*key), 0], ..Key4::default() }, LIVE | WIDE),
        };
        let slot = self.slab.insert(Entry {
            key: narrow,
            seen: [0; 4],
            generation,
            connection: NONE,
            flags,
            portions: NONE,
            booked: [0; 4],
            owner: [0; 2],
        });
        let Self { slab, wide, narrow_index, wide_index, hasher } = self;
        match key {
            Key::V4(key) => {
                let hash = hash_narrow(hasher, key);
                narrow_index.insert_unique(hash, slot, |slot| hash_narrow(hasher, &slab[*slot].key));
            }
            Key::V6(key) => {
                let hash = hash_wide(hasher, key);
                wide_index.insert_unique(hash, slot, |slot| hash_wide(hasher, &wide[slab[*slot].key.addr[0]]));
            }
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let index = match self.key(slot) {
            Key::V4(key) => self.narrow_index.find_entry(hash_narrow(&self.hasher, &key), |other| *other == slot),
            Key::V6(key) => {
                self.wide.remove(self.slab[slot].key.addr[0]);
                self.wide_index.find_entry(hash_wide(&self.hasher, &key), |other| *other == slot)
            }
        };
        if let Ok(entry) = index {
            entry.remove();
        }
        self.slab[slot].flags = 0;
        self.slab.remove(slot);
    }
}

impl std::ops::Index<u32> for Entries {
    type Output = Entry;

    #[inline]
    fn index(&self, slot: u32) -> &Entry {
        &self.slab[slot]
    }
}

impl std::ops::IndexMut<u32> for Entries {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.slab[slot]
    }
}

#[inline]
fn hash_narrow(hasher: &RandomState, key: &Key4) -> u64 {
    let [low, high] = key.addr;
    let mut hasher = hasher.build_hasher();
    hasher.write_u64(u64::from(low) | u64::from(high) << 32);
    hasher.write_u64(rest(key.port, key.protocol, key.scope));
    hasher.finish()
}

#[inline]
fn hash_wide(hasher: &RandomState, key: &Key6) -> u64 {
    let mut hasher = hasher.build_hasher();
    for half in key.addr.as_flattened() {
        hasher.write_u64(*half);
    }
    hasher.write_u64(rest(key.port, key.protocol, key.scope));
    hasher.finish()
}

#[inline]
fn rest(port: [u16; 2], protocol: u8, scope: [u8; 3]) -> u64 {
    let [a, b, c] = scope;
    u64::from(port[0]) | u64::from(port[1]) << 16 | u64::from(u32::from_ne_bytes([protocol, a, b, c])) << 32
}
