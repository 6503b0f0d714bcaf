//! Connection tracking as programs in the kernel tell of it: the events of [`crate::kernel::ConntrackHooks`] decoded, in order, each
//! once.
//!
//! Gives the same values as the netlink source, and what that leaves out. It knows nothing of connections that were there before;
//! those, and what was lost when a ring was full, only a dump over netlink has.

use std::hash::BuildHasher as _;
use std::time::Instant;

use flow_common::abi::{CONNTRACK_END, ConntrackCounters, ConntrackEvent};
use flow_common::time::Timestamp;
use foldhash::fast::FixedState;

use super::decode::{Clocks, decode};
use super::recent::{Identity, Recent};
use super::{Event, Kind};
use crate::kernel::{ConntrackHooks, HooksConfig, Rungs};

/// Two packets that begin one connection, or two CPUs that end it, do so within moments.
const REMEMBERED: usize = 16_384;

/// Bit of a connection's status: taken out of the table.
const DYING: u32 = 1 << 9;

/// What was told and lost since the opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookStatistics {
    /// Events that the programs put on their rings, by kind: beginnings, ends.
    pub told: [u64; 2],
    /// Events that found the ring full.
    pub lost: [u64; 2],
    /// Events that told of something a second time.
    pub repeated: [u64; 2],
    /// Events that made no connection.
    pub malformed: u64,
}

/// The hooks of this network namespace, and what was told lately.
pub struct Hooks {
    kernel: ConntrackHooks,
    /// What was read and is not yet told.
    raw: Vec<ConntrackEvent>,
    begun: Recent,
    ended: Recent,
    statistics: HookStatistics,
    /// What the kernel makes its numbers of connections with, once it has: events before that lack it.
    seed: [u64; 2],
    /// Events lost that [`Self::has_lost`] has told of.
    noted: u64,
}

impl Hooks {
    /// Attaches what the kernel takes; see [`Self::rungs`].
    pub fn open(config: HooksConfig) -> Self {
        Self {
            kernel: ConntrackHooks::open(config),
            raw: Vec::new(),
            begun: Recent::new(REMEMBERED),
            ended: Recent::new(REMEMBERED),
            statistics: HookStatistics::default(),
            seed: [0; 2],
            noted: 0,
        }
    }

    /// Where the hooks stand, and why not better.
    pub fn rungs(&self) -> &Rungs {
        self.kernel.rungs()
    }

    /// Whether connections have the numbers that netlink knows them by. The kernel makes its seed when it is first asked for a number;
    /// where it is hidden from us (CAP_SYSLOG), they never have.
    pub fn is_numbered(&self) -> bool {
        self.seed != [0; 2]
    }

    /// Looks whether the module has come, gone or come again, once a second at most. True if so: what was missed only a dump tells.
    pub fn refresh(&mut self, now: Instant) -> bool {
        let is_changed = self.kernel.refresh(now);
        if is_changed {
            // Another load of the module has another.
            self.seed = [0; 2];
        }
        is_changed
    }

    /// Appends events in the order of their times, as far as all earlier ones are there: the youngest are left for the next call. True if
    /// some were lost since the last call: only a dump tells what they said.
    pub fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let complete_ns = self.kernel.poll(&mut self.raw);
        self.raw.sort_by_key(|event| event.at_ns);
        if let Some(event) = self.raw.iter().rfind(|event| event.seed != [0; 2]) {
            self.seed = event.seed;
        }
        for event in self.raw.iter_mut().filter(|event| event.seed == [0; 2]) {
            event.seed = self.seed;
        }
        let mut raw = std::mem::take(&mut self.raw);
        let clocks = Clocks::now();
        let complete = raw.partition_point(|event| event.at_ns <= complete_ns);
        events.extend(raw.drain(..complete).filter_map(|event| self.take(&event, &clocks)));
        self.raw = raw;
        self.has_lost()
    }

    /// What was told and lost since the opening.
    pub fn statistics(&mut self) -> HookStatistics {
        let ConntrackCounters { told, lost } = self.kernel.counters();
        HookStatistics { told, lost, ..self.statistics }
    }

    fn has_lost(&mut self) -> bool {
        let lost = self.kernel.counters().lost.iter().sum();
        std::mem::replace(&mut self.noted, lost) != lost
    }

    /// The event, if it makes one and was not told before.
    fn take(&mut self, raw: &ConntrackEvent, clocks: &Clocks) -> Option<Event> {
        let Some(event) = self.kernel.layout().and_then(|layout| decode(raw, layout, clocks)) else {
            self.statistics.malformed += 1;
            return None;
        };
        let is_first = self.note(raw.address, &event);
        if !is_first {
            self.statistics.repeated[usize::from(raw.kind == CONNTRACK_END)] += 1;
        }
        is_first.then_some(event)
    }

    /// False if this was told before.
    fn note(&mut self, address: u64, event: &Event) -> bool {
        let entry = &event.entry;
        let start = entry.start.map_or(0, Timestamp::nanos);
        let identity = Identity { start, tuple: FixedState::default().hash_one((entry.original, entry.zone)) };
        if event.kind == Kind::Destroy {
            self.begun.remove(address);
            return self.ended.insert(address, identity);
        }
        // Taken out of the table before the program that tells of its beginning has run.
        if entry.status & DYING != 0 && self.ended.has(address, identity) {
            return false;
        }
        self.ended.remove(address);
        self.begun.insert(address, identity)
    }
}
