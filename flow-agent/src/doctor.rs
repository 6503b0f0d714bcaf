//! The agent's health: what it knows of itself at one moment, and what that means.
//!
//! Takes [`Facts`] as the flows task publishes them (every five seconds; metrics and accounting read the same), gives [`Finding`]s, each
//! with its remedy. Measures nothing itself; `cli::doctor` draws it.

use serde::{Deserialize, Serialize};

mod host;
mod judge;

pub use host::{host_findings, missing_rights};
pub use judge::{Finding, judge};

use crate::addresses::Address;
use crate::verify::Sums;

/// Everything known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The agent's version.
    pub version: String,
    /// This Node's name.
    pub node: String,
    /// Seconds since the agent began.
    pub uptime_seconds: u64,
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// How far the kernel is locked down: "integrity" or "confidentiality"; none if it is not, or that cannot be told.
    pub lockdown: Option<String>,
    /// Who counts the packets.
    pub source: Source,
    /// What each feature stands on in this kernel.
    pub features: Vec<Feature>,
    /// The kernel programs' run times.
    pub programs: Vec<Program>,
    /// Fill of the kernel's maps and rings.
    pub maps: Vec<Fill>,
    /// Every interface that a pattern names.
    pub interfaces: Vec<Interface>,
    /// The Node's own addresses.
    pub addresses: Vec<Address>,
    /// The connection table.
    pub flows: Flows,
    /// The kernel's connection tracking.
    pub conntrack: Conntrack,
    /// What the kernel dropped.
    pub drops: Drops,
    /// Whether connection tracking counted the same.
    pub verification: Verification,
    /// The way to the collector.
    pub export: Export,
    /// Where names come from.
    pub objects: Objects,
    /// What is left of the flow maps' work, in words; empty if nothing failed of late.
    pub faults: Vec<String>,
}

/// Packets and their layer-3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Socket buffers.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
}

/// Who counts the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The kernel's programs at the interfaces.
    #[default]
    Ebpf,
    /// Connection tracking.
    Conntrack,
}

/// What a feature that has several ways stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// The way it stands on; "none" if it is not there.
    pub rung: String,
    /// Why not on a better one: a sentence each, of the best first.
    pub refused: Vec<String>,
}

/// Run time of a kernel program; all zero while the kernel's BPF statistics are off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// For how long in all.
    pub run_ns: u64,
}

/// Fill of something bounded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fill {
    /// What it is.
    pub name: String,
    /// Entries (of rings: bytes) in use.
    pub used: u64,
    /// Entries (of rings: bytes) there is room for.
    pub capacity: u64,
}

/// One interface and where its packets are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// "pod" or "uplink".
    pub role: String,
    /// "tcx" or "clsact"; none if not attached.
    pub attached: Option<String>,
    /// Why it is not attached.
    pub refused: Option<String>,
    /// Packets by the interface's own counters before the attach: received and sent.
    pub before_attach: [u64; 2],
    /// Packets by the interface's own counters since the attach: received and sent.
    pub own: [u64; 2],
    /// Packets the programs saw: ingress and egress.
    pub seen_by_hook: [u64; 2],
    /// Segments of them, as many as a GSO packet will be cut into.
    pub segments_by_hook: [u64; 2],
    /// What the programs saw on both hooks.
    pub seen: Tally,
    /// What went into records that were handed to export.
    pub accounted: Tally,
    /// What another point, or another translation's entry, accounts for.
    pub annotated: Tally,
    /// What is counted and not yet in a record.
    pub waiting: Tally,
    /// What is in no record, by reason.
    pub lost: Vec<Loss>,
    /// Events that found a ring full: of begun and of ended flows. The sweep finds such flows.
    pub events_lost: [u64; 2],
}

/// The [`Loss::reason`] of packets that are in no record of this agent but in those of another one before it.
pub const EARLIER_AGENT: &str = "earlier_agent";

/// Packets in no record, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// A stable name, as in metrics.
    pub reason: String,
    /// How much.
    pub tally: Tally,
}

/// The connection table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    /// Live ones.
    pub live: u64,
    /// Of them with an entry of connection tracking.
    pub tracked: u64,
    /// Begun since the agent did.
    pub begun: u64,
    /// Ended early for lack of room.
    pub evicted: u64,
    /// Connections that began and ended between two looks at their entry: their packets are in the flow before.
    pub unseen: u64,
    /// Joined with their tracked connection only after a record of them had left.
    pub joined_late: u64,
    /// Older than the agent: with the packets before it in their totals, and without.
    pub adopted: [u64; 2],
    /// Packets that came in the moment in which their flow's entry was deleted: they stay waiting.
    pub late_packets: u64,
}

/// The kernel's connection tracking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conntrack {
    /// Why it cannot be read; none if it can.
    pub refused: Option<String>,
    /// Connections the kernel tracks (nf_conntrack_count).
    pub entries: u64,
    /// At most (nf_conntrack_max).
    pub capacity: u64,
    /// Whether it counts packets (nf_conntrack_acct); none if that cannot be told.
    pub accounting: Option<bool>,
    /// Whether it notes times (nf_conntrack_timestamp).
    pub timestamps: Option<bool>,
    /// Events read over netlink.
    pub events: u64,
    /// How often the kernel had no room for further events over netlink.
    pub overruns: u64,
    /// Events that the kernel programs told: beginnings and ends.
    pub told: [u64; 2],
    /// Events of theirs that found the ring full; a dump made up for them.
    pub lost: [u64; 2],
    /// Events that told something a second time: beginnings and ends.
    pub repeated: [u64; 2],
    /// Where it counts the packets: connections that are in no record, as there was no room for them.
    pub no_room: u64,
    /// Where it counts the packets: connections that another one at the same ends stands for.
    pub shadowed: u64,
    /// Connections that found no room among those whose packets are still to be seen: where one is translated, its packets before and
    /// after are two flows.
    pub unjoined: u64,
}

/// What the kernel dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drops {
    /// In which form the programs run; none if they do not.
    pub rung: Option<String>,
    /// Why they run in no better form, or not at all.
    pub refused: Vec<String>,
    /// Why they do not run, if they do not.
    pub failure: Option<String>,
    /// Drops by reason, interface and place since the agent began.
    pub sites: Vec<DropSite>,
    /// Connections in the table that did not come through: dropped, rejected or failed.
    pub denied: u64,
    /// Drops that are in no site of `sites`: no room, or left out by the kernel in the middle of another.
    pub unplaced: [u64; 2],
    /// Drops that say why a flow failed, but whose flow is not known: no room, a later fragment, headers that cannot be read.
    pub unnamed: [u64; 3],
    /// Dropped packets of flows that no tc program saw.
    pub unmatched: u64,
}

/// Whether connection tracking counted the same of connections that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// By what was found, since the agent began.
    pub ended: Sums,
    /// Those that there was no room to compare.
    pub not_kept: u64,
}

/// Drops of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropSite {
    /// The kernel's reason.
    pub reason: String,
    /// "rule" if a rule says so, "failure" if the packet did not arrive for another reason, else empty.
    pub class: String,
    /// The interface; "gone" of one that is no more, empty of none.
    pub interface: String,
    /// The kernel's function, or its address.
    pub location: String,
    /// How much.
    pub tally: Tally,
}

/// The way to the collector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Export {
    /// As configured.
    pub collector: String,
    /// The address that is connected; none if none is.
    pub peer: Option<String>,
    /// Why the last attempt failed, while none is connected.
    pub failure: Option<String>,
    /// Successful connects.
    pub connects: u64,
    /// Messages sent.
    pub messages: u64,
    /// Flow records sent.
    pub records: u64,
    /// Bytes of messages sent.
    pub octets: u64,
    /// Ended flows in the spool.
    pub spooled: u64,
    /// Of them never sent.
    pub unsent: u64,
    /// There is room for.
    pub spool_capacity: u64,
    /// Ended flows that left the spool unsent.
    pub lost_flows: u64,
    /// Their packets and bytes since their last record, both directions.
    pub lost: Tally,
    /// Live flows' records that found no connection; totals heal them.
    pub passed_over: u64,
    /// Records that do not fit a message.
    pub oversized: u64,
}

/// Where names come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Objects {
    /// The folder; none if there is none.
    pub folder: Option<String>,
    /// What was refused at the last look.
    pub refused: Vec<String>,
    /// Pods known.
    pub pods: u64,
    /// Services known.
    pub services: u64,
    /// Nodes known.
    pub nodes: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    /// What is left after taking another one; never below zero.
    pub fn less(self, other: Self) -> Self {
        Self { packets: self.packets.saturating_sub(other.packets), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Interface {
    /// Packets and bytes in no record, whatever the reason.
    pub fn lost_in_all(&self) -> Tally {
        let mut all = Tally::default();
        self.losses().for_each(|loss| all.add(loss.tally));
        all
    }

    /// What is in no agent's records, by reason.
    pub fn losses(&self) -> impl Iterator<Item = &Loss> {
        self.lost.iter().filter(|loss| loss.reason != EARLIER_AGENT)
    }

    /// What an agent before this one has told of.
    pub fn earlier(&self) -> Tally {
        self.lost.iter().find(|loss| loss.reason == EARLIER_AGENT).map(|loss| loss.tally).unwrap_or_default()
    }

    /// The part of the packets that is accounted for, of all that does not wait; 1 while nothing was seen.
    pub fn completeness(&self) -> f64 {
        let settled = self.seen.less(self.waiting).less(self.earlier()).packets;
        let found = self.accounted.packets + self.annotated.packets;
        #[expect(clippy::cast_precision_loss, reason = "a ratio is shown with few digits")]
        if settled == 0 { 1.0 } else { found as f64 / settled as f64 }
    }

    /// Packets that the interface counted and no program saw, or (negative) the other way round. A GSO packet may be
    /// counted as one packet or as its segments.
    pub fn unseen(&self) -> i64 {
        let hook = |hook: usize| {
            let own = self.own[hook];
            let (least, most) = (self.seen_by_hook[hook], self.seen_by_hook[hook].max(self.segments_by_hook[hook]));
            own.cast_signed() - own.clamp(least, most).cast_signed()
        };
        hook(0) + hook(1)
    }
}
