//! Flows as connection tracking alone tells of them: each tracked connection as the map entry that the kernel programs would have made
//! of its packets before translation.
//!
//! Takes what a dump and the events say of a connection, with the time; gives keys and values for the table, which asks for and deletes
//! them as it does those of the kernel's maps. Does no I/O and reads no clock. A value's counters only grow, over all connections of a
//! key; a point without interface owns both directions, so that no interface is said to have counted them.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

use flow_common::abi::{self, Count, Flow, owner};
use flow_common::time::Timestamp;
use foldhash::fast::RandomState;

use crate::conntrack::{Entry, Event, Kind, Scope, status, tcp};
use crate::kernel::clock::low_half;
use crate::kernel::{Clock, Slice};
use crate::table::Key;

#[cfg(test)]
mod tests;

/// Who counts in every value: not 0, which is nobody, and no interface.
const HERE: u32 = owner::pack(0, false, true);

/// The clock of the values has no ticks of the kernel's to follow.
const TICK_NS: u64 = 1_000_000;

const TCP: u8 = 6;

/// Protocols of which several connections can have one key: ICMP's both ways, GRE's of any call.
const SHARING: [u8; 3] = [1, 47, 58];

/// What was taken in and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Connections that ended without being in any record, as there was no room.
    pub no_room: u64,
    /// Connections that another one at the same ends stands for: of another zone, or of a protocol without ports.
    pub shadowed: u64,
}

/// What became of something that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing was known of the connection.
    New,
    /// It is held already.
    Known,
    /// Another one stands for it, or there is no room.
    Not,
    /// An event has to tell first what became of the connection before it.
    Later,
}

/// Who tells of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Teller {
    /// The event of its beginning, which over netlink knows neither counters nor start.
    Beginning,
    Dump,
    /// The event of its end, which knows all.
    End,
}

/// Everything that connection tracking has.
#[derive(Debug)]
pub(super) struct TrackedFlows {
    held: HashMap<Key, Held, RandomState>,
    capacity: usize,
    born: Timestamp,
    /// The number of the dump that is running, or ran last.
    round: u32,
    /// No dump was whole yet: what it has may be older than the agent.
    is_first: bool,
    /// Keys whose values have grown since they were given.
    changed: Vec<Key>,
    statistics: LeftOut,
}

/// A connection, and what those before it counted at its key.
#[derive(Debug)]
struct Held {
    entry: Entry,
    /// Whether the originator is end 1.
    reversed: bool,
    flow: Flow,
    /// What it had counted before its value began.
    earlier: [Count; 2],
    /// Another connection with the same key, whose packets are these.
    shadow: Option<Shadow>,
    round: u32,
    /// Somebody told of it who knows its counters, if there are any.
    is_counted: bool,
    is_gone: bool,
}

#[derive(Clone, Copy, Debug)]
struct Shadow {
    zone: u16,
    id: u32,
    round: u32,
}

/// The clock of the values: a tick is a millisecond.
pub(super) fn clock(monotonic_ns: u64, wall_ns: u64) -> Clock {
    let tick = monotonic_ns / TICK_NS;
    Clock::new(low_half(tick), TICK_NS, tick * TICK_NS, wall_ns.saturating_sub(monotonic_ns % TICK_NS))
}

impl TrackedFlows {
    /// None yet; room for so many. What began before `born` is older than the agent.
    pub(super) fn new(capacity: usize, born: Timestamp) -> Self {
        Self {
            held: HashMap::default(),
            capacity,
            born,
            round: 0,
            is_first: true,
            changed: Vec::new(),
            statistics: LeftOut::default(),
        }
    }

    /// Takes in an event.
    pub(super) fn feed(&mut self, event: &Event, clock: &Clock, now: Timestamp) -> Taken {
        match event.kind {
            Kind::New | Kind::Update => self.take(&event.entry, Teller::Beginning, clock, now),
            Kind::Destroy => self.end(&event.entry, clock, now),
        }
    }

    /// Begins a dump.
    pub(super) fn begin_dump(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// One connection of the dump.
    pub(super) fn feed_dump(&mut self, entry: &Entry, clock: &Clock, now: Timestamp) -> Taken {
        self.take(entry, Teller::Dump, clock, now)
    }

    /// Whether no dump was whole yet.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Ends the dump, after the events that came meanwhile. What a whole one did not have is gone.
    pub(super) fn end_dump(&mut self, whole: bool) {
        if !whole {
            return;
        }
        let round = self.round;
        self.is_first = false;
        self.held.retain(|_, held| {
            held.is_gone |= held.round != round;
            held.shadow = held.shadow.filter(|shadow| shadow.round == round);
            held.is_needed()
        });
    }

    /// The values that have grown since the last call.
    pub(super) fn changes(&mut self, slice: &mut Slice) {
        slice.clear();
        for key in self.changed.drain(..) {
            if let Some(held) = self.held.get(&key).filter(|held| held.has_counted()) {
                push(slice, key, held.flow);
            }
        }
        slice.read = slice.keys4.len() + slice.keys6.len();
    }

    /// All values.
    pub(super) fn all(&mut self, slice: &mut Slice) {
        slice.clear();
        self.changed.clear();
        for (key, held) in self.held.iter().filter(|(_, held)| held.has_counted()) {
            push(slice, *key, held.flow);
        }
        slice.read = slice.keys4.len() + slice.keys6.len();
    }

    /// One value.
    pub(super) fn lookup(&self, key: &Key) -> Option<Flow> {
        self.held.get(key).filter(|held| held.has_counted()).map(|held| held.flow)
    }

    /// The connection that a scope means, as it was last told of: exactly what the values come from.
    pub(super) fn read(&self, scope: &Scope) -> Option<Entry> {
        let (key, _) = Key::of(&scope.tuple, scope.tuple.dst_port)?;
        self.held.get(&key).map(|held| held.entry).filter(|entry| entry.zone == scope.zone)
    }

    /// The table has no more use for a value. If connection tracking still knows the connection, what it counts from here on is a value
    /// of its own.
    pub(super) fn delete(&mut self, key: &Key) {
        let Some(held) = self.held.get_mut(key) else { return };
        held.earlier = held.counted();
        held.flow = Flow::default();
        if !held.is_needed() {
            self.held.remove(key);
        }
    }

    /// Connections held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Room for connections.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// What was not taken in.
    pub(super) fn statistics(&self) -> LeftOut {
        self.statistics
    }

    fn take(&mut self, entry: &Entry, teller: Teller, clock: &Clock, at: Timestamp) -> Taken {
        let Some((key, reversed)) = Key::of(&entry.original, entry.original.dst_port) else { return Taken::Not };
        let first_ns = monotonic(clock, entry.start.unwrap_or(at));
        let is_old = teller == Teller::Dump && self.is_first && entry.start.is_none_or(|start| start < self.born);
        let (round, has_room) = (self.round, self.held.len() < self.capacity);
        let mut taken = Taken::Known;
        let held = match self.held.entry(key) {
            Place::Occupied(place) => place.into_mut(),
            Place::Vacant(_) if !has_room => return Taken::Not,
            Place::Vacant(place) => {
                taken = Taken::New;
                let held = place.insert(Held::new(entry, reversed, first_ns));
                if is_old && let Some(counters) = entry.counters {
                    (held.earlier, held.flow.first_ns) = (counters, 0);
                }
                held
            }
        };
        if held.is_another(entry) {
            if teller != Teller::Beginning && held.was(entry) {
                return Taken::Not;
            }
            if held.stands_for(entry) {
                self.statistics.shadowed += u64::from(held.cast(entry, round));
                return Taken::Not;
            }
            match teller {
                Teller::Dump if !held.is_gone => return Taken::Later,
                // Told of after its successor.
                Teller::End if !held.is_gone && first_ns <= held.flow.first_ns => return Taken::Not,
                _ => held.succeed(entry, reversed, first_ns),
            }
            taken = Taken::New;
        }
        held.round = round;
        if (teller, taken) == (Teller::Beginning, Taken::Known) {
            // Older than what is known.
            return taken;
        }
        held.is_counted |= teller != Teller::Beginning;
        if held.update(entry, clock, at) {
            self.changed.push(key);
        }
        taken
    }

    fn end(&mut self, entry: &Entry, clock: &Clock, now: Timestamp) -> Taken {
        let Some((key, _)) = Key::of(&entry.original, entry.original.dst_port) else { return Taken::Not };
        let began = entry.start.unwrap_or(Timestamp::ZERO);
        let stop = entry.stop.unwrap_or(now).min(now).max(began);
        let taken = self.take(entry, Teller::End, clock, stop);
        let Some(held) = self.held.get_mut(&key) else {
            self.statistics.no_room += 1;
            return taken;
        };
        match taken {
            Taken::New | Taken::Known => held.is_gone = true,
            Taken::Not | Taken::Later if held.is_shadowed_by(entry) => held.shadow = None,
            Taken::Not | Taken::Later => {}
        }
        if !held.is_needed() {
            self.held.remove(&key);
        }
        taken
    }
}

impl Held {
    fn new(entry: &Entry, reversed: bool, first_ns: u64) -> Self {
        Self {
            entry: *entry,
            reversed,
            flow: Flow { first_ns, ..Flow::default() },
            earlier: [Count::default(); 2],
            shadow: None,
            round: 0,
            is_counted: false,
            is_gone: false,
        }
    }

    /// Whether anything is in its value.
    fn has_counted(&self) -> bool {
        self.flow.direction.iter().any(|direction| direction.packets > 0)
    }

    /// Whether the table, connection tracking or a connection that it stands for may still ask for it.
    fn is_needed(&self) -> bool {
        !self.is_gone || self.has_counted() || self.shadow.is_some()
    }

    /// Whether this is not what is held. The kernel's number may come again, but nothing counts down.
    fn is_another(&self, entry: &Entry) -> bool {
        let starts = self.entry.start.zip(entry.start);
        let counters = self.entry.counters.zip(entry.counters);
        self.is_gone
            || (self.entry.zone, self.entry.id) != (entry.zone, entry.id)
            || starts.is_some_and(|(held, start)| held != start)
            || counters.is_some_and(|(held, now)| (0..2).any(|at| now[at].packets < held[at].packets))
    }

    /// Whether this is what was held last, told of again.
    fn was(&self, entry: &Entry) -> bool {
        let identity = |entry: &Entry| (entry.zone, entry.id, entry.start, entry.counters);
        self.is_gone && identity(&self.entry) == identity(entry)
    }

    /// Whether another connection with this key has the same packets as this one: it came through another zone. Of a protocol without
    /// ports there may be several in one zone, which cannot be told apart.
    fn stands_for(&self, entry: &Entry) -> bool {
        let held = &self.entry;
        let is_beside = held.original != entry.original && SHARING.contains(&entry.original.protocol);
        self.is_shadowed_by(entry) || !self.is_gone && (held.zone != entry.zone || is_beside)
    }

    fn is_shadowed_by(&self, entry: &Entry) -> bool {
        self.shadow.is_some_and(|shadow| (shadow.zone, shadow.id) == (entry.zone, entry.id))
    }

    /// Notes a connection that this one stands for. True if it is a new one.
    fn cast(&mut self, entry: &Entry, round: u32) -> bool {
        let is_new = !self.is_shadowed_by(entry);
        self.shadow = Some(Shadow { zone: entry.zone, id: entry.id, round });
        is_new
    }

    /// The next connection of the same ends.
    fn succeed(&mut self, entry: &Entry, reversed: bool, first_ns: u64) {
        let direction = self.flow.direction.map(|direction| abi::Direction { flags: 0, ..direction });
        self.flow = Flow {
            direction,
            first_ns,
            base_packets: direction.map(|direction| direction.packets),
            base_bytes: direction.map(|direction| direction.bytes),
            generation: self.flow.generation.wrapping_add(u32::from(self.has_counted())),
            state: 0,
        };
        (self.entry, self.reversed, self.earlier) = (*entry, reversed, [Count::default(); 2]);
        (self.is_counted, self.is_gone) = (false, false);
    }

    /// Takes in what is told of the connection. True if its value grew.
    fn update(&mut self, entry: &Entry, clock: &Clock, at: Timestamp) -> bool {
        let known = self.entry;
        self.entry = Entry {
            counters: entry.counters.or(known.counters),
            start: entry.start.or(known.start),
            tcp_state: entry.tcp_state.or(known.tcp_state),
            status: entry.status | known.status & status::SEEN_REPLY,
            ..*entry
        };
        let (counted, is_new) = (self.counted(), !self.has_generation_counted());
        let at_ns = monotonic(clock, at);
        let mut grew = false;
        for (side, (count, earlier)) in counted.into_iter().zip(self.earlier).enumerate() {
            let end = side ^ usize::from(self.reversed);
            let packets = self.flow.base_packets[end] + count.packets.saturating_sub(earlier.packets);
            let bytes = self.flow.base_bytes[end] + count.bytes.saturating_sub(earlier.bytes);
            let direction = &mut self.flow.direction[end];
            if packets > direction.packets {
                grew = true;
                (direction.packets, direction.bytes, direction.owner) = (packets, bytes, HERE);
                direction.last = low_half(at_ns / TICK_NS);
            }
        }
        if grew {
            self.flow.state = state(&self.entry, self.reversed);
            self.note_refusal();
            self.note_first(is_new, clock, at_ns);
        }
        grew
    }

    /// Packets and bytes of both sides. Where the kernel does not count, as much as is certain: a packet of each side that was seen.
    fn counted(&self) -> [Count; 2] {
        let seen = |side: bool| Count { packets: u64::from(side && self.is_counted), bytes: 0 };
        let is_answered = self.entry.status & status::SEEN_REPLY != 0;
        self.entry.counters.unwrap_or([seen(true), seen(is_answered)])
    }

    fn has_generation_counted(&self) -> bool {
        let base = self.flow.base_packets;
        self.flow.direction.iter().zip(base).any(|(direction, base)| direction.packets > base)
    }

    /// When the value's first packet was.
    fn note_first(&mut self, is_new: bool, clock: &Clock, at_ns: u64) {
        if !is_new {
            return;
        }
        match self.entry.start.filter(|_| self.earlier == [Count::default(); 2]) {
            Some(start) => self.flow.first_ns = monotonic(clock, start),
            None if self.flow.first_ns == 0 => self.flow.first_ns = at_ns,
            None => {}
        }
    }

    /// Connection tracking forgets a connection at a RST that is the only answer to its SYN, before it notes that there was an answer.
    fn note_refusal(&mut self) {
        let is_closed = self.entry.original.protocol == TCP && self.entry.tcp_state == Some(tcp::CLOSE);
        let answers = self.entry.counters.map_or(0, |[_, back]| back.packets);
        if is_closed && answers > 0 && self.entry.status & status::SEEN_REPLY == 0 {
            let originator = usize::from(self.reversed);
            self.flow.direction[originator].flags = abi::FLAG_SYN;
            self.flow.direction[1 - originator].flags = abi::FLAG_RST;
        }
    }
}

/// A value's state: what the connection is, by connection tracking.
fn state(entry: &Entry, reversed: bool) -> u32 {
    let is_closed = matches!(entry.tcp_state, Some(tcp::TIME_WAIT | tcp::CLOSE));
    let closed = if is_closed { abi::STATE_CLOSED } else { 0 };
    u32::from(reversed) | closed | u32::from(entry.tcp_state.unwrap_or(0)) << tcp::SHIFT
}

/// A time of day on the monotonic clock.
fn monotonic(clock: &Clock, at: Timestamp) -> u64 {
    at.nanos().saturating_sub(clock.monotonic_to_wall_ns(0))
}

fn push(slice: &mut Slice, key: Key, flow: Flow) {
    match key {
        Key::V4(key) => slice.push4(key, flow),
        Key::V6(key) => slice.push6(key, flow),
    }
}
