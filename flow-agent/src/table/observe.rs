//! What the kernel programs counted, by event or by sweep, into the connections.
//!
//! Each value is compared with what was known of its entry; what grew belongs to the entry's connection. A value that
//! is older than what is known (a ring read after the sweep) adds nothing, so the order in which values come changes no
//! sum. A value under another owner than the known one waits for the event of the take-over, which tells what was whose.

use std::hint::black_box;

use flow_common::abi::{self, Key4, Key6};
use flow_common::time::Timestamp;

use super::Table;
use super::connection::{
    CLOSED, Connection, DETACHED, DONE, EXPORTED, FIXED, FRAGMENTED, FROM_END_1, IDLE, OVER, Reason, SCHEDULED,
};
use super::counters::{Counters, base, difference};
use super::entry::{AHEAD, ATTENTION, DELETING, HANDED_OVER, REVERSED};
use super::key::Key;
use super::ledger::Class;
use super::slab::NONE;
use super::time::{STRAYS_NS, since};
use crate::kernel::{Clock, Slice};

/// Entries that a sweep works on at a time: enough for their cache misses to overlap.
const BLOCK: usize = 128;

/// When and how a value was read.
pub(super) struct Look<'a> {
    pub(super) clock: &'a Clock,
    pub(super) now_ns: u64,
    /// By a sweep, which may also find that a flow is due or an entry may be deleted.
    pub(super) sweeping: bool,
}

impl Table {
    pub(super) fn observe_events(&mut self, events: &[abi::Event], look: &Look<'_>) {
        for event in events {
            let key = if event.family == 4 { Key::V4(event.key.to_key4()) } else { Key::V6(event.key) };
            self.observe(&key, &event.flow, look);
            if event.kind & !1 == abi::EVENT_TAKEOVER
                && let Some(slot) = self.entries.find(&key)
            {
                self.hand_over(slot, (event.kind & 1) as usize, &event.flow);
            }
            if event.kind == abi::EVENT_REFUSED {
                self.refuse(&key, look);
            }
        }
    }

    /// From here on another point counts this direction.
    fn hand_over(&mut self, slot: u32, direction: usize, value: &abi::Flow) {
        if value.generation != self.entries[slot].generation {
            // The present one has begun since.
            return self.entries[slot].set(HANDED_OVER[direction], true);
        }
        self.entries[slot].set(AHEAD, false);
        self.ledger.change_owner(&mut self.entries[slot], direction, value.direction[direction].candidate);
        let number = self.entries[slot].connection;
        if number != NONE {
            self.choose(number);
        }
    }

    pub(super) fn observe_slice(&mut self, slice: &Slice, look: &Look<'_>) {
        for (keys, flows) in slice.keys4.chunks(BLOCK).zip(slice.flows4.chunks(BLOCK)) {
            self.observe_narrow(keys, flows, look);
        }
        for (keys, flows) in slice.keys6.chunks(BLOCK).zip(slice.flows6.chunks(BLOCK)) {
            self.observe_wide(keys, flows, look);
        }
    }

    /// One value by its key.
    pub(super) fn observe(&mut self, key: &Key, value: &abi::Flow, look: &Look<'_>) {
        let slot = self.entries.find(key).unwrap_or_else(|| self.insert_entry(key, value));
        self.take_in(slot, value, look);
    }

    /// Hashes all, finds all, and goes on with what is new: the memory of 128 entries is waited for at once.
    fn observe_narrow(&mut self, keys: &[Key4], flows: &[abi::Flow], look: &Look<'_>) {
        let (mut hashes, mut slots) = ([0; BLOCK], [NONE; BLOCK]);
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.entries.hash_narrow(key);
        }
        for ((slot, hash), key) in slots.iter_mut().zip(hashes).zip(keys) {
            *slot = self.entries.find_narrow(hash, key).unwrap_or(NONE);
        }
        self.observe_block(&slots, flows, look, |at| Key::V4(keys[at]));
    }

    fn observe_wide(&mut self, keys: &[Key6], flows: &[abi::Flow], look: &Look<'_>) {
        let (mut hashes, mut slots) = ([0; BLOCK], [NONE; BLOCK]);
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.entries.hash_wide(key);
        }
        for ((slot, hash), key) in slots.iter_mut().zip(hashes).zip(keys) {
            *slot = self.entries.find_wide(hash, key).unwrap_or(NONE);
        }
        self.observe_block(&slots, flows, look, |at| Key::V6(keys[at]));
    }

    fn observe_block(
        &mut self,
        slots: &[u32; BLOCK],
        flows: &[abi::Flow],
        look: &Look<'_>,
        key: impl Fn(usize) -> Key,
    ) {
        let (mut changed, mut count) = ([0; BLOCK], 0);
        for (at, (slot, flow)) in slots.iter().zip(flows).enumerate() {
            changed[count] = at;
            count += usize::from(*slot == NONE || self.is_news(*slot, flow));
        }
        for at in &changed[..count] {
            if slots[*at] != NONE {
                self.touch(slots[*at]);
            }
        }
        for at in &changed[..count] {
            match slots[*at] {
                NONE => self.observe(&key(*at), &flows[*at], look),
                slot => self.take_in(slot, &flows[*at], look),
            }
        }
    }

    #[inline]
    fn is_news(&self, slot: u32, flow: &abi::Flow) -> bool {
        let entry = &self.entries[slot];
        flow.counters() != entry.seen || entry.has(ATTENTION)
    }

    /// Brings the connection's memory near.
    #[inline]
    fn touch(&self, slot: u32) {
        let number = self.entries[slot].connection;
        if number != NONE {
            let connection = &self.connections[number];
            // It lies on three cache lines, the entry's second half on another.
            black_box([
                connection.total[0],
                connection.last_ns,
                u64::from(connection.flags),
                self.entries[slot].booked[0],
            ]);
        }
    }

    /// An entry that was not known. Where it had generations before the present one, their packets are found as the
    /// difference to nothing.
    fn insert_entry(&mut self, key: &Key, value: &abi::Flow) -> u32 {
        let had_others = base(value) != [0; 4];
        if had_others && self.inheriting {
            let slot = self.entries.insert(key, value.generation);
            self.leave_generations(slot, value);
            return slot;
        }
        self.entries.insert(key, if had_others { value.generation.wrapping_sub(1) } else { value.generation })
    }

    /// Compares a value with what is known of its entry.
    fn take_in(&mut self, slot: u32, value: &abi::Flow, look: &Look<'_>) {
        match value.generation.wrapping_sub(self.entries[slot].generation).cast_signed() {
            0 if self.is_ahead(slot, value) && self.waits_for_event(slot, look) => return,
            0 => {}
            newer if newer > 0 => self.renew(slot, value, newer.unsigned_abs(), look),
            _ => {
                self.statistics.stale += 1;
                return;
            }
        }
        let delta = difference(value.counters(), self.entries[slot].seen);
        if delta != [0; 4] {
            self.count(slot, value, delta, look);
        } else if self.entries[slot].has(ATTENTION) && look.sweeping {
            self.attend(slot, value, look);
        }
    }

    /// Whether a value that is ahead is left for later. What one sweep finds so and the next one still does would wait in vain: of two
    /// points that took the direction over at one moment, the one that told of it first was the last to write.
    fn waits_for_event(&mut self, slot: u32, look: &Look<'_>) -> bool {
        let entry = &mut self.entries[slot];
        let waits = !look.sweeping || !entry.has(AHEAD);
        if look.sweeping {
            entry.set(AHEAD, true);
        }
        waits
    }

    /// Whether a direction grew under an owner whose take-over was not told of yet: it came between the last look at the rings and this
    /// one at the map, and the next look at the rings tells.
    pub(super) fn is_ahead(&self, slot: u32, value: &abi::Flow) -> bool {
        let (entry, now) = (&self.entries[slot], value.counters());
        value.direction.iter().enumerate().any(|(at, direction)| {
            let known = entry.owner[at];
            known != 0 && known != direction.owner && now[at * 2] > entry.seen[at * 2] && !entry.has(HANDED_OVER[at])
        })
    }

    /// Begins a new generation of an entry: what it counted up to there was its connection's, which is over.
    fn renew(&mut self, slot: u32, value: &abi::Flow, newer: u32, look: &Look<'_>) {
        self.statistics.generations_missed += u64::from(newer - 1);
        let delta = difference(base(value), self.entries[slot].seen);
        if delta != [0; 4] {
            // All that is known of their time is that they came before this generation.
            let before_ns = look.clock.monotonic_to_wall_ns(value.first_ns).saturating_sub(1);
            if self.entries[slot].connection == NONE {
                self.entries[slot].set(REVERSED, value.state & abi::STATE_REVERSED != 0);
                self.new_connection(slot, before_ns, look.now_ns);
            }
            // The present owner may be the new generation's: only where there was none before, or was told to be another from
            // then on, the old one's last packets are its.
            let entry = &self.entries[slot];
            let is_new = [0, 1].map(|at| entry.owner[at] == 0 || entry.has(HANDED_OVER[at]));
            self.own(slot, value, is_new);
            self.add(slot, delta, &abi::Flow::default(), before_ns);
        }
        self.detach(slot, look.now_ns);
        self.entries[slot].generation = value.generation;
        // Its SYN may have come another way without a take-over being told of.
        self.entries[slot].set(HANDED_OVER[0] | HANDED_OVER[1], true);
    }

    /// Adds what an entry counted since the last look.
    fn count(&mut self, slot: u32, value: &abi::Flow, delta: Counters, look: &Look<'_>) {
        let last_ns = last_ns(value, look.clock);
        self.own(slot, value, [delta[0] > 0, delta[2] > 0]);
        let mut after_ns = 0;
        if self.entries[slot].connection != NONE && self.is_another(slot, last_ns) {
            after_ns = self.connections[self.entries[slot].connection].last_ns + 1;
            self.detach(slot, look.now_ns);
        }
        if self.entries[slot].connection == NONE {
            self.begin(slot, value, after_ns, look);
        }
        self.add(slot, delta, value, last_ns);
        let number = self.entries[slot].connection;
        if self.connections[number].counting != slot {
            return;
        }
        if self.connections[number].has(OVER) {
            return self.schedule(number, look.now_ns + STRAYS_NS);
        }
        if value.state & abi::STATE_CLOSED != 0 {
            self.connections[number].set(CLOSED, true);
            return self.end(number, Reason::End, last_ns);
        }
        self.note_news(number, slot, look);
    }

    /// Makes sure that a connection with news is looked at when it is due.
    fn note_news(&mut self, number: u32, slot: u32, look: &Look<'_>) {
        let connection = &mut self.connections[number];
        let was_idle = connection.has(IDLE);
        connection.set(IDLE, false);
        if was_idle || !connection.has(SCHEDULED) {
            let at = connection.mark_ns.max(look.now_ns) + self.active_ns;
            self.schedule(number, at);
        }
        if look.sweeping && self.is_due_at_sweep(number, look.now_ns) {
            self.queue(number);
        } else {
            self.entries[slot].set(ATTENTION, true);
        }
    }

    /// Adds to the entry and, if it counts for its connection, to that.
    fn add(&mut self, slot: u32, delta: Counters, value: &abi::Flow, last_ns: u64) {
        let entry = &mut self.entries[slot];
        entry.set(DELETING, false);
        for (seen, delta) in entry.seen.iter_mut().zip(delta) {
            *seen += delta;
        }
        let connection = &mut self.connections[entry.connection];
        // The two entries of a translated connection may see its packets in one piece and in many.
        connection.set_if(FRAGMENTED, value.state & abi::STATE_FRAGMENTED != 0);
        if connection.counting == slot {
            connection.add(entry, delta, value, last_ns);
        }
    }

    /// Notes who counts the directions that grew, where that was not told of: at their first packets, and with a new generation.
    fn own(&mut self, slot: u32, value: &abi::Flow, grew: [bool; 2]) {
        let mut changed = false;
        for (at, (direction, grew)) in value.direction.iter().zip(grew).enumerate() {
            if grew && self.entries[slot].owner[at] != direction.owner {
                self.ledger.change_owner(&mut self.entries[slot], at, direction.owner);
                self.entries[slot].set(HANDED_OVER[at] | AHEAD, false);
                changed = true;
            }
        }
        let number = self.entries[slot].connection;
        if changed && number != NONE {
            self.choose(number);
        }
    }

    /// Whether packets that come now belong to another connection than the one that ended on this entry. A TCP
    /// connection that its own packets closed is followed by another only with a new generation.
    fn is_another(&self, slot: u32, last_ns: u64) -> bool {
        let connection = &self.connections[self.entries[slot].connection];
        if !connection.has(OVER) || connection.has(CLOSED) {
            return false;
        }
        last_ns > connection.mark_ns.saturating_add(STRAYS_NS)
            || self
                .tracker
                .find(&self.entries.key(slot))
                .is_some_and(|found| self.tracker[found].id != connection.ct_id)
    }

    /// Gives an entry a connection: the one that connection tracking says it belongs to, else a new one. Not before
    /// `after_ns`: the kernel's ticks are too coarse to tell two apart that follow each other closely.
    fn begin(&mut self, slot: u32, value: &abi::Flow, after_ns: u64, look: &Look<'_>) {
        let key = self.entries.key(slot);
        let first_ns = look.clock.monotonic_to_wall_ns(value.first_ns);
        let tracked = self.tracker.find(&key).filter(|found| self.is_open(*found) && self.may_be(*found, first_ns));
        let reversed = match tracked {
            Some(found) => self.tracker[found].reversed_at(&key),
            None => value.state & abi::STATE_REVERSED != 0,
        };
        self.entries[slot].set(REVERSED, reversed);
        self.entries[slot].set(ATTENTION, false);
        if let Some(found) = tracked
            && self.tracker[found].connection != NONE
        {
            let number = self.tracker[found].connection;
            self.entries[slot].connection = number;
            self.entries[slot].set(ATTENTION, self.connections[number].has(DONE));
            self.connections[number].other = slot;
            self.choose(number);
            return self.claim_drops(slot, look.now_ns);
        }
        // The generation's first packet is this connection's first, unless another was on this entry since.
        let is_first = self.entries[slot].seen == base(value);
        let began_ns = if is_first { first_ns } else { last_ns(value, look.clock) };
        let number = self.new_connection(slot, began_ns.max(after_ns), look.now_ns);
        if let Some(found) = tracked {
            self.tie(number, found);
        }
        self.claim_drops(slot, look.now_ns);
    }

    /// Whether a tracked connection has no flow yet, or one that misses its other entry; even if that flow is over,
    /// what the entry saw is the same packets.
    fn is_open(&self, found: u32) -> bool {
        let number = self.tracker[found].connection;
        number == NONE || !self.connections[number].has(DETACHED) && self.connections[number].other == NONE
    }

    /// Whether a tracked connection is the one that began with this packet. Of those that are over, others and strays may have followed on
    /// the same key.
    fn may_be(&self, found: u32, first_ns: u64) -> bool {
        const NEAR_NS: u64 = 1_000_000_000;
        let tracked = &self.tracker[found];
        let is_near = |start: Timestamp| start < self.born || start.nanos().abs_diff(first_ns) < NEAR_NS;
        !tracked.is_over || tracked.start.is_some_and(is_near)
    }

    /// Takes an entry away from its connection, which is over if the entry counted for it.
    pub(super) fn detach(&mut self, slot: u32, now_ns: u64) {
        let number = std::mem::replace(&mut self.entries[slot].connection, NONE);
        if number == NONE {
            return;
        }
        if self.connections[number].counting != slot {
            self.connections[number].other = NONE;
            self.ledger.settle(&mut self.entries[slot], Class::Annotated);
            return self.release_if_done(number);
        }
        let other = std::mem::replace(&mut self.connections[number].other, NONE);
        if other != NONE {
            self.entries[other].connection = NONE;
            self.entries[other].set(ATTENTION, true);
            self.ledger.settle(&mut self.entries[other], Class::Annotated);
        }
        self.connections[number].portions = self.ledger.take(&mut self.entries[slot]);
        self.connections[number].set(DETACHED, true);
        if !self.connections[number].has(OVER) {
            self.end(number, Reason::End, now_ns);
        } else if self.connections[number].has_news() {
            self.queue(number);
        } else {
            self.release_if_done(number);
        }
    }

    /// At a sweep: an entry in which nothing was counted, but that waits for something.
    fn attend(&mut self, slot: u32, value: &abi::Flow, look: &Look<'_>) {
        let number = self.entries[slot].connection;
        let over = number == NONE || self.connections[number].has(DONE);
        if over {
            let news = number != NONE && self.connections[number].has_news();
            if !news && is_quiet(value, look) {
                self.ask_deletion(slot);
            }
            return;
        }
        if self.connections[number].has(OVER) || self.connections[number].counting != slot {
            return;
        }
        if !self.connections[number].has_news() {
            self.entries[slot].set(ATTENTION, false);
        } else if self.is_due_at_sweep(number, look.now_ns) {
            self.queue(number);
        }
    }

    /// Asks for the deletion of an entry, which the kernel keeps if packets came of late.
    pub(super) fn ask_deletion(&mut self, slot: u32) {
        if !self.entries[slot].has(DELETING) {
            self.entries[slot].set(DELETING, true);
            self.deletions.push(self.entries.key(slot));
        }
    }

    /// From two entries of one connection chooses the one whose counters are the connection's: the client Pod's own
    /// interface if that is here, else the server Pod's, else where the packets are as the originator sent them. Not
    /// any more once a record of it was given.
    pub(super) fn choose(&mut self, number: u32) {
        let connection = &self.connections[number];
        let (counting, other) = (connection.counting, connection.other);
        if other == NONE || connection.tracked == NONE || connection.has(EXPORTED | FIXED) {
            return;
        }
        let original = self.tracker[connection.tracked].original.0;
        let rank = |slot: u32| (self.entries[slot].at_pod(), self.entries.key(slot) == original);
        let (counting_rank, other_rank) = (rank(counting), rank(other));
        let is_better = match (other_rank.0, counting_rank.0) {
            (true, false) => true,
            (false, true) => false,
            _ => other_rank.1,
        };
        if is_better {
            let entry = &self.entries[other];
            let counted = difference(entry.seen, self.ledger.began_at(entry));
            let connection = &mut self.connections[number];
            connection.total = self.entries[other].oriented(counted);
            (connection.counting, connection.other) = (other, counting);
        }
    }

    /// A connection that begins with `slot`'s entry.
    fn new_connection(&mut self, slot: u32, began_ns: u64, now_ns: u64) -> u32 {
        self.revision = self.revision.wrapping_add(1);
        let mut connection = Connection::new(now_ns, self.revision);
        connection.start_ns = began_ns;
        connection.last_ns = began_ns;
        connection.counting = slot;
        connection.set(FROM_END_1, self.entries[slot].has(REVERSED));
        let number = self.connections.insert(connection);
        self.entries[slot].connection = number;
        self.live += 1;
        self.statistics.flows += 1;
        self.schedule(number, now_ns + self.active_ns);
        number
    }
}

/// When the last packet of either direction was counted.
fn last_ns(value: &abi::Flow, clock: &Clock) -> u64 {
    let directions = value.direction.iter().filter(|direction| direction.owner != 0);
    directions.map(|direction| clock.jiffies_to_wall_ns(direction.last)).max().unwrap_or_default()
}

/// Whether no packet was counted for so long that none can be under way.
fn is_quiet(value: &abi::Flow, look: &Look<'_>) -> bool {
    since(look.now_ns, last_ns(value, look.clock)) >= STRAYS_NS
}
