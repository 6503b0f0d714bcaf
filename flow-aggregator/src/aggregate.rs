//! The table of connections: records of many exporters in, joined flows out.
//!
//! Takes read buffers of sessions and the passing of time; gives batches of joined flows for the sinks. No I/O and no
//! clock: `now` is in seconds of a clock that only goes forward. Everything is bounded and everything refused counted.

mod encode;
mod flow;
mod flows;
mod key;
mod nodes;
mod rules;
mod table;
mod tails;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tombstones;

pub use encode::{Batch, Joined};
pub use tails::Facts;

use flow::Exporter;
use flow_common::record::{AggregatedFlow, Cut, Extended, Family, Head, tail};
use flows::{Flows, Item, Output};
use nodes::Nodes;
use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Records that are applied together.
const GROUP: usize = 128;

/// Timeouts in seconds, and bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A ready flow with news is exported this long after its last export.
    pub active: u32,
    /// A flow without a record for so long leaves the table.
    pub inactive: u32,
    /// A half waits so long for its partner.
    pub correlation: u32,
    /// How long a tombstone stays.
    pub tombstone: u32,
    /// Flows of each address family.
    pub max_flows: usize,
    /// Tombstones of each address family.
    pub max_tombstones: usize,
}

/// Declares plain numbers with the name and the help of each as a metric.
macro_rules! numbers {
    ($(#[$meta:meta])* $group:ident: $number:ty { $($(#[doc = $help:literal])+ $field:ident = $metric:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $group {
            $($(#[doc = $help])+ pub $field: $number,)+
        }

        impl $group {
            /// Name, help and value of each.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, &'static str, $number)> {
                [$(($metric, concat!($($help),+).trim_ascii(), self.$field)),+].into_iter()
            }
        }
    };
}

numbers! {
    /// What happened since the start.
    Counts: u64 {
        /// Flow records received
        received = "records_received",
        /// Records that added nothing to what was known
        repeated = "records_repeated",
        /// Records of a third exporter of a flow that does not say which side it is
        surplus = "records_surplus",
        /// Flows that began
        begun = "flows_begun",
        /// Flows that went on from a tombstone
        revived = "flows_revived",
        /// Flows that ended because another began under the same key
        reused = "flows_reused",
        /// Exporters that began to count a flow anew
        restarted = "flows_restarted",
        /// Flows exported without the other half that they needed
        uncorrelated = "flows_uncorrelated",
        /// Joined records exported
        exported = "records_exported",
        /// Flows that had to leave a full table early
        evicted = "flows_evicted",
        /// Tombstones that had to leave early
        tombstones_evicted = "tombstones_evicted",
    }
}

numbers! {
    /// How much there is at a moment.
    Fill: usize {
        /// Flows in the table
        flows = "flows",
        /// Tombstones of flows that are over
        tombstones = "tombstones",
        /// Distinct sets of names
        tails = "names",
        /// Addresses of Nodes that agents reported
        node_addrs = "node_addresses",
    }
}

/// Who sent a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The exporter's address.
    pub addr: IpAddr,
    /// Its observation domain.
    pub domain: u32,
}

/// The table.
#[derive(Debug)]
pub struct Aggregate {
    v4: Flows<Ipv4Addr>,
    v6: Flows<Ipv6Addr>,
    nodes: Nodes,
    counts: Counts,
    cut: Cut,
    batch: Batch,
    hasher: foldhash::fast::FixedState,
}

/// Decoded records that wait to be applied together.
#[derive(Debug, Default)]
struct Group<'a> {
    v4: Vec<Item<'a, Ipv4Addr>>,
    v6: Vec<Item<'a, Ipv6Addr>>,
}

impl Aggregate {
    /// An empty table. Its indexes are reserved for the bounds at once.
    pub fn new(settings: &Settings) -> Aggregate {
        Aggregate {
            v4: Flows::new(settings),
            v6: Flows::new(settings),
            nodes: Nodes::default(),
            counts: Counts::default(),
            cut: Cut::default(),
            batch: Batch::default(),
            hasher: foldhash::fast::FixedState::default(),
        }
    }

    /// What is due by `now`, at most `max` flows of each family; true if there is more.
    pub fn expired(&mut self, now: u32, max: usize) -> bool {
        let mut out = Output { batch: &mut self.batch, counts: &mut self.counts, cut: &mut self.cut };
        let more = self.v4.expire(now, max, &mut out);
        self.v6.expire(now, max, &mut out) || more
    }

    /// Exports everything that has news: the process ends.
    pub fn finish(&mut self, now: u32) {
        let mut out = Output { batch: &mut self.batch, counts: &mut self.counts, cut: &mut self.cut };
        self.v4.finish(now, &mut out);
        self.v6.finish(now, &mut out);
    }

    /// The flows exported since the last call.
    pub fn take_batch(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// How many flows wait in the batch.
    pub fn batched(&self) -> usize {
        self.batch.len()
    }

    /// The flows that `wanted` accepts as they would be exported now, at most `max`.
    pub fn snapshot(&self, max: usize, wanted: impl Fn(&AggregatedFlow) -> bool) -> Vec<AggregatedFlow> {
        let mut cut = Cut::default();
        let v4 = self.v4.iter().map(|flow| {
            let mut one = Batch::default();
            one.push(flow, &self.v4.tails, &mut cut);
            one
        });
        let mut cut = Cut::default();
        let v6 = self.v6.iter().map(|flow| {
            let mut one = Batch::default();
            one.push(flow, &self.v6.tails, &mut cut);
            one
        });
        v4.chain(v6)
            .filter_map(|one| one.iter().next().and_then(|joined| joined.decode()))
            .filter(|flow| wanted(flow))
            .take(max)
            .collect()
    }

    /// What happened since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How much there is now.
    pub fn fill(&self) -> Fill {
        Fill {
            flows: self.v4.len() + self.v6.len(),
            tombstones: self.v4.tombstones.len() + self.v6.tombstones.len(),
            tails: self.v4.tails.len() + self.v6.tails.len(),
            node_addrs: self.nodes.len(),
        }
    }

    /// A record that gives a flow id is an agent's: its domain names the Node, whatever the address. Others are told
    /// apart by both.
    fn exporter(&self, source: Source, extended: &Extended) -> Exporter {
        let addr = if extended.flow_id == 0 { source.addr } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Exporter(self.hasher.hash_one((addr, source.domain)).max(1))
    }

    fn gather<'a>(&self, source: Source, head: &Head, tail: &'a [u8], extended: &Extended, group: &mut Group<'a>) {
        let family = head.family();
        let Some(bounds) = tail::bounds(family, tail) else { return };
        let exporter = self.exporter(source, extended);
        match family {
            Family::V4 => group.v4.push(Item::new(&self.v4, exporter, head, tail, bounds, extended)),
            Family::V6 => group.v6.push(Item::new(&self.v6, exporter, head, tail, bounds, extended)),
        }
    }

    fn apply(&mut self, group: &mut Group<'_>, now: u32) {
        self.counts.received += (group.v4.len() + group.v6.len()) as u64;
        let mut out = Output { batch: &mut self.batch, counts: &mut self.counts, cut: &mut self.cut };
        self.v4.apply(&group.v4, &self.nodes, now, &mut out);
        self.v6.apply(&group.v6, &self.nodes, now, &mut out);
        group.v4.clear();
        group.v6.clear();
    }
}
