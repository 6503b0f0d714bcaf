//! The index itself: the objects by name, and what is found by address.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{Claims, Networks};
use super::object::{Change, Kind, Node, Object, ObjectRef, Pod, Service, ServiceType};
use super::tenure::Tenures;
use crate::time::Timestamp;

/// How many reported addresses of one Node are used.
const MAX_REPORTED: usize = 1024;

/// All objects that are known, and who had which address when.
#[derive(Debug)]
pub struct Index {
    max_objects: usize,
    objects: HashMap<ObjectRef, Object, foldhash::fast::RandomState>,
    tenures: Tenures,
    service_addrs: Claims<(IpAddr, u16, u8), Arc<ServicePort>>,
    node_ports: Claims<(u16, u8), Arc<ServicePort>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    node_addrs: Claims<IpAddr, Arc<str>>,
    reported: BTreeMap<Arc<str>, Vec<IpAddr>>,
    pod_networks: Networks,
    epoch: u64,
    counts: [usize; Kind::ALL.len()],
    refused: u64,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Objects held now, by kind in the order of [`Kind::ALL`].
    pub objects: [usize; Kind::ALL.len()],
    /// Addresses that Pods had and have no more, kept for late look-ups.
    pub departed: usize,
    /// Objects (and Nodes' own reports) refused because the index was full.
    pub refused: u64,
    /// Departed addresses forgotten before their time because there were too many.
    pub forgotten: u64,
}

impl Index {
    /// An index for at most `max_objects` objects and as many departed addresses. A new object beyond that is refused
    /// and counted.
    pub fn new(max_objects: usize) -> Self {
        Self {
            max_objects,
            objects: HashMap::default(),
            tenures: Tenures::new(max_objects),
            service_addrs: Claims::default(),
            node_ports: Claims::default(),
            nodes: BTreeMap::new(),
            node_addrs: Claims::default(),
            reported: BTreeMap::new(),
            pod_networks: Networks::default(),
            epoch: 0,
            counts: [0; Kind::ALL.len()],
            refused: 0,
        }
    }

    /// Applies or deletes, whichever the source reports.
    pub fn change(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Apply(object) => self.apply(object, now),
            Change::Delete(reference) => self.delete(&reference, now),
        }
    }

    /// Takes in a new object, or the new form of a known one.
    pub fn apply(&mut self, object: Object, now: Timestamp) {
        self.expire(now);
        let reference = object.reference();
        let old = match self.objects.get(&reference) {
            Some(old) if *old == object => return,
            Some(old) => Some(old.clone()),
            None if self.objects.len() >= self.max_objects => {
                self.refused += 1;
                return;
            }
            None => None,
        };
        if old.is_none() {
            self.counts[reference.kind as usize] += 1;
        }
        self.replace(old.as_ref(), Some(&object), now);
        self.objects.insert(reference, object);
        self.epoch += 1;
    }

    /// Takes an object out. A Pod's addresses stay for look-ups of the past.
    pub fn delete(&mut self, reference: &ObjectRef, now: Timestamp) {
        self.expire(now);
        if let Some(old) = self.objects.remove(reference) {
            self.counts[reference.kind as usize] -= 1;
            self.replace(Some(&old), None, now);
            self.epoch += 1;
        }
    }

    /// Forgets the addresses that Pods left 5 minutes ago. Where nothing changes they stay, which no look-up of a
    /// later time sees.
    fn expire(&mut self, now: Timestamp) {
        if self.tenures.expire(now) {
            self.epoch += 1;
        }
    }

    /// The addresses that `node`'s agent found on its interfaces (bridges, gateways, tunnels), all of them at each
    /// call; the API does not list them. Addresses that every host has (loopback, link-local) are left out. The Node
    /// itself need not be known.
    pub fn report_node_addresses(&mut self, node: &str, addresses: &[IpAddr]) {
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(IpAddr::to_canonical)
            .filter(|addr| tells_hosts_apart(*addr))
            .take(MAX_REPORTED)
            .collect();
        let known = self.reported.get(node);
        if known.map_or(addresses.is_empty(), |known| *known == addresses) {
            return;
        }
        if known.is_none() && self.reported.len() >= self.max_objects {
            self.refused += 1;
            return;
        }
        let name: Arc<str> = node.into();
        let listed = self.nodes.get(node).map_or(&[][..], |node| &node.addresses);
        self.node_addrs.remove(&name, listed.iter().chain(known.into_iter().flatten()));
        self.node_addrs.add(&name, listed.iter().chain(&addresses).map(|addr| (*addr, name.clone())));
        self.reported.insert(name, addresses);
        self.epoch += 1;
    }

    /// The Pod that had `addr` at that time. Host-network Pods have no address of their own and are never it.
    pub fn pod_by_ip(&self, addr: IpAddr, at: Timestamp) -> Option<&Arc<Pod>> {
        self.tenures.at(addr.to_canonical(), at)
    }

    /// The Service port that `addr` and `port` stand for: a ClusterIP, external IP or load balancer's address with a
    /// Service port, or a Node's address with a NodePort. `protocol` is the IP protocol number.
    pub fn service_by_addr(&self, addr: IpAddr, port: u16, protocol: u8) -> Option<&Arc<ServicePort>> {
        let addr = addr.to_canonical();
        self.service_addrs.first(&(addr, port, protocol)).or_else(|| {
            let found = self.node_ports.first(&(port, protocol))?;
            self.is_node_addr(addr).then_some(found)
        })
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The name of the Node that has `addr` itself (as its own, not as a Pod's).
    pub fn node_by_addr(&self, addr: IpAddr) -> Option<&Arc<str>> {
        self.node_addrs.first(&addr.to_canonical())
    }

    /// Whether a Node has `addr` itself.
    pub fn is_node_addr(&self, addr: IpAddr) -> bool {
        self.node_by_addr(addr).is_some()
    }

    /// Whether `addr` is of a network that some Node says it takes its Pods' addresses from. With many CNIs no Node
    /// does.
    pub fn in_pod_network(&self, addr: IpAddr) -> bool {
        self.pod_networks.contains(addr.to_canonical())
    }

    /// Another number after each change that could change an answer.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What it holds.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            objects: self.counts,
            departed: self.tenures.departed(),
            refused: self.refused,
            forgotten: self.tenures.forgotten(),
        }
    }

    /// Carries one object's change into what is found by address. Both forms, if there are two, have the same name.
    fn replace(&mut self, old: Option<&Object>, new: Option<&Object>, now: Timestamp) {
        match (old, new) {
            (Some(Object::Pod(old)), Some(Object::Pod(new))) => self.tenures.replace(old, new, now),
            (None, Some(Object::Pod(new))) => self.tenures.begin(new),
            (Some(Object::Pod(old)), None) => self.tenures.end(old, now),
            _ => {
                match old {
                    Some(Object::Service(old)) => self.remove_service(old),
                    Some(Object::Node(old)) => self.remove_node(old),
                    _ => {}
                }
                match new {
                    Some(Object::Service(new)) => self.add_service(new),
                    Some(Object::Node(new)) => self.add_node(new),
                    _ => {}
                }
            }
        }
    }

    fn add_service(&mut self, service: &Arc<Service>) {
        let owner = owner(service);
        for (keys, node_port, found) in service_ports(service, &owner) {
            self.service_addrs.add(&owner, keys.into_iter().map(|key| (key, found.clone())));
            self.node_ports.add(&owner, node_port.map(|key| (key, found.clone())));
        }
    }

    fn remove_service(&mut self, service: &Arc<Service>) {
        let owner = owner(service);
        for (keys, node_port, _) in service_ports(service, &owner) {
            self.service_addrs.remove(&owner, &keys);
            self.node_ports.remove(&owner, &node_port);
        }
    }

    fn add_node(&mut self, node: &Arc<Node>) {
        self.node_addrs.add(&node.name, node.addresses.iter().map(|addr| (*addr, node.name.clone())));
        for network in &node.pod_networks {
            self.pod_networks.add(*network);
        }
        self.nodes.insert(node.name.clone(), node.clone());
    }

    fn remove_node(&mut self, node: &Arc<Node>) {
        let reported = self.reported.get(&node.name).map_or(&[][..], Vec::as_slice);
        self.node_addrs.remove(&node.name, node.addresses.iter().filter(|addr| !reported.contains(addr)));
        for network in &node.pod_networks {
            self.pod_networks.remove(*network);
        }
        self.nodes.remove(&node.name);
    }
}

/// Whose claims a Service's are: the first of two Services that claim one address is the one whose name sorts first.
fn owner(service: &Service) -> Arc<str> {
    format!("{}/{}", service.namespace, service.name).into()
}

/// For each port of a Service: the addresses it is found by, its NodePort, and what is found.
#[expect(clippy::type_complexity, reason = "one private pair of callers")]
fn service_ports(
    service: &Arc<Service>,
    owner: &str,
) -> Vec<(Vec<(IpAddr, u16, u8)>, Option<(u16, u8)>, Arc<ServicePort>)> {
    if service.kind == ServiceType::ExternalName {
        return Vec::new();
    }
    let addresses = [&service.cluster_addresses, &service.external_addresses, &service.load_balancer_addresses];
    let ports = service.ports.iter().map(|port| {
        let protocol = port.protocol as u8;
        let keys = addresses.into_iter().flatten().map(|addr| (*addr, port.port, protocol)).collect();
        let name = if port.name.is_empty() { owner.into() } else { format!("{owner}:{}", port.name).into() };
        let found = ServicePort { name, service: service.clone(), port: port.port };
        (keys, port.node_port.map(|number| (number, protocol)), Arc::new(found))
    });
    ports.collect()
}

/// Whether an address belongs to one host of the cluster.
fn tells_hosts_apart(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local() && !addr.is_unspecified(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local() && !addr.is_unspecified(),
    }
}

#[cfg(test)]
mod tests;
