//! The index itself.

use std::net::IpAddr;
use std::sync::Arc;

use super::object::{Change, Node, Object, ObjectRef, Pod, Service};
use crate::time::Timestamp;

/// All objects that are known, and who had which address when.
#[derive(Debug, Default)]
pub struct Index {
    epoch: u64,
}

/// One port of a Service, found by one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port name`, or `namespace/name` if the port has no name.
    pub name: Arc<str>,
    /// The Service it belongs to.
    pub service: Arc<Service>,
    /// The port at the Service's own addresses.
    pub port: u16,
}

/// How much the index holds, and what it had to refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Objects held now, by the order of [`super::Kind`].
    pub objects: [usize; 5],
    /// Addresses that Pods had and have no more, kept for late look-ups.
    pub departed: usize,
    /// Objects refused because the index was full.
    pub refused: u64,
    /// Departed addresses forgotten before their time because there were too many.
    pub forgotten: u64,
}

impl Index {
    /// An index for at most `max_objects` objects; what is beyond is refused and counted.
    pub fn new(max_objects: usize) -> Self {
        let _ = max_objects;
        Self::default()
    }

    /// Applies or deletes, whichever the source reports.
    pub fn change(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Apply(object) => self.apply(object, now),
            Change::Delete(reference) => self.delete(&reference, now),
        }
    }

    /// Takes in a new object, or the new form of a known one.
    pub fn apply(&mut self, _object: Object, _now: Timestamp) {
        self.epoch += 1;
    }

    /// Takes an object out. A Pod's addresses stay for look-ups of the past.
    pub fn delete(&mut self, _object: &ObjectRef, _now: Timestamp) {
        self.epoch += 1;
    }

    /// Forgets what was kept long enough. `apply` and `delete` do so too; to be called every minute or so where nothing changes.
    pub fn expire(&mut self, _now: Timestamp) {}

    /// The addresses that `node`'s agent found on its interfaces (bridges, gateways, tunnels); the API does not list them.
    pub fn report_node_addresses(&mut self, _node: &str, _addresses: &[IpAddr]) {}

    /// The Pod that had `addr` at that time.
    pub fn pod_by_ip(&self, _addr: IpAddr, _at: Timestamp) -> Option<&Arc<Pod>> {
        None
    }

    /// The Service port that `addr` and `port` stand for: a ClusterIP, external IP or load balancer's address with a Service port, or a
    /// Node's address with a NodePort. `protocol` is the IP protocol number.
    pub fn service_by_addr(&self, _addr: IpAddr, _port: u16, _protocol: u8) -> Option<&Arc<ServicePort>> {
        None
    }

    /// All Nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        std::iter::empty()
    }

    /// The Node that has `addr` itself (as its own, not as a Pod's).
    pub fn node_by_addr(&self, _addr: IpAddr) -> Option<&Arc<Node>> {
        None
    }

    /// Whether a Node has `addr` itself.
    pub fn is_node_addr(&self, addr: IpAddr) -> bool {
        self.node_by_addr(addr).is_some()
    }

    /// Whether `addr` is of a network that some Node takes its Pods' addresses from.
    pub fn in_pod_network(&self, _addr: IpAddr) -> bool {
        false
    }

    /// Another number after each change that could change an answer.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What it holds.
    pub fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}
