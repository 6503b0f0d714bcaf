//! The table's side of a comparison with connection tracking: what it counted of a connection, and what it knows that explains a
//! difference. Reads the table and changes nothing in it; what has ended is told once, to whoever asked for that.

use flow_common::abi;

use super::connection::{DETACHED, DONE, FRAGMENTED, INCOMPLETE, LIVE, OVER, TRACKED, WANTS_TOTALS};
use super::counters::{Counters, difference};
use super::key::Key;
use super::slab::NONE;
use super::tracked::Tracked;
use super::{Ends, Table};
use crate::conntrack::{self, Scope};

/// What a connection is found by on both sides: the key of its packets before translation, its zone, connection tracking's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The key of its packets before translation.
    pub key: Key,
    /// Zone of connection tracking.
    pub zone: u16,
    /// Connection tracking's number; another one only while the connection lives.
    pub id: u32,
}

/// What the table counted of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// What it is found by.
    pub name: Name,
    /// What connection tracking finds it by.
    pub scope: Scope,
    /// Whether connection tracking was ever found to know it.
    pub is_tracked: bool,
    /// Whether it is over.
    pub is_over: bool,
    /// Packets and bytes of the originator, then of the responder.
    pub total: [u64; 4],
    /// What explains a difference.
    pub marks: Marks,
}

/// What the table knows of a connection that explains a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Fragments were among its packets.
    pub is_fragmented: bool,
    /// It was there before the agent, and its totals do not have its earlier packets (yet).
    pub is_incomplete: bool,
    /// Packets of it that were dropped on this Node.
    pub dropped: u64,
    /// TCP flags of originator and responder.
    pub tcp_flags: [u16; 2],
}

/// What the table has of a connection of connection tracking's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counterpart {
    /// The flow of that number.
    Flow(u32),
    /// Its packets' flow is joined with the connection of another zone.
    OtherZone,
    /// No flow: it was there before the agent and had no packet since.
    BeforeAgent,
    /// No flow.
    None,
}

/// What has ended, on either side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parted {
    /// The table lets a flow go: its totals are final.
    Flow(Counted),
    /// Connection tracking has forgotten a connection: its counters are final.
    Connection(conntrack::Entry),
}

/// What has ended since it was last asked for.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    parted: Vec<Parted>,
    room: usize,
    refused: u64,
}

impl Table {
    /// Tells from now on what has ended, `room` at most between two calls of [`Self::take_parted`].
    pub fn tell_parted(&mut self, room: usize) {
        self.parted.room = room;
    }

    /// Appends what has ended since the last call; gives how much found no room.
    pub fn take_parted(&mut self, into: &mut Vec<Parted>) -> u64 {
        into.append(&mut self.parted.parted);
        std::mem::take(&mut self.parted.refused)
    }

    /// Notes what has ended, if anybody wants to know.
    pub(super) fn part(&mut self, parted: impl FnOnce(&Self) -> Parted) {
        if self.parted.room == 0 {
            return;
        }
        if self.parted.parted.len() < self.parted.room {
            let parted = parted(self);
            self.parted.parted.push(parted);
        } else {
            self.parted.refused += 1;
        }
    }

    /// What a connection of connection tracking's is found by. None where its tuple makes no key.
    pub fn name(entry: &conntrack::Entry) -> Option<Name> {
        let (key, _) = Key::of(&entry.original, entry.original.dst_port)?;
        Some(Name { key, zone: entry.zone, id: entry.id })
    }

    /// What there is of a connection.
    pub fn counterpart(&self, entry: &conntrack::Entry) -> Counterpart {
        let Some(tracked) = Tracked::new(entry) else { return Counterpart::None };
        let was_before = entry.start.is_some_and(|start| start < self.born);
        let mut nothing = if was_before { Counterpart::BeforeAgent } else { Counterpart::None };
        if let Some(number) = self.tracker.find(&tracked.original.0) {
            let known = &self.tracker[number];
            match (known.id == tracked.id && known.zone == tracked.zone, known.connection) {
                (true, NONE) if known.is_old => nothing = Counterpart::BeforeAgent,
                (true, NONE) => {}
                (true, connection) => return Counterpart::Flow(connection),
                (false, NONE) => {}
                (false, _) if known.zone != tracked.zone => return Counterpart::OtherZone,
                (false, _) => {}
            }
        }
        let found = [tracked.original.0, tracked.translated.0].map(|key| self.at(&key));
        for number in found.into_iter().flatten() {
            let connection = &self.connections[number];
            if !connection.has(TRACKED) || (connection.ct_id, connection.zone) == (tracked.id, tracked.zone) {
                return Counterpart::Flow(number);
            }
            if connection.zone != tracked.zone && !connection.has(OVER) {
                nothing = Counterpart::OtherZone;
            }
        }
        nothing
    }

    /// The flow of a key's packets.
    fn at(&self, key: &Key) -> Option<u32> {
        let number = self.entries[self.entries.find(key)?].connection;
        (number != NONE).then_some(number)
    }

    /// Numbers of live flows that connection tracking was not found to know, from `first` on.
    pub fn untracked_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let numbers = first..self.connections.numbers().end;
        numbers.filter(|number| {
            let connection = &self.connections[*number];
            connection.has(LIVE) && !connection.has(TRACKED | OVER | DONE)
        })
    }

    /// The flow that is there at a place of connection tracking's, whether that knows it or not.
    pub fn flow_of(&self, scope: &Scope) -> Option<Counted> {
        let (key, _) = Key::of(&scope.tuple, scope.tuple.dst_port)?;
        self.at(&key).map(|number| self.counted(number))
    }

    /// What was counted of a flow.
    pub fn counted(&self, number: u32) -> Counted {
        let connection = &self.connections[number];
        let (key, reversed) = self.original(number);
        let name = Name { key, zone: connection.zone, id: connection.ct_id };
        Counted {
            name,
            scope: Tracked::scope(&key, reversed, connection.zone),
            is_tracked: connection.has(TRACKED),
            is_over: connection.has(OVER),
            total: connection.total,
            marks: Marks {
                is_fragmented: connection.has(FRAGMENTED),
                is_incomplete: connection.has(INCOMPLETE | WANTS_TOTALS),
                dropped: self.dropped_packets(number),
                tcp_flags: connection.tcp_flags,
            },
        }
    }

    /// The key of the map's entry that counts for a flow; none if no entry does any more.
    pub fn counting_key(&self, number: u32) -> Option<Key> {
        let connection = &self.connections[number];
        (!connection.has(DETACHED)).then(|| self.entries.key(connection.counting))
    }

    /// A flow's totals if the map's entry has this value by now. None where the value tells of another generation or of a take-over
    /// that is not known here yet.
    pub fn total_with(&self, number: u32, value: &abi::Flow) -> Option<[u64; 4]> {
        let connection = &self.connections[number];
        let entry = &self.entries[connection.counting];
        let now: Counters = value.counters();
        if value.generation != entry.generation || self.is_ahead(connection.counting, value) {
            return None;
        }
        let more = entry.oriented(difference(now, entry.seen));
        Some(std::array::from_fn(|at| connection.total[at] + more[at]))
    }
}

impl Key {
    /// Whether the sender of this tuple is the key's end 1.
    #[cfg(test)]
    pub fn is_reversed(&self, tuple: &conntrack::Tuple) -> bool {
        Self::of(tuple, tuple.dst_port).is_some_and(|(_, reversed)| reversed)
    }
}

impl Counted {
    /// Adds a part of the same connection that was counted as a flow of its own.
    pub fn join(&mut self, part: &Self) {
        self.total = std::array::from_fn(|at| self.total[at] + part.total[at]);
        self.marks.is_fragmented |= part.marks.is_fragmented;
        self.marks.is_incomplete |= part.marks.is_incomplete;
        self.marks.dropped += part.marks.dropped;
        self.marks.tcp_flags = std::array::from_fn(|at| self.marks.tcp_flags[at] | part.marks.tcp_flags[at]);
    }
}

impl From<&conntrack::Entry> for Ends {
    /// The ends as connection tracking has them; whether a Pod's own interface saw it is not known of it.
    fn from(entry: &conntrack::Entry) -> Self {
        let (original, reply) = (&entry.original, &entry.reply);
        let (src, meant) = ((original.src, original.src_port), (original.dst, original.dst_port));
        let (dst, seen_src) = ((reply.src, reply.src_port), (reply.dst, reply.dst_port));
        Self {
            src: src.0,
            dst: dst.0,
            src_port: src.1,
            dst_port: dst.1,
            protocol: original.protocol,
            original_dst: (meant != dst).then_some(meant),
            nat_src: (seen_src != src).then_some(seen_src),
            at_pod: false,
        }
    }
}
