//! What the lab consists of: names and addresses, as values. No I/O: wiring.rs makes it real, manifests.rs and
//! services.rs describe it to Kubernetes' readers and to nft.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The protocol families that every traffic kind is shown in.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As ip(8) and nft(8) abbreviate it.
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// A transport protocol of the lab's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP, or ICMPv6 between IPv6 addresses.
    Icmp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
            (Self::Icmp, Family::V4) => 1,
            (Self::Icmp, Family::V6) => 58,
        }
    }

    /// As nft(8) and the command line of `traffic` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// One of the two Nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// node-a.
    A,
    /// node-b.
    B,
}

impl Node {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// Its name in Kubernetes.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    /// 1 or 2: the digit in its addresses.
    pub fn digit(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its address, that of its first uplink.
    pub fn addr(self, family: Family) -> IpAddr {
        Uplink::First.addr(self, family)
    }

    /// The addresses of its Pods.
    pub fn pod_cidr(self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.244.{}.0/24", self.digit()),
            Family::V6 => format!("fd00:244:{}::/64", self.digit()),
        }
    }

    /// The Pods it starts with.
    pub fn pods(self) -> [Pod; 3] {
        [Pod::client(self), Pod::server(self), Pod::third(self)]
    }
}

/// One of the two ways from a Node to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// eth0: the one that routes lead over.
    First,
    /// eth1: for answers that take another way, and for re-routing.
    Second,
}

impl Uplink {
    /// Both.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    /// The interface's name in the Node.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "eth0",
            Self::Second => "eth1",
        }
    }

    /// The Node's address on it.
    pub fn addr(self, node: Node, family: Family) -> IpAddr {
        self.host(node, family, 10)
    }

    /// The router's address on it.
    pub fn gateway(self, node: Node, family: Family) -> IpAddr {
        self.host(node, family, 1)
    }

    fn host(self, node: Node, family: Family, host: u8) -> IpAddr {
        let net = node.digit() + if self == Self::First { 0 } else { 10 };
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(172, 31, net, host)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x31, net.into(), 0, 0, 0, 0, host.into())),
        }
    }
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its namespace in Kubernetes.
    pub namespace: &'static str,
    /// The Node it runs on.
    pub node: Node,
    /// The last part of its addresses.
    pub host: u8,
}

impl Pod {
    /// The Pod of a Node that asks.
    pub fn client(node: Node) -> Self {
        Self::new("client", "shop", node, 10)
    }

    /// The Pod of a Node that stands behind the Service.
    pub fn server(node: Node) -> Self {
        Self::new("server", "shop", node, 11)
    }

    /// A Pod of a Node in another namespace.
    pub fn third(node: Node) -> Self {
        Self::new("third", "ops", node, 12)
    }

    /// A Pod that comes later; `host` from 20 on.
    pub fn late(node: Node, host: u8) -> Self {
        Self { name: format!("late{host}-{}", letter(node)), namespace: "ops", node, host }
    }

    fn new(role: &str, namespace: &'static str, node: Node, host: u8) -> Self {
        Self { name: format!("{role}-{}", letter(node)), namespace, node, host }
    }

    /// Its address.
    pub fn addr(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 244, self.node.digit(), self.host)),
            Family::V6 => {
                let net = u16::from(self.node.digit());
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, net, 0, 0, 0, 0, self.host.into()))
            }
        }
    }

    /// The Node's end of its veth pair.
    pub fn veth(&self) -> String {
        format!("veth{}", self.name)
    }
}

/// Whatever has a network namespace of its own and is wired to a Node or to the router.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A Node.
    Node(Node),
    /// A Pod.
    Pod(Pod),
    /// The host outside of the cluster.
    External,
    /// The host that the aggregator runs on.
    Collector,
    /// What joins Nodes and hosts.
    Router,
}

impl Host {
    /// Its address; the router's is the one towards the external host.
    pub fn addr(&self, family: Family) -> IpAddr {
        match self {
            Self::Node(node) => node.addr(family),
            Self::Pod(pod) => pod.addr(family),
            Self::External => external(family),
            Self::Collector => collector(family),
            Self::Router => gateway_of(external(family)),
        }
    }

    /// Where its packets arrive, and on whose interface those it sends are seen first.
    pub fn cable(&self) -> (String, Host, String) {
        let (far, name) = match self {
            Self::Node(node) => (Self::Router, format!("{}-0", node.name())),
            Self::Pod(pod) => (Self::Node(pod.node), pod.veth()),
            Self::External => (Self::Router, "external".to_owned()),
            Self::Collector => (Self::Router, "collector".to_owned()),
            Self::Router => (Self::External, "eth0".to_owned()),
        };
        ("eth0".to_owned(), far, name)
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => f.write_str(node.name()),
            Self::Pod(pod) => f.write_str(&pod.name),
            Self::External => f.write_str("external"),
            Self::Collector => f.write_str("collector"),
            Self::Router => f.write_str("router"),
        }
    }
}

fn letter(node: Node) -> char {
    match node {
        Node::A => 'a',
        Node::B => 'b',
    }
}

/// The host outside of the cluster.
pub fn external(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9)),
    }
}

/// The host that the aggregator runs on.
pub fn collector(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(172, 31, 3, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x31, 3, 0, 0, 0, 0, 10)),
    }
}

/// The router's address towards a host that is on a cable of its own.
pub fn gateway_of(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(addr) => {
            let [a, b, c, _] = addr.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, 1))
        }
        IpAddr::V6(addr) => {
            let [a, b, c, d, e, f, g, _] = addr.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, 1))
        }
    }
}

/// A port of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Its name in the Service.
    pub name: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of the Service's ClusterIP.
    pub port: u16,
    /// The port of the server Pods.
    pub target: u16,
    /// The port of the Nodes.
    pub node_port: u16,
}

/// HTTP/1.1.
pub const HTTP: ServicePort =
    ServicePort { name: "http", protocol: Protocol::Tcp, port: 80, target: 8080, node_port: 30080 };
/// Takes bytes until the client has no more.
pub const BULK: ServicePort =
    ServicePort { name: "bulk", protocol: Protocol::Tcp, port: 90, target: 9090, node_port: 30090 };
/// Answers with what it got, over TCP.
pub const TALK: ServicePort =
    ServicePort { name: "talk", protocol: Protocol::Tcp, port: 70, target: 7070, node_port: 30070 };
/// Answers with what it got, over UDP.
pub const DNS: ServicePort =
    ServicePort { name: "dns", protocol: Protocol::Udp, port: 53, target: 5353, node_port: 30053 };
/// Answers with what it got, over SCTP.
pub const SCTP: ServicePort =
    ServicePort { name: "s1", protocol: Protocol::Sctp, port: 36412, target: 36412, node_port: 30412 };
/// A TCP port that no server listens on.
pub const CLOSED: ServicePort =
    ServicePort { name: "closed", protocol: Protocol::Tcp, port: 44, target: 4444, node_port: 30044 };
/// All ports of the Service.
pub const SERVICE_PORTS: [ServicePort; 6] = [HTTP, BULK, TALK, DNS, SCTP, CLOSED];

/// A TCP port that the Nodes' nft rules drop on the way.
pub const DROPPED_PORT: u16 = 9999;

/// The Service's name and namespace in Kubernetes.
pub const SERVICE: (&str, &str) = ("shop", "server");

/// The Service's ClusterIP.
pub fn cluster_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10)),
    }
}

/// Which Node's server the Service chooses for a client's port. Kube-proxy chooses at random; the lab by parity, so
/// that a test can say which backend it wants.
pub fn backend_of(src_port: u16) -> Node {
    if src_port.is_multiple_of(2) { Node::A } else { Node::B }
}

/// The server Pod behind an address that a client on the outside of the Service asked; other addresses are as they
/// are.
pub fn after_dnat(asked: SocketAddr, protocol: Protocol, src_port: u16) -> SocketAddr {
    let family = Family::of(asked.ip());
    let is_service = asked.ip() == cluster_ip(family);
    let is_node = Node::ALL.iter().any(|node| node.addr(family) == asked.ip());
    let port = SERVICE_PORTS.iter().find(|port| {
        port.protocol == protocol
            && ((is_service && port.port == asked.port()) || (is_node && port.node_port == asked.port()))
    });
    match port {
        Some(port) => SocketAddr::new(Pod::server(backend_of(src_port)).addr(family), port.target),
        None => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_chooses_a_backend_by_the_parity_of_the_client_s_port() {
        let asked = SocketAddr::new(cluster_ip(Family::V4), 80);
        assert_eq!(after_dnat(asked, Protocol::Tcp, 40001), "10.244.2.11:8080".parse().unwrap());
        assert_eq!(after_dnat(asked, Protocol::Tcp, 40000), "10.244.1.11:8080".parse().unwrap());
        let node_port = SocketAddr::new(Node::A.addr(Family::V6), 30053);
        assert_eq!(after_dnat(node_port, Protocol::Udp, 40001), "[fd00:244:2::b]:5353".parse().unwrap());
    }

    #[test]
    fn what_is_no_service_stays_as_it_is() {
        let other_protocol = SocketAddr::new(cluster_ip(Family::V4), 53);
        assert_eq!(after_dnat(other_protocol, Protocol::Tcp, 2), other_protocol);
    }
}
