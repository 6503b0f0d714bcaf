//! The connection table: what the kernel counted, joined with what connection tracking knows, into one flow a
//! connection.
//!
//! Takes events, sweeps of the kernel's maps and connection tracking's messages, each with the time; gives [`Update`]s
//! (numbers only) when they are due, and the keys of map entries that may be deleted. Names nothing, encodes nothing,
//! does no I/O and reads no clock.
//!
//! Order within a tick: [`Table::feed_conntrack`], then [`Table::feed_events`] and [`Table::feed_slice`], then
//! [`Table::feed_drops`] and [`Table::adopt`], then [`Table::due`] until it has no more, then deletions: [`Table::deletions`] to the kernel, its
//! answer to [`Table::deleted`].

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use flow_common::abi;
use flow_common::expiry::Expiry;
use flow_common::record::{EndReason, Extended, Head, TcpState};
use flow_common::time::Timestamp;

use crate::conntrack;
use crate::kernel::drops::FlowDrops;
use crate::kernel::{Clock, Deleted, Identified, Slice};

mod adopt;
mod connection;
mod counted;
mod counters;
mod denied;
mod entry;
mod export;
mod identity;
mod inherit;
mod join;
mod key;
mod ledger;
mod observe;
mod pressure;
mod slab;
#[cfg(test)]
mod tests;
mod time;
mod tracked;

pub use counted::{Counted, Counterpart, Marks, Name, Parted};
pub use denied::Denied;
pub use key::Key;

use connection::{Connection, DETACHED, DONE, LIVE, OVER, Reason, WANTS_START, WANTS_TOTALS};
use counted::Outbox;
use denied::Denials;
use entry::{DELETING, Entries};
use export::Asked;
use ledger::{Class, Ledger};
use observe::Look;
use slab::{NONE, Slab};
use tracked::{Departed, Tracker};

/// Deadlines further ahead than this are looked at again on the way.
const HORIZON_SECONDS: u32 = 1_023;

/// What the table needs to know.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// The Node's name, a part of every flow's identity.
    pub node: String,
    /// Live flows of each address family; beyond it some are ended early. The kernel's maps have room for as many.
    pub max_flows: u32,
    /// A flow that has packets is exported each time this has passed.
    pub active_timeout: Duration,
    /// A flow without a packet for this long is exported once more.
    pub idle_timeout: Duration,
    /// Whether connection tracking notes when connections begin.
    pub timestamps: bool,
    /// Whether there are flows of an agent before this one: they are read after the first dump of connection tracking.
    pub inherits: bool,
    /// Whether there may be an agent after this one that goes on with the flows.
    pub keeps: bool,
}

impl Default for TableConfig {
    /// As flow-agent.conf has it by default, alone, and with all that connection tracking can tell.
    fn default() -> Self {
        Self {
            node: String::new(),
            max_flows: 262_144,
            active_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            timestamps: true,
            inherits: false,
            keeps: false,
        }
    }
}

/// The ends of a connection: the originator, the responder after translation, and what translation hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Address of the originator.
    pub src: IpAddr,
    /// Address of the responder.
    pub dst: IpAddr,
    /// Port of the originator; of ICMP the identifier.
    pub src_port: u16,
    /// Port of the responder; of ICMP type * 256 + code.
    pub dst_port: u16,
    /// Number of the IP protocol.
    pub protocol: u8,
    /// Address and port that the originator sent to, where that is not the responder.
    pub original_dst: Option<(IpAddr, u16)>,
    /// The originator's address and port as the responder sees them, where that is not its own.
    pub nat_src: Option<(IpAddr, u16)>,
    /// Whether a Pod's own interface saw it.
    pub at_pod: bool,
}

/// A flow as it is to be exported or shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// A small number, this flow's alone while it lives.
    pub slot: u32,
    /// Another number whenever the slot is another flow's, or the flow's ends turned out to be others.
    pub revision: u32,
    /// Times, reason, ends and counters.
    pub head: Head,
    /// The fields beyond Antrea's.
    pub extended: Extended,
    /// The ends, with what translation hides.
    pub ends: Ends,
    /// Zone of connection tracking.
    pub zone: u16,
    /// State by the packets seen; none for other protocols than TCP.
    pub tcp_state: TcpState,
    /// When it began.
    pub start: Timestamp,
}

/// What the table knows of the packets that an interface's points counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSums {
    /// In flows that are exported.
    pub accounted: abi::Count,
    /// In counters that another point's stand for, because translation gave one connection two map entries.
    pub annotated: abi::Count,
    /// In flows that are over and were not exported, because no end is a Pod of this Node.
    pub not_local: abi::Count,
    /// In live flows of which it is not decided yet whether they are exported.
    pub undecided: abi::Count,
    /// Packets and bytes that an agent before this one told of, as far as it came to that. Negative where flows that go on were another
    /// interface's when it did.
    pub earlier: [i64; 2],
}

/// What the table holds, and what befell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Flows that are not over.
    pub live: usize,
    /// Entries of the kernel's maps that are known, IPv4 and IPv6.
    pub entries: [usize; 2],
    /// Live flows whose connection is tracked.
    pub tracked: usize,
    /// Tracked connections of which no packet was seen yet, and translated ones.
    pub connections: usize,
    /// Flows that ever were.
    pub flows: u64,
    /// Flows ended early for lack of room.
    pub evicted: u64,
    /// Tracked connections not kept for lack of room.
    pub refused: u64,
    /// Generations of a map entry that came and went between two looks at it; their packets are in the flow before.
    pub generations_missed: u64,
    /// Values older than what was known already.
    pub stale: u64,
    /// Flows joined with their tracked connection only after they had been exported.
    pub late_joins: u64,
    /// Flows that go on from the counters of connection tracking.
    pub adopted: u64,
    /// Flows that were there before the agent, and whose earlier packets could not be had.
    pub not_adopted: u64,
    /// Dropped packets of flows that no tc program saw.
    pub drops_unmatched: u64,
    /// Packets that came between the last look at an entry and its deletion: they are in no flow.
    pub late_packets: u64,
}

/// Keys of map entries whose flows are over.
#[derive(Clone, Debug, Default)]
pub struct Deletions {
    /// In the IPv4 map.
    pub keys4: Vec<abi::Key4>,
    /// The counters of `keys4` as they were last seen.
    pub seen4: Vec<[u64; 4]>,
    /// In the IPv6 map.
    pub keys6: Vec<abi::Key6>,
    /// The counters of `keys6` as they were last seen.
    pub seen6: Vec<[u64; 4]>,
}

/// Keeps the keys of which something is known, and puts that beside them.
fn keep_known<K, T>(keys: &mut Vec<K>, known: &mut Vec<T>, of: impl Fn(&K) -> Option<T>) {
    known.clear();
    keys.retain(|key| {
        let it = of(key);
        let is_known = it.is_some();
        known.extend(it);
        is_known
    });
}

impl Deletions {
    fn push(&mut self, key: Key) {
        match key {
            Key::V4(key) => self.keys4.push(key),
            Key::V6(key) => self.keys6.push(key),
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Table {
    config: TableConfig,
    active_ns: u64,
    idle_ns: u64,
    born: Timestamp,
    entries: Entries,
    connections: Slab<Connection>,
    tracker: Tracker,
    /// Tracked connections that were over before a packet of theirs was told of, the first to be let go in front.
    departed: VecDeque<Departed>,
    denials: Denials,
    parted: Outbox,
    ledger: Ledger,
    timers: Expiry,
    /// Slots whose deadline has come; kept for its memory.
    fired: Vec<u32>,
    /// Connections that may be due.
    ready: VecDeque<u32>,
    /// Connections that are due, but wait for an answer.
    held: Vec<u32>,
    /// Connections about which connection tracking is to be asked.
    wanted: Vec<u32>,
    deletions: Deletions,
    /// Flows that were told of for the first time, for the agent after this one.
    identified: Vec<Identified>,
    statistics: Statistics,
    live: usize,
    tracked_flows: usize,
    revision: u32,
    first_dump: bool,
    /// Until the flows of an agent before this one are read.
    inheriting: bool,
    relieved_ns: u64,
}

impl Table {
    /// An empty table. What began before `now` is not known from its first packet on.
    pub fn new(config: TableConfig, now: Timestamp) -> Self {
        let room = config.max_flows as usize;
        Self {
            active_ns: export::nanos(config.active_timeout),
            idle_ns: export::nanos(config.idle_timeout),
            born: now,
            entries: Entries::new(room),
            connections: Slab::with_capacity(room),
            tracker: Tracker::new(room * 2),
            departed: VecDeque::new(),
            denials: Denials::default(),
            parted: Outbox::default(),
            ledger: Ledger::new(),
            timers: Expiry::new(now.seconds(), HORIZON_SECONDS),
            fired: Vec::new(),
            ready: VecDeque::new(),
            held: Vec::new(),
            wanted: Vec::new(),
            deletions: Deletions::default(),
            identified: Vec::new(),
            statistics: Statistics::default(),
            live: 0,
            tracked_flows: 0,
            revision: 0,
            first_dump: true,
            inheriting: config.inherits,
            relieved_ns: 0,
            config,
        }
    }

    /// Begins a whole dump of connection tracking: at the start, and after events were lost.
    pub fn begin_dump(&mut self) {
        self.unmark();
    }

    /// One connection of the dump.
    pub fn feed_dump(&mut self, entry: &conntrack::Entry, now: Timestamp) {
        self.track(entry, self.first_dump, now);
    }

    /// Ends the dump. If it is `whole`, connections that it did not have are over.
    pub fn end_dump(&mut self, whole: bool, now: Timestamp) {
        if whole {
            self.end_unmarked(now);
            self.first_dump = false;
        }
    }

    /// Takes in connection tracking's events, in order.
    pub fn feed_conntrack(&mut self, events: &[conntrack::Event], now: Timestamp) {
        for event in events {
            self.track_event(event, now);
        }
    }

    /// Takes in the kernel programs' events, of both rings.
    pub fn feed_events(&mut self, events: &[abi::Event], clock: &Clock, now: Timestamp) {
        self.observe_events(events, &Look { clock, now_ns: now.nanos(), sweeping: false });
    }

    /// Takes in a part of a sweep.
    pub fn feed_slice(&mut self, slice: &Slice, clock: &Clock, now: Timestamp) {
        self.observe_slice(slice, &Look { clock, now_ns: now.nanos(), sweeping: true });
    }

    /// Takes in what was dropped of which flow; after the events and slices of the same tick, which tell of the flows.
    pub fn feed_drops(&mut self, drops: &[FlowDrops], clock: &Clock, now: Timestamp) {
        self.observe_drops(drops, &Look { clock, now_ns: now.nanos(), sweeping: false });
    }

    /// Reads what the table needs of single connections: `lookup` reads a map entry, `read` connection tracking.
    pub fn adopt(
        &mut self,
        lookup: impl FnMut(&Key) -> Option<abi::Flow>,
        read: impl FnMut(&[conntrack::Scope], &mut Vec<Option<conntrack::Entry>>),
        clock: &Clock,
        now: Timestamp,
    ) {
        self.ask(lookup, read, &Look { clock, now_ns: now.nanos(), sweeping: false });
    }

    /// Appends up to `max` updates that are due. `connected` is whether a collector takes them: without one only flows
    /// that are over are given. `exported` is asked for each flow until it says yes, with its ends and beginning. True
    /// if there is more.
    pub fn due(
        &mut self,
        now: Timestamp,
        connected: bool,
        max: usize,
        exported: impl FnMut(&Ends, Timestamp) -> bool,
        updates: &mut Vec<Update>,
    ) -> bool {
        self.relieve(now.nanos());
        self.depart(now.nanos());
        self.forget_drops(now.nanos());
        self.give(max, &mut Asked { now_ns: now.nanos(), connected, exported }, updates)
    }

    /// Ends every flow that is not over, with the reason "forced": [`Self::due`] gives them. The agent stops. If the counting `goes_on`
    /// without it, gives the news of all flows as they are.
    pub fn finish(&mut self, goes_on: bool, now: Timestamp) {
        for number in self.connections.numbers() {
            if !self.connections[number].has(LIVE) {
                continue;
            }
            if self.connections[number].has(WANTS_TOTALS) {
                self.go_on_from_zero(number);
            }
            self.connections[number].set(WANTS_START, false);
            if !self.connections[number].has(OVER) && !goes_on {
                self.end(number, Reason::Forced, now.nanos());
            } else if self.connections[number].has_news() {
                // There is no time left to ask when it began.
                self.connections[number].attempts = 1;
                self.queue(number);
            }
        }
    }

    /// Keys of map entries to delete, with what is known of them; the same ones until [`Self::deleted`] is told, but for those that had
    /// packets since.
    pub fn deletions(&mut self) -> &Deletions {
        let Self { deletions, entries, .. } = self;
        let seen = |key: Key| Some(&entries[entries.find(&key)?]).filter(|entry| entry.has(DELETING)).map(|it| it.seen);
        let Deletions { keys4, seen4, keys6, seen6 } = deletions;
        keep_known(keys4, seen4, |key| seen(Key::V4(*key)));
        keep_known(keys6, seen6, |key| seen(Key::V6(*key)));
        deletions
    }

    /// Takes in what the kernel did about [`Self::deletions`].
    pub fn deleted(&mut self, deleted: &Deleted, clock: &Clock, now: Timestamp) {
        self.statistics.late_packets += deleted.late_packets;
        let kept = &deleted.kept;
        let keys = kept.keys4.iter().copied().map(Key::V4).chain(kept.keys6.iter().copied().map(Key::V6));
        for key in keys {
            if let Some(slot) = self.entries.find(&key) {
                self.entries[slot].set(DELETING, false);
            }
        }
        let asked = std::mem::take(&mut self.deletions);
        for key in asked.keys4.into_iter().map(Key::V4).chain(asked.keys6.into_iter().map(Key::V6)) {
            if let Some(slot) = self.entries.find(&key)
                && self.entries[slot].has(DELETING)
            {
                self.remove_entry(slot, now.nanos());
            }
        }
        self.observe_slice(kept, &Look { clock, now_ns: now.nanos(), sweeping: false });
    }

    /// The flows that were told of for the first time since this was last asked; before their records leave.
    pub fn take_identified(&mut self) -> impl Iterator<Item = Identified> {
        self.identified.drain(..)
    }

    /// By interface index, packets and bytes that its points counted and that, since the last time this was asked, are not in an entry of
    /// the maps under their name any more.
    pub fn take_gone(&mut self) -> impl Iterator<Item = (u32, [i64; 2])> {
        self.ledger.take_gone()
    }

    /// Every flow as it is now, those that are over but still have a map entry left out.
    pub fn flows(&self) -> impl Iterator<Item = Update> + '_ {
        self.flows_from(0)
    }

    /// The same from the slot `first` on, in the order of the slots.
    pub fn flows_from(&self, first: u32) -> impl Iterator<Item = Update> + '_ {
        let shown = |number: &u32| self.connections[*number].has(LIVE) && !self.connections[*number].has(DONE);
        let numbers = first..self.connections.numbers().end;
        numbers.filter(shown).map(|number| self.update(number, EndReason::None))
    }

    /// What became of the packets that each interface's points counted, by interface index.
    pub fn interfaces(&self) -> HashMap<u32, InterfaceSums> {
        let mut sums = self.ledger.sums();
        for slot in self.entries.numbers().filter(|slot| !Ledger::is_settled(&self.entries[*slot])) {
            let number = self.entries[slot].connection;
            let counts = number != NONE && self.connections[number].counting == slot;
            let class = if counts { self.class(number) } else { Class::Annotated };
            self.ledger.add_entry(&self.entries[slot], class, &mut sums);
        }
        // Only connections that lost their entry have lists, so mostly none has.
        for number in self.connections.numbers().filter(|_| self.ledger.has_taken()) {
            if self.connections[number].has(LIVE) {
                self.ledger.add_list(self.connections[number].portions, self.class(number), &mut sums);
            }
        }
        sums.into_iter().collect()
    }

    /// What it holds, and what befell it.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            live: self.live,
            entries: self.entries.lengths(),
            tracked: self.tracked_flows,
            connections: self.tracker.len(),
            ..self.statistics
        }
    }

    /// Forgets an entry that the kernel's map has no more.
    fn remove_entry(&mut self, slot: u32, now_ns: u64) {
        let number = self.entries[slot].connection;
        if number != NONE && self.connections[number].counting == slot {
            let class = self.class(number);
            self.ledger.settle(&mut self.entries[slot], class);
            self.connections[number].set(DETACHED, true);
            self.release_if_done(number);
        } else {
            self.detach(slot, now_ns);
        }
        self.ledger.remove(&self.entries[slot]);
        self.entries.remove(slot);
    }
}
