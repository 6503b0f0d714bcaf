//! Connection tracking's part: which two map entries are one connection, who originated it, when it began and ended.
//!
//! Its messages and the kernel programs' values may come in any order. Where a flow turns out to be translated, or to
//! have been originated by the other end, after records of it were given, it goes on under its right ends; what was
//! exported is not exported again.

use flow_common::time::Timestamp;

use super::Table;
use super::connection::{
    DONE, EXPORTED, FIXED, FRAGMENTED, FROM_END_1, IN_DUMP, INCOMPLETE, LIVE, OVER, Reason, TRACKED, WANTS_TOTALS,
};
use super::counted::Parted;
use super::entry::REVERSED;
use super::identity::flow_id;
use super::slab::NONE;
use super::time::{STRAYS_NS, since};
use super::tracked::{Departed, Tracked};
use crate::conntrack::{self, Kind, tcp};

impl Table {
    pub(super) fn track_event(&mut self, event: &conntrack::Event, now: Timestamp) {
        match event.kind {
            Kind::New | Kind::Update => self.track(&event.entry, false, now),
            Kind::Destroy => {
                self.untrack(&event.entry, now);
                self.part(|_| Parted::Connection(event.entry));
            }
        }
    }

    /// Forgets which connections a dump had.
    pub(super) fn unmark(&mut self) {
        for number in self.tracker.numbers() {
            self.tracker[number].in_dump = false;
        }
        for number in self.connections.numbers() {
            self.connections[number].set(IN_DUMP, false);
        }
    }

    /// Ends what the dump did not have: the messages that said so were lost.
    pub(super) fn end_unmarked(&mut self, now: Timestamp) {
        for number in self.connections.numbers() {
            let connection = &self.connections[number];
            if connection.has(LIVE) && connection.has(TRACKED) && !connection.has(IN_DUMP | OVER) {
                self.end_tracked(number, now.nanos());
            }
        }
        for number in self.tracker.numbers() {
            if !self.tracker[number].in_dump && self.tracker[number].connection == NONE {
                self.tracker.remove(number);
            }
        }
    }

    /// Takes in that a connection is there; by the first dump it may have been before the agent.
    pub(super) fn track(&mut self, entry: &conntrack::Entry, by_first_dump: bool, now: Timestamp) {
        let Some(mut tracked) = Tracked::new(entry) else { return };
        if self.is_known(&tracked) || self.is_shadowed(&tracked, now) {
            return;
        }
        let found = [tracked.original.0, tracked.translated.0]
            .map(|key| self.entries.find(&key).filter(|slot| self.is_joinable(*slot)));
        // What is over without a flow of ours only waits for its expiry, unless its flow is still to be read.
        let is_over = matches!(entry.tcp_state, Some(tcp::TIME_WAIT | tcp::CLOSE));
        if is_over && !self.inheriting && found == [None, None] {
            return;
        }
        tracked.is_old = by_first_dump && entry.start.is_none_or(|start| start < self.born);
        tracked.is_over = is_over;
        tracked.has_counters = entry.counters.is_some();
        let Some(number) = self.tracker.insert(tracked) else {
            self.statistics.refused += 1;
            return;
        };
        self.join(number, found);
    }

    /// Whether nothing is new about it but, perhaps, its start.
    fn is_known(&mut self, tracked: &Tracked) -> bool {
        if let Some(number) = self.tracker.find(&tracked.original.0)
            && (self.tracker[number].id, self.tracker[number].zone) == (tracked.id, tracked.zone)
        {
            self.tracker[number].in_dump = true;
            let connection = self.tracker[number].connection;
            if connection != NONE {
                self.connections[connection].set(IN_DUMP, true);
                self.note_start(connection, tracked.start);
            } else {
                self.tracker[number].start = self.tracker[number].start.or(tracked.start);
            }
            return true;
        }
        let Some(number) = self.untranslated(tracked) else { return false };
        self.connections[number].set(IN_DUMP, true);
        self.note_start(number, tracked.start);
        true
    }

    /// Whether another zone's connection of the same tuple stays the flow's: the one with a translation does. In one
    /// zone the later one does, and the earlier has ended although nothing said so.
    fn is_shadowed(&mut self, tracked: &Tracked, now: Timestamp) -> bool {
        if let Some(number) = self.tracker.find(&tracked.original.0) {
            let other = &self.tracker[number];
            if other.zone != tracked.zone && (other.is_translated() || !tracked.is_translated()) {
                return true;
            }
            let (connection, same_zone) = (other.connection, other.zone == tracked.zone);
            if connection == NONE {
                self.tracker.remove(number);
            } else if same_zone {
                self.end_tracked(connection, now.nanos());
            } else {
                self.untie(connection);
            }
            return false;
        }
        let Some(slot) = self.entries.find(&tracked.original.0) else { return false };
        let number = self.entries[slot].connection;
        if number == NONE || !self.connections[number].has(TRACKED) || self.connections[number].has(OVER) {
            return false;
        }
        if self.connections[number].zone == tracked.zone {
            self.end_tracked(number, now.nanos());
        } else if tracked.is_translated() {
            self.untie(number);
        } else {
            return true;
        }
        false
    }

    /// The flow that a connection without translation already is.
    fn untranslated(&self, tracked: &Tracked) -> Option<u32> {
        let number = self.entries[self.entries.find(&tracked.original.0)?].connection;
        if number == NONE {
            return None;
        }
        let connection = &self.connections[number];
        let same = connection.has(TRACKED) && (connection.ct_id, connection.zone) == (tracked.id, tracked.zone);
        same.then_some(number)
    }

    /// Whether an entry counts for a flow that connection tracking has not been found to know.
    fn is_joinable(&self, slot: u32) -> bool {
        let number = self.entries[slot].connection;
        number != NONE && self.connections[number].counting == slot && !self.connections[number].has(TRACKED | DONE)
    }

    /// Finds the flows of a connection that were there before it was known.
    fn join(&mut self, tracked: u32, slots: [Option<u32>; 2]) {
        let [original, translated] = slots.map(|slot| slot.map(|slot| self.entries[slot].connection));
        let (number, merged) = match (original, translated) {
            (None, None) => return,
            (Some(number), None) | (None, Some(number)) => (number, None),
            (Some(number), Some(same)) if number == same => (number, None),
            // What was exported binds. If that is both, the one at the translated tuple is known to others by its right
            // ends.
            (Some(original), Some(translated)) if self.connections[translated].has(EXPORTED) => {
                (translated, Some(original))
            }
            (Some(original), Some(translated)) => (original, Some(translated)),
        };
        if self.connections[number].has(EXPORTED) {
            self.statistics.late_joins += 1;
        }
        let slot = self.connections[number].counting;
        self.orient(slot, tracked);
        self.tie(number, tracked);
        if let Some(merged) = merged {
            self.merge(number, merged, tracked);
        }
    }

    /// Makes `number` the one flow of both entries.
    fn merge(&mut self, number: u32, merged: u32, tracked: u32) {
        let gone = self.connections[merged].clone();
        let slot = gone.counting;
        self.orient(slot, tracked);
        self.entries[slot].connection = number;
        let connection = &mut self.connections[number];
        connection.other = slot;
        connection.start_ns = connection.start_ns.min(gone.start_ns);
        connection.last_ns = connection.last_ns.max(gone.last_ns);
        connection.set_if(FRAGMENTED, gone.has(FRAGMENTED));
        self.merge_denials(number, merged);
        self.forget_connection(merged);
        self.choose(number);
    }

    /// Turns an entry, and the flow it counts for, so that the originator is connection tracking's.
    fn orient(&mut self, slot: u32, tracked: u32) {
        let reversed = self.tracker[tracked].reversed_at(&self.entries.key(slot));
        if self.entries[slot].has(REVERSED) != reversed {
            self.entries[slot].set(REVERSED, reversed);
            let connection = &mut self.connections[self.entries[slot].connection];
            connection.turn();
            connection.set(FROM_END_1, reversed);
        }
    }

    /// Notes that a flow is a tracked connection. One without translation has nothing more to tell but its end, if it has ended.
    pub(super) fn tie(&mut self, number: u32, tracked: u32) {
        self.revision = self.revision.wrapping_add(1);
        let Tracked { start, id, zone, is_old, has_counters, is_continued, has_departed, .. } = self.tracker[tracked];
        let connection = &mut self.connections[number];
        connection.set(TRACKED | IN_DUMP, true);
        (connection.ct_id, connection.zone, connection.revision) = (id, zone, self.revision);
        self.tracked_flows += 1;
        if has_departed || self.tracker[tracked].is_translated() {
            self.connections[number].tracked = tracked;
            self.tracker[tracked].connection = number;
        } else {
            self.tracker.remove(tracked);
        }
        if is_continued {
            self.settle_identity(number, self.connections[number].last_ns);
        } else if !is_old || self.connections[number].has(EXPORTED) {
            self.note_start(number, start);
        } else if has_counters && start.is_some() {
            self.note_earlier(number, start);
            self.connections[number].set(WANTS_TOTALS, true);
            self.wanted.push(number);
        } else {
            // Without its earlier packets it is another flow to whoever knew it.
            self.note_earlier(number, start);
            self.settle_identity(number, self.connections[number].last_ns);
            self.connections[number].set(FIXED | INCOMPLETE, true);
            self.statistics.not_adopted += 1;
        }
    }

    /// Takes a flow's tracked connection away: it is another zone's matter.
    fn untie(&mut self, number: u32) {
        let tracked = std::mem::replace(&mut self.connections[number].tracked, NONE);
        self.connections[number].set(TRACKED, false);
        self.tracked_flows -= 1;
        if tracked != NONE {
            self.tracker.remove(tracked);
        }
    }

    /// Takes in when a connection began: a part of its identity.
    pub(super) fn note_start(&mut self, number: u32, start: Option<Timestamp>) {
        let Some(start) = start else { return };
        self.note_earlier(number, Some(start));
        self.settle_identity(number, start.nanos());
    }

    fn note_earlier(&mut self, number: u32, start: Option<Timestamp>) {
        if let Some(start) = start {
            let connection = &mut self.connections[number];
            connection.start_ns = connection.start_ns.min(start.nanos());
        }
    }

    /// Settles a flow's identity, if it is not yet.
    pub(super) fn settle_identity(&mut self, number: u32, start_ns: u64) {
        if self.connections[number].flow_id == 0 {
            let ends = self.ends(number);
            self.connections[number].flow_id =
                flow_id(&self.config.node, &ends, self.connections[number].zone, start_ns);
        }
    }

    /// Takes in that the kernel has forgotten a connection.
    fn untrack(&mut self, entry: &conntrack::Entry, now: Timestamp) {
        let Some(tracked) = Tracked::new(entry) else { return };
        let at = entry.stop.unwrap_or(now).nanos();
        if let Some(number) = self.tracker.find(&tracked.original.0)
            && (self.tracker[number].id, self.tracker[number].zone) == (tracked.id, tracked.zone)
        {
            match self.tracker[number].connection {
                NONE => {
                    let since_ns = now.nanos();
                    self.tracker[number].has_departed = true;
                    self.departed.push_back(Departed { number, id: tracked.id, stop_ns: at, since_ns });
                }
                connection => self.end_tracked(connection, at),
            }
        } else if let Some(number) = self.untranslated(&tracked) {
            self.end_tracked(number, at);
        }
    }

    /// Lets those go whose packets have been told of by now.
    pub(super) fn depart(&mut self, now_ns: u64) {
        while let Some(departed) = self.departed.pop_front_if(|departed| since(now_ns, departed.since_ns) >= STRAYS_NS)
        {
            if !self.tracker.has(departed.number, departed.id) {
                continue;
            }
            match self.tracker[departed.number].connection {
                NONE => self.tracker.remove(departed.number),
                connection => self.end_tracked(connection, departed.stop_ns),
            }
        }
    }

    /// Ends a flow whose connection is gone; its tuples are free for the next one.
    fn end_tracked(&mut self, number: u32, at_ns: u64) {
        let tracked = self.connections[number].tracked;
        if tracked != NONE {
            self.tracker.forget(tracked);
        }
        if !self.connections[number].has(OVER) {
            self.end(number, Reason::End, at_ns);
        }
    }
}
