//! Makes the topology: namespaces, cables, addresses, routes, rules and counters. Takes a cage, gives the network.
//! Every veth pair is made inside the namespaces it joins, so the machine's own never sees an interface.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::cage::{Cage, Namespace};
use crate::topology::{FAMILIES, Family, Host, Node, Pod, Uplink, gateway_of};
use crate::{services, truth};

/// The gateways of Pods, link-local and the same in each, as Calico has them.
const POD_GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// The namespaces, wired.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: Mutex<BTreeMap<Host, Arc<Namespace>>>,
}

impl Network {
    /// Builds all of it.
    pub(crate) fn new(cage: &Cage) -> Result<Self> {
        let network = Self { hosts: Mutex::default() };
        let router = network.add(cage, Host::Router)?;
        forward_between_interfaces(&router)?;
        for node in Node::ALL {
            network.wire_node(cage, node, &router).with_context(|| format!("cannot wire {}", node.name()))?;
        }
        for host in [Host::External, Host::Collector] {
            network.wire_host(cage, &host, &router).with_context(|| format!("cannot wire the host {host}"))?;
        }
        for pod in Node::ALL.iter().flat_map(|node| node.pods()) {
            network.wire_pod(cage, &pod)?;
        }
        Ok(network)
    }

    /// The namespace of a host.
    pub(crate) fn namespace(&self, host: &Host) -> Result<Arc<Namespace>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).cloned().with_context(|| format!("the lab has no host {host}"))
    }

    /// Makes a Pod's namespace and wires it as CNIs do: the host end of the pair and a route to it in the Node.
    pub(crate) fn wire_pod(&self, cage: &Cage, pod: &Pod) -> Result<()> {
        let node = self.namespace(&Host::Node(pod.node))?;
        let namespace = self.add(cage, Host::Pod(pod.clone()))?;
        let veth = pod.veth();
        let wired = || -> Result<()> {
            cable(&node, &veth, &namespace, "eth0")?;
            node.set(&format!("ipv4/conf/{veth}/proxy_arp"), "1")?;
            // By default such an answer waits up to 0.8 s; a second SYN in that time is one that conntrack ignores
            // without counting it.
            node.set(&format!("ipv4/neigh/{veth}/proxy_delay"), "0")?;
            let [gateway4, gateway6] = POD_GATEWAYS;
            let mut host_end =
                vec![format!("address add {gateway6}/64 dev {veth} nodad"), format!("link set {veth} up")];
            let mut pod_end = vec!["link set eth0 up".to_owned()];
            for family in FAMILIES {
                let addr = pod.addr(family);
                host_end.push(format!("route add {} dev {veth}", single(addr)));
                pod_end.push(format!("address add {} dev eth0{}", single(addr), no_dad(family)));
            }
            pod_end.push(format!("route add {gateway4} dev eth0 scope link"));
            pod_end.push(format!("route add default via {gateway4} dev eth0"));
            pod_end.push(format!("route add default via {gateway6} dev eth0"));
            batch(&node, &host_end)?;
            batch(&namespace, &pod_end)
        };
        wired().with_context(|| format!("cannot wire the Pod {}", pod.name))
    }

    /// Takes a Pod away as the end of its sandbox does: the namespace goes, and its veth pair with it.
    pub(crate) fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let node = self.namespace(&Host::Node(pod.node))?;
        batch(&node, &[format!("link delete {}", pod.veth())])?;
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).remove(&Host::Pod(pod.clone()));
        Ok(())
    }

    fn add(&self, cage: &Cage, host: Host) -> Result<Arc<Namespace>> {
        let namespace = Arc::new(cage.namespace(&host.to_string())?);
        batch(&namespace, &["link set lo up".to_owned()])?;
        // Addresses are unique by design: detecting duplicates would only make the lab slow to start.
        for scope in ["all", "default"] {
            namespace.set(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.set(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
            namespace.set(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
        }
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).insert(host, Arc::clone(&namespace));
        Ok(namespace)
    }

    fn wire_node(&self, cage: &Cage, node: Node, router: &Namespace) -> Result<()> {
        let namespace = self.add(cage, Host::Node(node))?;
        forward_between_interfaces(&namespace)?;
        // Conntrack's own counters and start times are one of the truths the product is held against.
        namespace.set("netfilter/nf_conntrack_acct", "1")?;
        namespace.set("netfilter/nf_conntrack_timestamp", "1")?;
        for (index, uplink) in Uplink::ALL.into_iter().enumerate() {
            let far = format!("{}-{index}", node.name());
            cable(&namespace, uplink.name(), router, &far)?;
            let mut near_end = vec![format!("link set {} up", uplink.name())];
            let mut far_end = vec![format!("link set {far} up")];
            for family in FAMILIES {
                near_end.push(address(uplink.addr(node, family), uplink.name()));
                far_end.push(address(uplink.gateway(node, family), &far));
                if uplink == Uplink::First {
                    near_end.push(format!("route add default via {}", uplink.gateway(node, family)));
                    far_end.push(format!("route add {} via {}", node.pod_cidr(family), uplink.addr(node, family)));
                }
            }
            batch(&namespace, &near_end)?;
            batch(router, &far_end)?;
        }
        namespace.feed("nft", &["-f", "-"], &services::rules(node))?;
        Ok(())
    }

    fn wire_host(&self, cage: &Cage, host: &Host, router: &Namespace) -> Result<()> {
        let namespace = self.add(cage, host.clone())?;
        let (near, _, far) = host.cable();
        cable(&namespace, &near, router, &far)?;
        let mut near_end = vec![format!("link set {near} up")];
        let mut far_end = vec![format!("link set {far} up")];
        for family in FAMILIES {
            let addr = host.addr(family);
            near_end.push(address(addr, &near));
            near_end.push(format!("route add default via {}", gateway_of(addr)));
            far_end.push(address(gateway_of(addr), &far));
        }
        batch(&namespace, &near_end)?;
        batch(router, &far_end)
    }
}

/// Joins two namespaces by a veth pair, and counts what arrives at each end.
fn cable(near: &Namespace, near_name: &str, far: &Namespace, far_name: &str) -> Result<()> {
    let far_path = far.path();
    near.run("ip", &["link", "add", near_name, "type", "veth", "peer", "name", far_name, "netns", &far_path])?;
    near.feed("nft", &["-f", "-"], &truth::counters(near_name))?;
    far.feed("nft", &["-f", "-"], &truth::counters(far_name))?;
    Ok(())
}

fn forward_between_interfaces(namespace: &Namespace) -> Result<()> {
    namespace.set("ipv4/ip_forward", "1")?;
    namespace.set("ipv6/conf/all/forwarding", "1")
}

/// Runs lines of ip(8).
pub(crate) fn batch(namespace: &Namespace, lines: &[String]) -> Result<()> {
    namespace.feed("ip", &["-batch", "-"], &(lines.join("\n") + "\n"))?;
    Ok(())
}

fn address(addr: IpAddr, device: &str) -> String {
    let family = Family::of(addr);
    let prefix = if family == Family::V4 { 24 } else { 64 };
    format!("address add {addr}/{prefix} dev {device}{}", no_dad(family))
}

fn single(addr: IpAddr) -> String {
    format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 })
}

fn no_dad(family: Family) -> &'static str {
    if family == Family::V6 { " nodad" } else { "" }
}
