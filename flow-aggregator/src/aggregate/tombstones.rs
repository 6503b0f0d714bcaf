//! What stays of flows that are over or were not heard of for long: enough to tell a repeat, and to go on counting
//! where one is heard of again.
//!
//! Takes flows and gives them back; all live equally long, so they stand in order of time, with an index by key beside
//! them. Bounded in number: beyond it the oldest go first. Names are shared with [`Tails`] and released there.

use super::{
    flow::{Counters, DESTINATION, Exporter, Flow, Rare, SOURCE, Side},
    key::{Addr, Client, Key},
    table::Index,
    tails::{TailId, Tails},
};
use flow_common::record::{EndReason, ForwardingStatus};
use std::collections::VecDeque;

const CHUNK: usize = 1024;

#[derive(Debug)]
struct Tombstone<A> {
    key: Key<A>,
    client: Client<A>,
    sides: [Buried; 2],
    rare: Option<Box<Rare>>,
    start: u64,
    end: u64,
    hash: u32,
    /// Second of the burial.
    since: u32,
    icmp: u16,
    alone: bool,
}

#[derive(Clone, Copy, Debug)]
struct Buried {
    total: Counters,
    exporter: Exporter,
    flow_id: u64,
    dropped: u32,
    tail: TailId,
    flags: [u16; 2],
    reason: EndReason,
    status: ForwardingStatus,
}

/// Tombstones of one family.
#[derive(Debug)]
pub(super) struct Tombstones<A> {
    /// In order of time; what was revived is `None`.
    chunks: VecDeque<Vec<Option<Tombstone<A>>>>,
    /// Number of the first tombstone of the first chunk. Numbers wrap around.
    first: u32,
    /// How many of the first chunk are past.
    past: usize,
    index: Index,
    live: usize,
    max: usize,
}

impl<A: Addr> Tombstones<A> {
    pub(super) fn new(max: usize) -> Self {
        Tombstones { chunks: VecDeque::new(), first: 0, past: 0, index: Index::with_capacity(0), live: 0, max }
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Keeps what stays of `flow`, whose tails it takes over. Gives how many older ones had to go for it.
    pub(super) fn bury(&mut self, flow: Flow<A>, hash: u32, now: u32, tails: &mut Tails) -> u64 {
        if self.max == 0 {
            release(&flow.sides.map(|side| side.tail), tails);
            return 1;
        }
        // Two at most, so that a lowered bound is come down to without one burial paying for all.
        let mut evicted = 0;
        while evicted < 2 && self.live >= self.max && self.drop_oldest(tails) {
            evicted += 1;
        }
        if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push_back(Vec::with_capacity(CHUNK));
        }
        let number = self.first.wrapping_add(((self.chunks.len() - 1) * CHUNK) as u32);
        if let Some(chunk) = self.chunks.back_mut() {
            self.index.insert(hash, number.wrapping_add(chunk.len() as u32));
            chunk.push(Some(Tombstone::of(flow, hash, now)));
            self.live += 1;
        }
        evicted
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

    /// The number of a tombstone of this key that is of the connection with this flow id.
    pub(super) fn with_flow_id(&self, key: &Key<A>, hash: u32, flow_id: u64) -> Option<u32> {
        self.find(key, hash, |tombstone| tombstone.sides.iter().any(|side| side.flow_id == flow_id))
    }

    /// The number of a tombstone of this key that `is_it` accepts, given as the flow it was.
    pub(super) fn matching(&self, key: &Key<A>, hash: u32, is_it: impl Fn(&Flow<A>) -> bool) -> Option<u32> {
        self.find(key, hash, |tombstone| is_it(&tombstone.flow()))
    }

    /// The flow as it was buried; the tombstone and its tails stay.
    pub(super) fn view(&self, number: u32) -> Option<Flow<A>> {
        self.at(number).map(Tombstone::flow)
    }

    /// Takes a tombstone away whose flow lives again; the tails are the flow's.
    pub(super) fn revive(&mut self, number: u32) {
        let (chunk, at) = self.place(number);
        if let Some(entry) = self.chunks.get_mut(chunk).and_then(|chunk| chunk.get_mut(at))
            && let Some(tombstone) = entry.take()
        {
            self.index.remove(tombstone.hash, number);
            self.live -= 1;
        }
    }

    /// Forgets what was buried at second `before` or earlier, at most `max` of them. True if there are more.
    pub(super) fn expire(&mut self, before: u32, max: usize, tails: &mut Tails) -> bool {
        for _ in 0..max {
            match self.oldest() {
                Some(Some(tombstone)) if tombstone.since > before => return false,
                Some(_) => self.drop_oldest(tails),
                None => return false,
            };
        }
        true
    }

    fn oldest(&self) -> Option<Option<&Tombstone<A>>> {
        self.chunks.front()?.get(self.past).map(Option::as_ref)
    }

    /// False if there is none.
    fn drop_oldest(&mut self, tails: &mut Tails) -> bool {
        let Some(chunk) = self.chunks.front_mut() else { return false };
        let Some(entry) = chunk.get_mut(self.past) else { return false };
        if let Some(tombstone) = entry.take() {
            self.index.remove(tombstone.hash, self.first.wrapping_add(self.past as u32));
            release(&tombstone.sides.map(|side| side.tail), tails);
            self.live -= 1;
        }
        self.past += 1;
        if self.past == CHUNK {
            self.chunks.pop_front();
            self.first = self.first.wrapping_add(CHUNK as u32);
            self.past = 0;
        }
        true
    }

    fn find(&self, key: &Key<A>, hash: u32, is_it: impl Fn(&Tombstone<A>) -> bool) -> Option<u32> {
        self.index
            .find(hash, |number| self.at(number).is_some_and(|tombstone| tombstone.key == *key && is_it(tombstone)))
    }

    fn at(&self, number: u32) -> Option<&Tombstone<A>> {
        let (chunk, at) = self.place(number);
        self.chunks.get(chunk)?.get(at)?.as_ref()
    }

    fn place(&self, number: u32) -> (usize, usize) {
        let offset = number.wrapping_sub(self.first) as usize;
        (offset / CHUNK, offset % CHUNK)
    }
}

impl<A: Addr> Tombstone<A> {
    fn of(flow: Flow<A>, hash: u32, since: u32) -> Self {
        Tombstone {
            key: flow.key,
            client: flow.client,
            sides: flow.sides.map(|side| Buried {
                total: side.total,
                exporter: side.exporter,
                flow_id: side.flow_id,
                dropped: u32::try_from(side.dropped).unwrap_or(u32::MAX),
                tail: side.tail,
                flags: side.flags,
                reason: side.reason,
                status: side.status,
            }),
            start: flow.start,
            end: flow.end(),
            hash,
            since,
            icmp: flow.icmp,
            alone: flow.alone,
            rare: flow.rare,
        }
    }

    /// The flow, exported with what it had. A side's own times are those of the flow.
    fn flow(&self) -> Flow<A> {
        let mut flow = Flow::new(self.key, self.since);
        flow.client = self.client;
        flow.rare = self.rare.clone();
        flow.start = self.start;
        flow.icmp = self.icmp;
        flow.alone = self.alone;
        flow.ready = true;
        for at in [SOURCE, DESTINATION] {
            let buried = &self.sides[at];
            if buried.exporter == Exporter::default() {
                continue;
            }
            flow.sides[at] = Side {
                total: buried.total,
                start: self.start,
                end: self.end,
                flow_id: buried.flow_id,
                dropped: buried.dropped.into(),
                exporter: buried.exporter,
                tail: buried.tail,
                flags: buried.flags,
                reason: buried.reason,
                status: buried.status,
                ..Side::default()
            };
        }
        flow.settle(self.since);
        flow
    }
}

pub(super) fn release(ids: &[TailId; 2], tails: &mut Tails) {
    for id in ids {
        tails.release(*id);
    }
}
