//! What single connections have to be asked for: when they began, and after a restart the totals to go on from.

use flow_common::abi;
use flow_common::time::Timestamp;

use super::Table;
use super::connection::{DETACHED, FIXED, FROM_END_1, INCOMPLETE, LIVE, WANTS_START, WANTS_TOTALS};
use super::counters::difference;
use super::key::Key;
use super::observe::Look;
use super::slab::NONE;
use super::tracked::Tracked;
use crate::conntrack::{Entry, Scope};

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
            if before.counters() == after.counters() {
                self.observe(&key, &after, look);
                if self.entries[self.connections[number].counting].seen != after.counters() {
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
