//! The connection table: what the kernel counted, joined with what connection tracking knows, into one flow a connection.
//!
//! Takes events, sweeps of the kernel's maps and connection tracking's messages, each with the time; gives [`Update`]s (numbers only) when
//! they are due, and the keys of map entries that may be deleted. Names nothing, encodes nothing, does no I/O and reads no clock.
//!
//! Order within a tick: [`Table::feed_conntrack`], then [`Table::feed_events`] and [`Table::feed_slice`], then [`Table::adopt`], then
//! [`Table::due`] until it has no more, then deletions: [`Table::deletions`] to the kernel, its answer to [`Table::deleted`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use flow_common::abi;
use flow_common::record::{Extended, Head, TcpState};
use flow_common::time::Timestamp;

use crate::conntrack;
use crate::kernel::{Clock, Deleted, Slice};

mod key;

pub use key::Key;

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
}

/// Keys of map entries whose flows are over.
#[derive(Clone, Debug, Default)]
pub struct Deletions {
    /// In the IPv4 map.
    pub keys4: Vec<abi::Key4>,
    /// In the IPv6 map.
    pub keys6: Vec<abi::Key6>,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    config: TableConfig,
    deletions: Deletions,
    statistics: Statistics,
}

impl Table {
    /// An empty table.
    pub fn new(config: TableConfig, _now: Timestamp) -> Self {
        Self { config, deletions: Deletions::default(), statistics: Statistics::default() }
    }

    /// Begins a whole dump of connection tracking: at the start, and after events were lost.
    pub fn begin_dump(&mut self) {}

    /// One connection of the dump.
    pub fn feed_dump(&mut self, _entry: &conntrack::Entry, _now: Timestamp) {}

    /// Ends the dump: connections that it did not have are over.
    pub fn end_dump(&mut self, _now: Timestamp) {}

    /// Takes in connection tracking's events, in order.
    pub fn feed_conntrack(&mut self, _events: &[conntrack::Event], _now: Timestamp) {}

    /// Takes in the kernel programs' events, of both rings.
    pub fn feed_events(&mut self, _events: &[abi::Event], _clock: &Clock, _now: Timestamp) {}

    /// Takes in a part of a sweep.
    pub fn feed_slice(&mut self, _slice: &Slice, _clock: &Clock, _now: Timestamp) {}

    /// Reads what the table needs of single connections: `lookup` reads a map entry, `read` connection tracking.
    pub fn adopt(
        &mut self,
        _lookup: impl FnMut(&Key) -> Option<abi::Flow>,
        _read: impl FnMut(&[conntrack::Scope], &mut Vec<Option<conntrack::Entry>>),
        _clock: &Clock,
        _now: Timestamp,
    ) {
    }

    /// Appends up to `max` updates that are due. `connected` is whether a collector takes them: without one only flows that are over
    /// are given. `exported` is asked for each flow until it says yes, with its ends and beginning. True if there is more.
    pub fn due(
        &mut self,
        _now: Timestamp,
        _connected: bool,
        _max: usize,
        _exported: impl FnMut(&Ends, Timestamp) -> bool,
        _updates: &mut Vec<Update>,
    ) -> bool {
        false
    }

    /// Ends every flow that is not over, with the reason "forced": [`Self::due`] gives them. The agent stops.
    pub fn finish(&mut self, _now: Timestamp) {}

    /// Keys of map entries to delete; the same ones until [`Self::deleted`] is told.
    pub fn deletions(&self) -> &Deletions {
        &self.deletions
    }

    /// Takes in what the kernel did about [`Self::deletions`].
    pub fn deleted(&mut self, _deleted: &Deleted, _clock: &Clock, _now: Timestamp) {}

    /// Every flow as it is now, those that are over but still have a map entry left out.
    pub fn flows(&self) -> impl Iterator<Item = Update> + '_ {
        std::iter::empty()
    }

    /// What became of the packets that each interface's points counted, by interface index.
    pub fn interfaces(&self) -> HashMap<u32, InterfaceSums> {
        HashMap::new()
    }

    /// What it holds, and what befell it.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }
}
