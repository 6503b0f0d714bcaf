//! Names flows: Pods of this Node, the Service that was meant, what kind of flow it is.
//!
//! Takes the table's [`Update`]s and changes of Kubernetes objects, gives [`Record`]s ready to encode. A flow that was
//! named is not looked up again until something changed. Evaluates no policies and names nobody else's Pods: the
//! aggregator knows both ends.

use std::sync::Arc;

use flow_common::k8s::{Change, Index};
use flow_common::record::{Cut, EncodedTail, Extended, FlowRecord, FlowType, Head, Tail};
use flow_common::time::Timestamp;

use crate::table::{Ends, Update};

mod names;

#[cfg(test)]
mod tests;

use names::{Names, Tails};

/// A flow record as it is exported: numbers, and the names as they stand on the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Times, ends and counters.
    pub head: Head,
    /// Names, encoded; shared by all flows that have the same.
    pub tail: Arc<EncodedTail>,
    /// The fields beyond Antrea's.
    pub extended: Extended,
}

impl Record {
    /// The record with its names decoded, for people and filters.
    pub fn owned(&self) -> FlowRecord {
        let tail = Tail::decode(self.tail.family(), self.tail.bytes()).unwrap_or_default();
        FlowRecord { head: self.head, tail, extended: self.extended }
    }
}

/// What was found for a flow, good until the revision of its ends or the objects change.
#[derive(Clone, Debug, Default)]
struct Named {
    epoch: u64,
    revision: u32,
    state: u8,
    tail: Option<Arc<EncodedTail>>,
}

/// Holds the Kubernetes objects and the names of the flows in the table.
#[derive(Debug)]
pub struct Enricher {
    node: Arc<str>,
    in_cluster: bool,
    index: Index,
    /// By the table's slot.
    named: Vec<Named>,
    tails: Tails,
}

impl Enricher {
    /// For the Node of that name. Outside a cluster every flow is exported.
    pub fn new(node: &str, in_cluster: bool, index: Index) -> Self {
        Self { node: node.into(), in_cluster, index, named: Vec::new(), tails: Tails::default() }
    }

    /// Takes in a change of an object.
    pub fn change(&mut self, change: Change, now: Timestamp) {
        self.index.change(change, now);
    }

    /// The objects.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The objects, for what the Node itself reports.
    pub fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// How much of names had to be cut to fit a record.
    pub fn cut(&self) -> Cut {
        self.tails.cut()
    }

    /// Whether a flow that began at `start` is exported: one end, before or after translation, is a Pod of this Node,
    /// or it passes a NodePort or load balancer's address here.
    pub fn exports(&self, ends: &Ends, start: Timestamp) -> bool {
        if !self.in_cluster || ends.at_pod {
            return true;
        }
        let hidden = [ends.original_dst, ends.nat_src].into_iter().flatten().map(|(addr, _)| addr);
        let mut addrs = [ends.src, ends.dst].into_iter().chain(hidden);
        addrs.any(|addr| names::local_pod(&self.index, &self.node, addr, start).is_some())
            || self.passes_from_outside(ends)
    }

    /// Names a flow.
    pub fn record(&mut self, update: &Update) -> Record {
        Record { head: update.head, tail: self.tail(update), extended: update.extended }
    }

    /// The type of a flow, as far as this Node can tell.
    pub fn flow_type(&self, update: &Update) -> FlowType {
        Names::find(&self.index, &self.node, update).flow_type
    }

    fn tail(&mut self, update: &Update) -> Arc<EncodedTail> {
        let slot = update.slot as usize;
        if self.named.len() <= slot {
            self.named.resize(slot + 1, Named::default());
        }
        let (epoch, state) = (self.index.epoch(), names::state_number(update.tcp_state));
        let named = &mut self.named[slot];
        if let Some(tail) = &named.tail
            && (named.epoch, named.revision, named.state) == (epoch, update.revision, state)
        {
            return tail.clone();
        }
        let names = Names::find(&self.index, &self.node, update);
        let tail = self.tails.intern(names, &self.node);
        *named = Named { epoch, revision: update.revision, state, tail: Some(tail.clone()) };
        tail
    }

    /// Whether it came to a NodePort of this Node, or to an address of a load balancer or from outside.
    fn passes_from_outside(&self, ends: &Ends) -> bool {
        let Some((addr, port)) = ends.original_dst else { return false };
        let Some(found) = self.index.service_by_addr(addr, port, ends.protocol) else { return false };
        if self.index.is_node_addr(addr) {
            return self.index.node_by_addr(addr).is_some_and(|node| *node == self.node);
        }
        !found.service.cluster_addresses.contains(&addr)
    }
}
