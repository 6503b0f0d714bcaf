//! What stays of flows that are over or were not heard of for long: enough to tell a repeat, and to go on counting
//! where one is heard of again.
//!
//! Takes flows and gives them back; all live equally long, so they stand in order of time, as bytes in chunks, with an
//! index by key beside them. Bounded in number: beyond it the oldest go first. Names are shared with [`Tails`] and released
//! there.

mod entry;

use super::{
    flow::{DESTINATION, Flow, Rare, SOURCE},
    key::{Addr, Key},
    table::Index,
    tails::{TailId, Tails},
};
use entry::Entry;
use std::{
    collections::{HashMap, VecDeque},
    marker::PhantomData,
};

/// Bytes of a chunk. A tombstone's number is the number of its chunk, and behind that its place there.
const CHUNK: usize = 1 << 16;

/// Tombstones of one family.
#[derive(Debug)]
pub(super) struct Tombstones<A> {
    /// In order of time.
    chunks: VecDeque<Vec<u8>>,
    /// Number of the first chunk. Numbers wrap around.
    first: u16,
    /// Bytes of the first chunk that are past.
    past: usize,
    index: Index,
    /// What few flows have, by the tombstone's number.
    rare: HashMap<u32, Box<Rare>>,
    live: usize,
    max: usize,
    scratch: Vec<u8>,
    family: PhantomData<A>,
}

impl<A: Addr> Tombstones<A> {
    pub(super) fn new(max: usize) -> Self {
        Tombstones {
            chunks: VecDeque::new(),
            first: 0,
            past: 0,
            index: Index::new(),
            rare: HashMap::new(),
            live: 0,
            max,
            scratch: Vec::new(),
            family: PhantomData,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Keeps what stays of `flow`, whose tails it takes over. Gives how many older ones had to go for it.
    pub(super) fn bury(&mut self, flow: &mut Flow<A>, hash: u32, now: u32, tails: &mut Tails) -> u64 {
        if self.max == 0 {
            release([SOURCE, DESTINATION].map(|side| flow.sides[side].tail), tails);
            return 1;
        }
        // Two at most, so that a lowered bound is come down to without one burial paying for all.
        let mut evicted = 0;
        while evicted < 2 && self.live >= self.max && self.drop_oldest(tails) {
            evicted += 1;
        }
        entry::write(flow, hash, now, &mut self.scratch);
        if self.chunks.back().is_none_or(|chunk| chunk.len() + self.scratch.len() > CHUNK) {
            evicted += self.add_chunk(tails);
        }
        let chunk_number = self.first.wrapping_add((self.chunks.len() - 1) as u16);
        if let Some(chunk) = self.chunks.back_mut() {
            let number = u32::from(chunk_number) << 16 | chunk.len() as u32;
            chunk.extend_from_slice(&self.scratch);
            self.index.insert(hash, number);
            self.rare.extend(flow.rare.take().map(|rare| (number, rare)));
            self.live += 1;
        }
        evicted
    }

    /// Numbers of chunks are told apart only so far: of more the oldest goes.
    fn add_chunk(&mut self, tails: &mut Tails) -> u64 {
        let before = self.live;
        if self.chunks.len() > usize::from(u16::MAX) {
            let first = self.first;
            while self.first == first && self.drop_oldest(tails) {}
        }
        self.chunks.push_back(Vec::with_capacity(CHUNK));
        self.drop_past_chunk();
        (before - self.live) as u64
    }

    /// From here on so many at most; what is beyond goes by [`shrink`](Self::shrink).
    pub(super) fn bound(&mut self, max: usize) {
        self.max = max;
    }

    /// Drops the oldest beyond the bound, at most `max` of them. Gives how many went.
    pub(super) fn shrink(&mut self, max: usize, tails: &mut Tails) -> u64 {
        let mut evicted = 0;
        while evicted < max as u64 && self.live > self.max && self.drop_oldest(tails) {
            evicted += 1;
        }
        evicted
    }

    /// A word of what [`is_there`](Self::is_there) needs, so that it comes early.
    #[inline]
    pub(super) fn touch(&self, hash: u32) -> u64 {
        self.index.find(hash, |_| true).map_or(0, u64::from)
    }

    /// Whether there is a tombstone of this key.
    pub(super) fn is_there(&self, key: &Key<A>, hash: u32) -> bool {
        self.find(key, hash, |_| true).is_some()
    }

    /// The number of a tombstone of this key that is of the connection with this flow id.
    pub(super) fn with_flow_id(&self, key: &Key<A>, hash: u32, flow_id: u64) -> Option<u32> {
        self.find(key, hash, |number| self.at(number).is_some_and(|entry| entry.flow_ids().contains(&flow_id)))
    }

    /// The number of a tombstone of this key that `is_it` accepts, given as the flow it was.
    pub(super) fn matching(&self, key: &Key<A>, hash: u32, is_it: impl Fn(&Flow<A>) -> bool) -> Option<u32> {
        self.find(key, hash, |number| self.view(number).is_some_and(|flow| is_it(&flow)))
    }

    /// The flow as it was buried, exported with what it had; the tombstone and its tails stay.
    pub(super) fn view(&self, number: u32) -> Option<Flow<A>> {
        let entry = self.at(number)?;
        let mut flow = entry.flow();
        flow.rare = self.rare.get(&number).cloned();
        flow.settle(entry.since());
        Some(flow)
    }

    /// Takes a tombstone away whose flow lives again; the tails are the flow's.
    pub(super) fn revive(&mut self, number: u32) {
        let Some(hash) = self.at(number).map(Entry::hash) else { return };
        let (chunk, at) = self.place(number);
        if let Some(bytes) = self.chunks.get_mut(chunk).and_then(|chunk| chunk.get_mut(at..)) {
            entry::mark_gone(bytes);
        }
        self.index.remove(hash, number);
        self.rare.remove(&number);
        self.live -= 1;
    }

    /// Forgets what was buried at second `before` or earlier, at most `max` of them. True if there are more.
    pub(super) fn expire(&mut self, before: u32, max: usize, tails: &mut Tails) -> bool {
        for _ in 0..max {
            match self.oldest() {
                Some(entry) if entry.is_live() && entry.since() > before => return false,
                Some(_) => self.drop_oldest(tails),
                None => return false,
            };
        }
        true
    }

    fn oldest(&self) -> Option<Entry<'_>> {
        Entry::first_of(self.chunks.front()?.get(self.past..)?)
    }

    /// False if there is none.
    fn drop_oldest(&mut self, tails: &mut Tails) -> bool {
        let Some(oldest) = self.oldest() else { return false };
        let (length, hash, ids) = (oldest.len(), oldest.hash(), oldest.tails());
        if oldest.is_live() {
            let number = u32::from(self.first) << 16 | self.past as u32;
            self.index.remove(hash, number);
            if !self.rare.is_empty() {
                self.rare.remove(&number);
            }
            release(ids, tails);
            self.live -= 1;
        }
        self.past += length;
        self.drop_past_chunk();
        true
    }

    /// A chunk of which all is past goes, unless it is still written to.
    fn drop_past_chunk(&mut self) {
        if self.chunks.len() > 1 && self.chunks.front().is_some_and(|chunk| self.past == chunk.len()) {
            self.chunks.pop_front();
            self.first = self.first.wrapping_add(1);
            self.past = 0;
        }
    }

    fn find(&self, key: &Key<A>, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.index.find(hash, |number| self.at(number).is_some_and(|entry| entry.key() == *key) && is_it(number))
    }

    fn at(&self, number: u32) -> Option<Entry<'_>> {
        let (chunk, at) = self.place(number);
        Entry::first_of(self.chunks.get(chunk)?.get(at..)?)
    }

    fn place(&self, number: u32) -> (usize, usize) {
        let chunk = ((number >> 16) as u16).wrapping_sub(self.first);
        (chunk.into(), number as usize % CHUNK)
    }
}

fn release(ids: [TailId; 2], tails: &mut Tails) {
    for id in ids {
        tails.release(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_common::{ipfix::collector::TailHash, record::Family};
    use std::net::Ipv4Addr;

    fn key(number: u32) -> Key<Ipv4Addr> {
        Key { src: Ipv4Addr::from_bits(number), dst: Ipv4Addr::NONE, src_port: 1, dst_port: 2, protocol: 6 }
    }

    #[test]
    fn all_that_was_buried_is_found_until_it_goes_wherever_chunks_end() {
        let (mut tombstones, mut tails) = (Tombstones::new(10_000), Tails::new(Family::V4, TailHash::new(1)));
        for round in 0..3_000 {
            // Alone, so that a chunk is now and then full of what is past; or many, over the end of one.
            let numbers = round * 200..round * 200 + if round % 50 == 0 { 137 } else { 1 };
            for number in numbers.clone() {
                tombstones.bury(&mut Flow::new(key(number), round), number % 7, round, &mut tails);
            }
            assert!(numbers.clone().all(|number| tombstones.is_there(&key(number), number % 7)));
            if round % 3 == 0 {
                let first = numbers.start;
                tombstones.revive(tombstones.matching(&key(first), first % 7, |_| true).unwrap());
                assert_eq!(tombstones.len(), numbers.len() - 1);
            }
            assert!(!tombstones.expire(round, 1_000, &mut tails));
            assert!(tombstones.len() == 0 && tombstones.chunks.len() == 1, "round {round}");
        }
    }

    #[test]
    fn the_oldest_make_room_beyond_the_bound() {
        let (mut tombstones, mut tails) = (Tombstones::new(1_500), Tails::new(Family::V4, TailHash::new(1)));
        let mut bury = |number| tombstones.bury(&mut Flow::new(key(number), 0), number, 0, &mut tails);
        let evicted: u64 = (0..5_000).map(&mut bury).sum();
        assert_eq!((evicted, tombstones.len()), (3_500, 1_500));
        assert!(!tombstones.is_there(&key(3_499), 3_499) && tombstones.is_there(&key(3_500), 3_500));
        assert!(tombstones.chunks.len() <= 3, "chunks of which all is past are gone");
    }
}
