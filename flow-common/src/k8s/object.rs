//! Kubernetes objects, reduced to what naming flows and evaluating policies need. Strings that recur are shared.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cidr::Cidr;
use crate::time::Timestamp;

/// One object in its reduced form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Pod.
    Pod(Arc<Pod>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
    /// A Node.
    Node(Arc<Node>),
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
}

/// The kinds of object that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Pod.
    Pod,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What a source of objects reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object is new, or is now thus.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectRef),
}

/// Keys and values, sorted by key.
pub type Labels = Arc<[(Arc<str>, Arc<str>)]>;

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Tells it from another of the same name; empty in hand-written manifests.
    pub uid: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// The Node it is on; empty while it is not scheduled.
    pub node: Arc<str>,
    /// Whether it uses its Node's network, and so has no address of its own.
    pub host_network: bool,
    /// Its ServiceAccount.
    pub service_account: Arc<str>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its addresses, as reported by its status.
    pub addresses: Vec<IpAddr>,
    /// When it was created; [`Timestamp::ZERO`] where the manifest does not say.
    pub created: Timestamp,
    /// When it was asked to stop.
    pub deletion: Option<Timestamp>,
    /// The named ports of its containers, then of its restartable init containers.
    pub ports: Vec<NamedPort>,
}

/// `status.phase` of a Pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers run yet.
    Pending,
    /// It runs.
    #[default]
    Running,
    /// All its containers ended well.
    Succeeded,
    /// All its containers ended, one of them badly.
    Failed,
}

/// A container's port that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: TransportProtocol,
    /// Its number.
    pub port: u16,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Those of `status.addresses` that are addresses, not names.
    pub addresses: Vec<IpAddr>,
    /// The networks its Pods' addresses are from, where the CNI uses them.
    pub pod_networks: Vec<Cidr>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Which Pods it stands for; empty for one whose endpoints are written by hand.
    pub selector: Labels,
    /// Its type.
    pub kind: ServiceType,
    /// Its addresses in the cluster; none for a headless one.
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_addresses: Vec<IpAddr>,
    /// The addresses of its load balancer.
    pub load_balancer_addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Whether traffic from outside stays on the Node it arrives at, and keeps its source.
    pub external_traffic_local: bool,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// Reached by its addresses in the cluster.
    #[default]
    ClusterIp,
    /// Also by a port of every Node.
    NodePort,
    /// Also by a load balancer.
    LoadBalancer,
    /// A name for something outside; has no address.
    ExternalName,
}

/// A Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; may be empty if it is the only one.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: TransportProtocol,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at every Node's address.
    pub node_port: Option<u16>,
}

/// The protocols that Services and containers know. The value is the IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TransportProtocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The Service's name; empty if none claims it.
    pub service: Arc<str>,
    /// The addresses of the endpoints that are ready.
    pub addresses: Vec<IpAddr>,
    /// The ports at those addresses: the Service port's name, protocol and number.
    pub ports: Vec<NamedPort>,
}

impl Kind {
    /// All of them; `kind as usize` is its place here.
    pub const ALL: [Self; 5] = [Self::Pod, Self::Namespace, Self::Node, Self::Service, Self::EndpointSlice];
}

impl Kind {
    /// The API group and version it is read in.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Pod | Self::Namespace | Self::Node | Self::Service => "v1",
        }
    }
}

impl Object {
    /// What names this object.
    pub fn reference(&self) -> ObjectRef {
        let (kind, namespace, name) = match self {
            Self::Pod(pod) => (Kind::Pod, pod.namespace.clone(), &pod.name),
            Self::Namespace(namespace) => (Kind::Namespace, "".into(), &namespace.name),
            Self::Node(node) => (Kind::Node, "".into(), &node.name),
            Self::Service(service) => (Kind::Service, service.namespace.clone(), &service.name),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, slice.namespace.clone(), &slice.name),
        };
        ObjectRef { kind, namespace, name: name.clone() }
    }
}

impl Pod {
    /// Whether its addresses are its own: not its Node's, and not free for another Pod because it has ended.
    pub fn owns_addresses(&self) -> bool {
        !self.host_network && !matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        })
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() { write!(f, "{kind} {name}") } else { write!(f, "{kind} {namespace}/{name}") }
    }
}
