//! Flows that are older than the agent: what single connections have to be asked for (when they began, the totals to go on from), and
//! what another agent has left.

use flow_common::abi;
use flow_common::time::Timestamp;

use super::Table;
use super::connection::{
    DETACHED, FIXED, FROM_END_1, IDLE, INCOMPLETE, LIVE, OVER, TRACKED, WANTS_START, WANTS_TOTALS,
};
use super::entry::REVERSED;
use super::key::Key;
use super::ledger::Class;
use super::observe::{Look, base, counters, difference};
use super::slab::NONE;
use super::tracked::Tracked;
use crate::conntrack::{Entry, Scope};
use crate::kernel::Identified;

/// Connections whose totals are read in one call, and tries of each: some microseconds a try.
const PER_CALL: usize = 256;
const TRIES: usize = 4;

/// Calls after which a flow that never pauses begins from zero.
const CALLS: u8 = 20;

impl Table {
    pub(super) fn ask(
        &mut self,
        mut lookup: impl FnMut(&Key) -> Option<abi::Flow>,
        mut read: impl FnMut(&[Scope], &mut Vec<Option<Entry>>),
        look: &Look<'_>,
    ) {
        let mut starts = Vec::new();
        let mut totals = Vec::new();
        for number in std::mem::take(&mut self.wanted) {
            match &self.connections[number] {
                connection if !connection.has(LIVE) => {}
                connection if connection.has(WANTS_TOTALS) => totals.push(number),
                connection if connection.has(WANTS_START) => starts.push(number),
                _ => {}
            }
        }
        self.ask_starts(&starts, &mut read);
        for (at, number) in totals.into_iter().enumerate() {
            if at >= PER_CALL
                || self.connections[number].has(WANTS_TOTALS) && !self.ask_totals(number, &mut lookup, &mut read, look)
            {
                self.wanted.push(number);
            }
        }
    }

    fn ask_starts(&mut self, numbers: &[u32], read: &mut impl FnMut(&[Scope], &mut Vec<Option<Entry>>)) {
        if numbers.is_empty() {
            return;
        }
        let scopes: Vec<Scope> = numbers.iter().map(|number| self.scope(*number)).collect();
        let mut entries = Vec::with_capacity(scopes.len());
        read(&scopes, &mut entries);
        entries.resize(numbers.len(), None);
        for (number, entry) in numbers.iter().zip(entries) {
            let connection = &mut self.connections[*number];
            connection.set(WANTS_START, false);
            connection.attempts = 1;
            if let Some(entry) = entry.filter(|entry| entry.id == connection.ct_id) {
                self.note_start(*number, entry.start);
            }
        }
    }

    /// Reads map and connection tracking in turn until neither moved meanwhile: then what connection tracking has more
    /// is what passed before the map was there. False to try again later.
    fn ask_totals(
        &mut self,
        number: u32,
        lookup: &mut impl FnMut(&Key) -> Option<abi::Flow>,
        read: &mut impl FnMut(&[Scope], &mut Vec<Option<Entry>>),
        look: &Look<'_>,
    ) -> bool {
        if self.connections[number].has(DETACHED) {
            self.go_on_from_zero(number);
            return true;
        }
        let (key, scope) = (self.entries.key(self.connections[number].counting), self.scope(number));
        let mut one = Vec::with_capacity(1);
        let mut ask = || {
            read(std::slice::from_ref(&scope), &mut one);
            one.pop().flatten()
        };
        for _ in 0..TRIES {
            let before = lookup(&key);
            let first = ask();
            let after = lookup(&key);
            let second = ask();
            let (Some(before), Some(after)) = (before, after) else { break };
            let same_connection = |entry: &Entry| entry.id == self.connections[number].ct_id;
            let (Some(first), Some(second)) = (first.filter(same_connection), second.filter(same_connection)) else {
                break;
            };
            let (Some(counted), true) = (second.counters, first.counters == second.counters) else { continue };
            if counters(&before) == counters(&after) {
                self.observe(&key, &after, look);
                if self.entries[self.connections[number].counting].seen != counters(&after) {
                    // Ahead of its take-over's event, which comes with the next look at the rings.
                    break;
                }
                self.go_on_from(number, counted, second.start);
                return true;
            }
        }
        self.connections[number].attempts += 1;
        if self.connections[number].attempts < CALLS {
            return false;
        }
        self.go_on_from_zero(number);
        true
    }

    /// Adds to a flow's totals what connection tracking counted before the map did. Nobody is told of it as a delta.
    fn go_on_from(&mut self, number: u32, counted: [abi::Count; 2], start: Option<Timestamp>) {
        let [there, back] = counted;
        let earlier =
            difference([there.packets, there.bytes, back.packets, back.bytes], self.connections[number].total);
        let connection = &mut self.connections[number];
        for (at, earlier) in earlier.into_iter().enumerate() {
            connection.total[at] += earlier;
            connection.exported[at] += earlier;
        }
        connection.set(WANTS_TOTALS, false);
        connection.set(FIXED, true);
        self.statistics.adopted += 1;
        self.note_start(number, start);
    }

    /// It cannot be said what passed before: to whoever knew the flow it is another one, and its number says so.
    pub(super) fn go_on_from_zero(&mut self, number: u32) {
        self.connections[number].set(WANTS_TOTALS, false);
        self.connections[number].set(FIXED | INCOMPLETE, true);
        self.settle_identity(number, self.connections[number].last_ns);
        self.statistics.not_adopted += 1;
    }

    /// What connection tracking knows a connection by.
    fn scope(&self, number: u32) -> Scope {
        let (key, reversed) = self.original(number);
        Tracked::scope(&key, reversed, self.connections[number].zone)
    }

    /// Key of its packets before translation, and whether the originator is end 1.
    pub(super) fn original(&self, number: u32) -> (Key, bool) {
        let connection = &self.connections[number];
        if connection.tracked == NONE {
            return (self.entries.key(connection.counting), connection.has(FROM_END_1));
        }
        self.tracker[connection.tracked].original
    }
}

/// What an agent before this one has left in the kernel's maps, and what this one leaves to the next.
impl Table {
    /// Begins with what its points counted that is in the maps no more: packets and bytes, by interface index. The table is as old as the
    /// maps.
    pub fn inherit(&mut self, gone: impl Iterator<Item = (u32, [i64; 2])>) {
        gone.for_each(|(index, gone)| self.ledger.inherit(index, gone));
    }

    /// All that the maps held has been read. `identity` gives as what a flow has been told of: it goes on as that with its totals, and its
    /// news is what comes from now on.
    pub fn inherited(&mut self, identity: impl Fn(&Key) -> Option<Identified>) {
        self.inheriting = false;
        self.tracker.forget_over();
        for number in self.connections.numbers() {
            if !self.connections[number].has(LIVE) {
                continue;
            }
            let [counting, other] = self.slots(number).map(|slot| {
                let generation = self.entries.get(slot)?.generation;
                identity(&self.entries.key(slot)).filter(|identity| identity.generation == generation)
            });
            match (counting, other) {
                (Some(known), _) if known.flow_id != 0 => self.go_on_as(number, &known),
                (_, Some(known)) if known.flow_id != 0 => {
                    self.count_with_other(number);
                    self.go_on_as(number, &known);
                }
                (Some(_), _) => self.leave_to_earlier(number),
                (None, _) => {}
            }
        }
    }

    /// A record of the connection was given with its other entry's counters.
    fn count_with_other(&mut self, number: u32) {
        let connection = &mut self.connections[number];
        (connection.counting, connection.other) = (connection.other, connection.counting);
        let entry = &self.entries[connection.counting];
        connection.total = entry.oriented(difference(entry.seen, self.ledger.began_at(entry)));
    }

    fn go_on_as(&mut self, number: u32, known: &Identified) {
        let slot = self.connections[number].counting;
        let before = self.ledger.leave(&mut self.entries[slot], known.began);
        let total = difference(self.connections[number].total, self.entries[slot].oriented(before));
        self.connections[number].total = total;
        self.connections[number].set(FIXED, true);
        if !self.connections[number].has(TRACKED) && self.entries[slot].has(REVERSED) != known.reversed {
            self.entries[slot].set(REVERSED, known.reversed);
            self.connections[number].turn();
            self.connections[number].set(FROM_END_1, known.reversed);
        }
        let connection = &mut self.connections[number];
        connection.flow_id = known.flow_id;
        connection.exported = connection.total;
    }

    /// What an entry counted before its present generation the other agent has told of.
    pub(super) fn leave_generations(&mut self, slot: u32, value: &abi::Flow) {
        let entry = &mut self.entries[slot];
        entry.seen = base(value);
        entry.owner = [value.direction[0].owner, value.direction[1].owner];
        self.ledger.settle(entry, Class::Earlier);
    }

    /// Its other entry's flow is told of without connection tracking saying any more that they belong together.
    fn leave_to_earlier(&mut self, number: u32) {
        let connection = &self.connections[number];
        let (slot, last_ns) = (connection.counting, connection.last_ns);
        self.ledger.settle(&mut self.entries[slot], Class::Earlier);
        let connection = &mut self.connections[number];
        connection.total = [0; 4];
        // What comes is another flow. Silent, it has nothing to tell.
        connection.start_ns = last_ns + 1;
        connection.flow_id = 0;
        connection.set(FIXED | INCOMPLETE | IDLE, true);
        if connection.has(OVER) {
            self.conclude(number, last_ns);
        }
    }

    /// Notes as what a flow is told of.
    pub(super) fn identify(&mut self, number: u32) {
        let flow_id = self.connections[number].flow_id;
        for (slot, flow_id) in self.slots(number).into_iter().zip([flow_id, 0]) {
            let Some(entry) = self.entries.get(slot) else { continue };
            let (family, key) = match self.entries.key(slot) {
                Key::V4(key) => (4, key.into()),
                Key::V6(key) => (6, key),
            };
            let (generation, reversed, began) = (entry.generation, entry.has(REVERSED), self.ledger.began_at(entry));
            self.identified.push(Identified { family, key, generation, reversed, began, flow_id });
        }
    }

    /// The entries that count for a connection and for its other side.
    fn slots(&self, number: u32) -> [u32; 2] {
        let connection = &self.connections[number];
        if connection.has(DETACHED) { [NONE; 2] } else { [connection.counting, connection.other] }
    }
}
