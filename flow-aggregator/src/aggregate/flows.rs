//! The flows of one address family: found, changed, exported, buried.
//!
//! Takes decoded records in batches and the passing of time; gives joined flows into a [`Batch`]. Time is a parameter,
//! in seconds of a clock that only goes forward.

mod late;

use super::{
    Counts, Settings,
    cluster::{Cluster, Ends},
    encode::Batch,
    flow::{Exporter, Flow, Numbers, Side, Told},
    item::{Item, Names, take},
    key::{Addr, Key},
    rules::{Outcome, Relation},
    table::{Index, Slab},
    tails::{TailId, Tails},
    tombstones::Tombstones,
};
use crate::correlate::{Half, Role};
use flow_common::{
    expiry::Expiry,
    ipfix::collector::TailHash,
    record::{Cut, FlowType},
    time::Timestamp,
};
use std::hash::BuildHasher;

/// Flows of which the one not heard for longest is taken when the table is full.
const EVICTION_SAMPLE: usize = 16;

/// All flows of one family.
#[derive(Debug)]
pub(super) struct Flows<A> {
    pub(super) tails: Tails,
    pub(super) tombstones: Tombstones<A>,
    slab: Slab<Flow<A>>,
    index: Index,
    expiry: Expiry,
    hasher: foldhash::fast::RandomState,
    settings: Settings,
    fired: Vec<u32>,
    ready: Vec<u32>,
    /// Where the search for a flow to evict goes on.
    hand: u32,
    slots: Vec<Option<u32>>,
}

impl<A: Addr> Flows<A> {
    pub(super) fn new(settings: &Settings, tail_hash: &TailHash) -> Self {
        let horizon = settings.inactive.max(settings.active).max(settings.correlation) + 1;
        Flows {
            tails: Tails::new(A::FAMILY, tail_hash.clone()),
            tombstones: Tombstones::new(settings.max_tombstones),
            slab: Slab::new(),
            index: Index::new(),
            expiry: Expiry::new(0, horizon),
            hasher: foldhash::fast::RandomState::default(),
            settings: settings.clone(),
            fired: Vec::new(),
            ready: Vec::new(),
            hand: 0,
            slots: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    #[inline]
    pub(super) fn item<'a>(&self, exporter: Exporter, told: &Told<'_>, names: Names<'a>) -> Item<'a, A> {
        let (key, client) = Key::of(told.head, told.extended);
        Item { key, client, hash: self.hasher.hash_one(key) as u32, exporter, numbers: Numbers::of(told), names }
    }

    /// All numbers that [`at`](Self::at) may know are below it.
    pub(super) fn slots(&self) -> u32 {
        self.slab.slots()
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Flow<A>> {
        self.slab.at(slot)
    }

    /// Applies records: find all, touch all, change all. Each loop's memory accesses do not depend on one another, so
    /// that the cache misses of one record overlap those of the others.
    pub(super) fn apply(&mut self, items: &[Item<'_, A>], turn: &mut Turn<'_>) {
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        slots.extend(items.iter().map(|item| self.index.find(item.hash, |_| true)));
        self.touch(items, &slots);
        for (item, guess) in items.iter().zip(&slots) {
            self.record(item, *guess, turn);
        }
        self.slots = slots;
        self.export_ready(turn);
    }

    /// Reads a word of each cache line that applying the records needs.
    fn touch(&self, items: &[Item<'_, A>], slots: &[Option<u32>]) {
        let mut sum = 0;
        for (item, slot) in items.iter().zip(slots) {
            let flow = slot.and_then(|slot| self.slab.at(slot));
            sum ^= flow.map_or_else(|| self.tombstones.touch(item.hash), Flow::touch);
            if flow.is_none_or(|flow| flow.sides.iter().any(|side| !side.is_known())) {
                sum ^= self.tails.touch_hash(item.names.tail_hash);
            }
        }
        std::hint::black_box(sum);
    }

    /// What is due by `now`, at most `max` flows; true if there is more.
    pub(super) fn expire(&mut self, max: usize, turn: &mut Turn<'_>) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let more = self.expiry.fire(turn.now, max, &mut fired);
        for slot in fired.drain(..) {
            self.fire(slot, turn);
        }
        self.fired = fired;
        let before = turn.now.saturating_sub(self.settings.tombstone);
        let kept = turn.now >= self.settings.tombstone && self.tombstones.expire(before, max, &mut self.tails);
        self.shrink(max, turn) || more || kept
    }

    /// Other timeouts and bounds from here on. Every flow's deadline is looked at; what is beyond the bounds goes
    /// with [`expire`](Self::expire).
    pub(super) fn configure(&mut self, settings: &Settings, now: u32) {
        self.settings = settings.clone();
        self.tombstones.bound(settings.max_tombstones);
        for slot in 0..self.slab.slots() {
            self.schedule(slot, now);
        }
    }

    /// Evicts what is beyond the bounds, at most `max` flows and as many tombstones; true if there is more.
    fn shrink(&mut self, max: usize, turn: &mut Turn<'_>) -> bool {
        for _ in 0..max {
            if self.slab.len() <= self.settings.max_flows {
                break;
            }
            self.make_room(turn);
        }
        let evicted = self.tombstones.shrink(max, &mut self.tails);
        turn.counts.tombstones_evicted += evicted;
        self.slab.len() > self.settings.max_flows || evicted == max as u64
    }

    /// Exports everything that has news: the process ends.
    pub(super) fn finish(&mut self, turn: &mut Turn<'_>) {
        for slot in 0..self.slab.slots() {
            if self.slab.at(slot).is_some_and(|flow| flow.news) {
                self.export(slot, turn);
            }
        }
    }

    #[inline]
    fn record(&mut self, item: &Item<'_, A>, guess: Option<u32>, turn: &mut Turn<'_>) {
        let slab = &self.slab;
        let is_it = |slot: u32| slab.at(slot).is_some_and(|flow| flow.key == item.key);
        let slot = guess.filter(|slot| is_it(*slot)).or_else(|| self.index.find(item.hash, is_it));
        let known = slot.and_then(|slot| {
            let flow = slab.at(slot)?;
            let side = flow.sides.iter().position(|side| side.exporter == item.exporter)?;
            let same = flow.sides[side].flow_id == item.numbers.flow_id && item.numbers.flow_id != 0
                || flow.relation(side, &item.numbers) == Relation::Same;
            same.then_some((slot, side))
        });
        match known {
            Some((slot, side)) => self.further(slot, side, item, None, turn),
            None => self.first(slot, item, turn),
        }
    }

    /// A record that is not of a half that is known. Its names are looked up once for all that follows.
    #[cold]
    fn first(&mut self, slot: Option<u32>, item: &Item<'_, A>, turn: &mut Turn<'_>) {
        let tail = self.tails.keep(item.names.tail, item.names.tail_hash);
        match slot {
            Some(slot) => self.other(slot, item, tail, turn),
            None => self.unknown(item, tail, turn),
        }
        self.tails.release(tail);
    }

    /// A further record of a half that is known, or whose flow is.
    #[inline]
    fn further(&mut self, slot: u32, side: usize, item: &Item<'_, A>, held: Option<TailId>, turn: &mut Turn<'_>) {
        let Some(flow) = self.slab.at_mut(slot) else { return };
        flow.heard = turn.now;
        let (fresh, names) = (!flow.sides[side].is_known(), flow.sides[side].tail);
        let outcome = take(flow, side, item, held, &mut self.tails);
        let renamed = flow.sides[side].tail != names;
        if outcome == Outcome::Repeated {
            turn.counts.repeated += 1;
        } else if fresh || !flow.ready || outcome == Outcome::Reopened || flow.has_ended() {
            self.judge(slot, side, fresh, turn);
        } else if renamed {
            self.correct(slot, side, turn);
        }
    }

    /// A record under the key of a flow that may be another connection, another half, or begin anew.
    fn other(&mut self, slot: u32, item: &Item<'_, A>, tail: TailId, turn: &mut Turn<'_>) {
        if let Some(number) = self.buried(item) {
            return self.late(number, item, tail, turn);
        }
        let role = self.role(item, tail);
        let Some(flow) = self.slab.at_mut(slot) else { return };
        let Some(side) = flow.side_of(item.exporter, role) else {
            turn.counts.surplus += 1;
            return;
        };
        match flow.relation(side, &item.numbers) {
            Relation::Same => self.further(slot, side, item, Some(tail), turn),
            Relation::Anew => {
                flow.begin_anew(side, &item.numbers);
                turn.counts.restarted += 1;
                self.further(slot, side, item, Some(tail), turn);
            }
            relation @ (Relation::Reused | Relation::Earlier) => {
                let out_of_step = flow.is_partner_out_of_step(side, &item.numbers);
                // Others under the key may have come and gone before this one was heard of again.
                match self.gone_on(item, tail) {
                    Some(number) => self.late(number, item, tail, turn),
                    None if out_of_step => self.further(slot, side, item, Some(tail), turn),
                    None if relation == Relation::Earlier => self.earlier(item, tail, turn),
                    None => {
                        turn.counts.reused += 1;
                        self.close(slot, turn);
                        self.begin(item, tail, turn);
                    }
                }
            }
        }
    }

    /// A record of no flow in the table.
    fn unknown(&mut self, item: &Item<'_, A>, tail: TailId, turn: &mut Turn<'_>) {
        match self.rest(item, tail) {
            Some(number) => self.late(number, item, tail, turn),
            None => self.begin(item, tail, turn),
        }
    }

    /// A new flow.
    fn begin(&mut self, item: &Item<'_, A>, tail: TailId, turn: &mut Turn<'_>) {
        self.make_room(turn);
        if let Some(slot) = self.create(item, tail, turn) {
            self.index.insert(item.hash, slot);
            self.schedule(slot, turn.now);
        }
    }

    /// Nothing if the slab gives no place, which it does.
    fn create(&mut self, item: &Item<'_, A>, tail: TailId, turn: &mut Turn<'_>) -> Option<u32> {
        let role = self.role(item, tail);
        let side = usize::from(role == Some(Role::Destination));
        let slot = self.slab.insert(Flow::new(item.key, turn.now));
        take(self.slab.at_mut(slot)?, side, item, Some(tail), &mut self.tails);
        self.judge(slot, side, true, turn);
        turn.counts.begun += 1;
        Some(slot)
    }

    /// Decides whether the flow is complete, and has it exported if it just became so or is over.
    fn judge(&mut self, slot: u32, side: usize, fresh: bool, turn: &mut Turn<'_>) {
        self.correct(slot, side, turn);
        let Some(flow) = self.slab.at(slot) else { return };
        let half = Half {
            facts: self.tails.facts(flow.sides[side].tail),
            status: flow.sides[side].status,
            translated: flow.client.is_known(),
            src_is_other_node: self.src_is_other_node(flow, side, turn),
        };
        let both = flow.sides.iter().all(Side::is_known);
        let needed = !both && half.needs_partner();
        let Some(flow) = self.slab.at_mut(slot) else { return };
        let completed = !needed && (fresh || !flow.ready);
        if needed && flow.alone {
            // What was complete is not any more: a denied attempt came through.
            flow.ready = false;
            flow.waiting = turn.now;
            self.expiry.schedule(slot, turn.now + self.settings.correlation);
        }
        let left_alone = !both && !needed && !flow.alone;
        flow.alone = !both && !needed;
        flow.ready |= !needed;
        if flow.news && (completed || flow.ready && flow.has_ended()) {
            self.ready.push(slot);
        }
        if left_alone {
            self.correct(slot, side, turn);
        }
    }

    fn role(&self, item: &Item<'_, A>, tail: TailId) -> Option<Role> {
        let facts = self.tails.facts(tail);
        let translated = item.client.is_known();
        Half { facts, status: item.numbers.status, translated, src_is_other_node: false }.role()
    }

    /// Whether the originator that the half shows is another Node than its own.
    fn src_is_other_node(&self, flow: &Flow<A>, side: usize, turn: &Turn<'_>) -> bool {
        let Side { tail, exporter, .. } = flow.sides[side];
        self.tails.facts(tail).flow_type == FlowType::FromExternal
            && turn.cluster.is_other_node(flow.key.src.ip(), exporter, turn.now, || self.tails.owned(tail))
    }

    /// Replaces a side's names by what the cluster's index knows better.
    fn correct(&mut self, slot: u32, side: usize, turn: &mut Turn<'_>) {
        if !turn.cluster.is_known() {
            return;
        }
        let Some(flow) = self.slab.at_mut(slot) else { return };
        let src = if flow.client.is_known() { flow.client.addr } else { flow.key.src };
        let at = Timestamp::from_millis(flow.start);
        let ends = Ends { src: src.ip(), dst: flow.key.dst.ip(), at };
        let known = flow.sides[side].tail;
        let Some(tail) = self.tails.owned(known) else { return };
        if let Some(better) = turn.cluster.correct(ends, flow.alone, &tail) {
            let encoded = better.to_encoded(A::FAMILY, turn.cut);
            flow.sides[side].tail = self.tails.keep_new(encoded.bytes());
            self.tails.release(known);
        }
    }

    fn export_ready(&mut self, turn: &mut Turn<'_>) {
        let mut ready = std::mem::take(&mut self.ready);
        let sides = ready.iter().filter_map(|slot| self.slab.at(*slot)).flat_map(|flow| &flow.sides);
        std::hint::black_box(sides.fold(0, |sum, side| sum ^ self.tails.touch(side.tail)));
        for slot in ready.drain(..) {
            // The slot may have been given to another flow since.
            if self.slab.at(slot).is_some_and(|flow| flow.ready) {
                self.export(slot, turn);
            }
        }
        self.ready = ready;
    }

    /// Exports what is known, and buries the flow if it is over.
    fn export(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let Some(flow) = self.slab.at_mut(slot) else { return };
        if !flow.news {
            return;
        }
        turn.batch.push(flow, &self.tails, turn.cluster, turn.cut);
        turn.counts.exported += 1;
        flow.settle(turn.now);
        if flow.has_ended() {
            self.bury(slot, turn);
        }
    }

    /// Exports the flow with what it has, if that is news, and leaves its tombstone.
    fn close(&mut self, slot: u32, turn: &mut Turn<'_>) {
        self.export(slot, turn);
        self.bury(slot, turn);
    }

    fn bury(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let Some(flow) = self.slab.at_mut(slot) else { return };
        let hash = self.hasher.hash_one(flow.key) as u32;
        self.index.remove(hash, slot);
        self.expiry.cancel(slot);
        turn.counts.tombstones_evicted += self.tombstones.bury(flow, hash, turn.now, &mut self.tails);
        self.slab.remove(slot);
    }

    /// In a full table, of some flows the one that was not heard of for longest goes.
    fn make_room(&mut self, turn: &mut Turn<'_>) {
        if self.slab.len() < self.settings.max_flows {
            return;
        }
        let slots = self.slab.slots();
        let mut oldest: Option<(u32, u32)> = None;
        let mut seen = 0;
        for _ in 0..slots {
            self.hand = (self.hand + 1) % slots;
            let Some(flow) = self.slab.at(self.hand) else { continue };
            if oldest.is_none_or(|(heard, _)| flow.heard < heard) {
                oldest = Some((flow.heard, self.hand));
            }
            seen += 1;
            if seen == EVICTION_SAMPLE {
                break;
            }
        }
        if let Some((_, slot)) = oldest {
            turn.counts.evicted += 1;
            self.close(slot, turn);
        }
    }

    fn find(&self, item: &Item<'_, A>) -> Option<u32> {
        self.index.find(item.hash, |slot| self.slab.at(slot).is_some_and(|flow| flow.key == item.key))
    }

    /// A flow whose deadline may have come: what the deadline is depends on what happened since it was set.
    fn fire(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let Some(flow) = self.slab.at_mut(slot) else { return };
        if flow.heard.saturating_add(self.settings.inactive) <= turn.now {
            if !flow.ready {
                turn.counts.uncorrelated += 1;
            }
            return self.close(slot, turn);
        }
        if !flow.ready && flow.waiting.saturating_add(self.settings.correlation) <= turn.now {
            turn.counts.uncorrelated += 1;
            flow.ready = true;
            self.export(slot, turn);
        } else if flow.ready && flow.news && flow.exported.saturating_add(self.settings.active) <= turn.now {
            self.export(slot, turn);
        }
        self.schedule(slot, turn.now);
    }

    /// When the flow is to be looked at next: lazily, so that a record needs to touch nothing here.
    fn schedule(&mut self, slot: u32, now: u32) {
        let Some(flow) = self.slab.at(slot) else { return };
        let settings = &self.settings;
        let inactive = flow.heard.saturating_add(settings.inactive);
        let next = if flow.ready {
            let active = flow.exported.saturating_add(settings.active);
            // Without news since the last export the flow is looked at again an active timeout from now.
            inactive.min(if active > now { active } else { now + settings.active })
        } else {
            inactive.min(flow.waiting.saturating_add(settings.correlation))
        };
        self.expiry.schedule(slot, next.max(now + 1));
    }
}

/// What a call comes with: the time, what is known of the cluster, and where results go.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) now: u32,
    pub(super) cluster: &'a Cluster,
    pub(super) batch: &'a mut Batch,
    pub(super) counts: &'a mut Counts,
    pub(super) cut: &'a mut Cut,
}
