//! Whom connection tracking's messages are for: the table, and where they are all that is known of packets, the flows made of them.
//!
//! Takes events and dumps, hands them on in the order that the table needs: a connection's beginning, what it counted, its end.

use flow_common::time::Timestamp;

use super::tracked::{Taken, TrackedFlows};
use crate::conntrack::{Entry, Event, Kind};
use crate::kernel::{Clock, Slice};
use crate::table::Table;

#[cfg(test)]
mod tests;

/// Table, flows and the time.
pub(super) struct Feed<'a> {
    pub(super) table: &'a mut Table,
    /// Where the packets are connection tracking's, the flows and the clock of their values.
    pub(super) flows: Option<(&'a mut TrackedFlows, Clock)>,
    pub(super) now: Timestamp,
}

impl Feed<'_> {
    /// Events in their order.
    pub(super) fn events(&mut self, events: &[Event]) {
        if self.flows.is_none() {
            return self.table.feed_conntrack(events, self.now);
        }
        for run in events.chunk_by(|one, next| (one.kind == Kind::Destroy) == (next.kind == Kind::Destroy)) {
            self.run(run);
        }
    }

    /// Beginnings alone, or ends alone: the final counters come before the end.
    fn run(&mut self, run: &[Event]) {
        let Some((flows, clock)) = &mut self.flows else { return };
        let mut untold = Vec::new();
        for event in run {
            if flows.feed(event, clock, self.now) == Taken::New && event.kind == Kind::Destroy {
                untold.push(Event { kind: Kind::New, entry: open(&event.entry) });
            }
        }
        self.table.feed_conntrack(&untold, self.now);
        let mut slice = Slice::default();
        flows.changes(&mut slice);
        self.table.feed_slice(&slice, clock, self.now);
        self.table.feed_conntrack(run, self.now);
    }

    /// Begins a dump.
    pub(super) fn begin_dump(&mut self) {
        if let Some((flows, _)) = &mut self.flows {
            flows.begin_dump();
        }
        self.table.begin_dump();
    }

    /// One connection of the dump.
    pub(super) fn dumped(&mut self, entry: &Entry) {
        let Some((flows, clock)) = &mut self.flows else { return self.table.feed_dump(entry, self.now) };
        let is_first = flows.is_first();
        match flows.feed_dump(entry, clock, self.now) {
            // The event that told of its beginning was lost.
            Taken::New if !is_first => self.table.feed_dump(&open(entry), self.now),
            Taken::New | Taken::Known | Taken::Not => self.table.feed_dump(entry, self.now),
            Taken::Later => {}
        }
    }

    /// The dump has told all it has: what the connections counted.
    pub(super) fn count(&mut self, slice: &mut Slice) {
        if let Some((flows, clock)) = &mut self.flows {
            flows.all(slice);
            self.table.feed_slice(slice, clock, self.now);
        }
    }

    /// Ends the dump, after the events that came meanwhile.
    pub(super) fn end_dump(&mut self, whole: bool) {
        if let Some((flows, _)) = &mut self.flows {
            flows.end_dump(whole);
        }
        self.table.end_dump(whole, self.now);
    }
}

/// A connection whose beginning the table was not told of, as it began: of one that is over it would want no more.
fn open(entry: &Entry) -> Entry {
    Entry { tcp_state: None, ..*entry }
}
