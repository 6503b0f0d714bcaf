//! Flows that an agent before this one has left in the kernel's maps, and what this one leaves to the next.
//!
//! Beside the maps there are an interface's sums of what is in them no more, and as what each flow was told of.

use flow_common::abi;

use super::Table;
use super::connection::{DETACHED, FIXED, FROM_END_1, IDLE, INCOMPLETE, LIVE, OVER, TRACKED};
use super::counters::{base, difference};
use super::entry::REVERSED;
use super::key::Key;
use super::ledger::Class;
use super::slab::NONE;
use crate::kernel::Identified;

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
