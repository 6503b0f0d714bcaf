//! Where flows live: a slab in chunks, and an index of (hash, slot) in front of it.
//!
//! A look-up touches the slab only where the flow is, the index grows without touching it, and growth of the slab moves
//! nothing. The index is in parts that grow each for itself: growing a large one would stop everything for milliseconds,
//! and one that is reserved for the bound is spread over more memory than few flows need. Knows nothing of what a flow is.

use hashbrown::HashTable;

const CHUNK: usize = 1024;

/// Values under stable numbers.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    /// A stack: the slot freed last is the one in the caches.
    free: Vec<u32>,
    live: usize,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Slab { chunks: Vec::new(), free: Vec::new(), live: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// How many slots there are, live or free: all numbers are below it.
    pub(super) fn slots(&self) -> u32 {
        self.chunks.last().map_or(0, |last| ((self.chunks.len() - 1) * CHUNK + last.len()) as u32)
    }

    #[inline]
    pub(super) fn at(&self, slot: u32) -> Option<&T> {
        let slot = slot as usize;
        self.chunks.get(slot / CHUNK)?.get(slot % CHUNK)?.as_ref()
    }

    #[inline]
    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        let slot = slot as usize;
        self.chunks.get_mut(slot / CHUNK)?.get_mut(slot % CHUNK)?.as_mut()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.live += 1;
        if let Some(slot) = self.free.pop() {
            self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] = Some(value);
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let slot = self.slots();
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(Some(value));
        }
        slot
    }

    /// False if there is none. Its room is given to the next.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        let index = slot as usize;
        let entry = self.chunks.get_mut(index / CHUNK).and_then(|chunk| chunk.get_mut(index % CHUNK));
        let Some(entry) = entry.filter(|entry| entry.is_some()) else { return false };
        *entry = None;
        self.live -= 1;
        self.free.push(slot);
        true
    }
}

/// Bits of the hash that choose the part of the index.
const PART: u32 = 6;

/// Numbers found by a 32-bit hash and the caller's comparison.
#[derive(Debug)]
pub(super) struct Index([HashTable<(u32, u32)>; 1 << PART]);

impl Index {
    pub(super) fn new() -> Self {
        Index([const { HashTable::new() }; 1 << PART])
    }

    /// The first number under `hash` that `is_it` accepts.
    #[inline]
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let part = &self.0[part(hash)];
        part.find(widen(hash), |entry| entry.0 == hash && is_it(entry.1)).map(|entry| entry.1)
    }

    #[inline]
    pub(super) fn insert(&mut self, hash: u32, number: u32) {
        self.0[part(hash)].insert_unique(widen(hash), (hash, number), |entry| widen(entry.0));
    }

    #[inline]
    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        if let Ok(entry) = self.0[part(hash)].find_entry(widen(hash), |entry| *entry == (hash, number)) {
            entry.remove();
        }
    }
}

#[inline]
fn part(hash: u32) -> usize {
    (hash >> (u32::BITS - PART)) as usize
}

/// The table's buckets come from the low bits and its control bytes from the high ones.
#[inline]
fn widen(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn slab_and_index_are_a_map(steps in prop::collection::vec((any::<bool>(), 0..40_u64), 0..3000)) {
            let (mut slab, mut index, mut model) = (Slab::new(), Index::new(), BTreeMap::new());
            for (insert, key) in steps {
                // Few hashes, so that they collide, of several parts.
                let hash = (key % 7) as u32 * 0x1234_5678;
                let found = index.find(hash, |slot| slab.at(slot) == Some(&key));
                prop_assert_eq!(found, model.get(&key).copied());
                match (insert, found) {
                    (true, None) => {
                        let slot = slab.insert(key);
                        index.insert(hash, slot);
                        model.insert(key, slot);
                    }
                    (false, Some(slot)) => {
                        index.remove(hash, slot);
                        prop_assert!(slab.remove(slot));
                        prop_assert!(!slab.remove(slot));
                        model.remove(&key);
                    }
                    _ => {}
                }
                prop_assert_eq!(slab.len(), model.len());
                prop_assert!(model.values().all(|slot| *slot < slab.slots()));
            }
        }
    }
}
