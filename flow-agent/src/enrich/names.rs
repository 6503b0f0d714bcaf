//! What is to be said of a flow's ends, and the encoded form of it, each once.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use flow_common::k8s::{Index, Pod, ServicePort};
use flow_common::record::{Cut, EncodedTail, Family, FlowType, Tail, TcpState};
use flow_common::time::Timestamp;

use crate::table::Update;

/// Below so many, tails that nobody uses any more are not worth a search.
const TAILS_KEPT: usize = 4096;

/// All that a tail says.
#[derive(Clone, Debug)]
pub(super) struct Names {
    src: Option<Arc<Pod>>,
    dst: Option<Arc<Pod>>,
    service: Option<Arc<ServicePort>>,
    /// Address and port before translation, or of the Service.
    service_addr: Option<(IpAddr, u16)>,
    pub(super) flow_type: FlowType,
    tcp_state: TcpState,
    family: Family,
}

/// Where an address is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    OtherNode,
    NoPod,
}

impl Names {
    /// Looks everything up.
    pub(super) fn find(index: &Index, node: &str, update: &Update) -> Self {
        let ends = &update.ends;
        let src = local_pod(index, node, ends.src, update.start);
        let dst = local_pod(index, node, ends.dst, update.start);
        let meant = ends.original_dst.unwrap_or((ends.dst, ends.dst_port));
        let service = index.service_by_addr(meant.0, meant.1, ends.protocol);
        let places = [ends.src, ends.dst].map(|addr| place(index, node, addr, update.start));
        Self {
            src: src.cloned(),
            dst: dst.cloned(),
            service: service.cloned(),
            service_addr: (service.is_some() || ends.original_dst.is_some()).then_some(meant),
            flow_type: flow_type(places),
            tcp_state: update.tcp_state,
            family: Family::of(ends.src),
        }
    }

    fn tail(&self, node: &str) -> Tail {
        let mut tail = Tail { flow_type: self.flow_type, tcp_state: self.tcp_state, ..Tail::default() };
        if let Some(pod) = &self.src {
            (tail.src_pod, tail.src_namespace, tail.src_node) =
                (pod.name.to_string(), pod.namespace.to_string(), node.to_owned());
        }
        if let Some(pod) = &self.dst {
            (tail.dst_pod, tail.dst_namespace, tail.dst_node) =
                (pod.name.to_string(), pod.namespace.to_string(), node.to_owned());
        }
        if let Some(service) = &self.service {
            tail.service = service.name.to_string();
        }
        if let Some((addr, port)) = self.service_addr {
            (tail.service_addr, tail.service_port) = (addr, port);
        }
        tail
    }

    /// The same objects are the same allocations, which the key keeps from being given to others.
    fn identity(&self) -> impl Hash + Eq {
        let pod = |pod: &Option<Arc<Pod>>| pod.as_ref().map_or(0, |pod| Arc::as_ptr(pod) as usize);
        let service = self.service.as_ref().map_or(0, |service| Arc::as_ptr(service) as usize);
        (
            [pod(&self.src), pod(&self.dst), service],
            self.service_addr,
            [self.flow_type.code(), state_number(self.tcp_state), self.family as u8],
        )
    }
}

impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Names {}

impl Hash for Names {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.identity().hash(hasher);
    }
}

/// Every encoded tail, once.
#[derive(Debug, Default)]
pub(super) struct Tails {
    tails: HashMap<Names, Arc<EncodedTail>, foldhash::fast::RandomState>,
    /// How many there may be before unused ones are looked for.
    search_at: usize,
    cut: Cut,
}

impl Tails {
    /// The encoded form of `names`.
    pub(super) fn intern(&mut self, names: Names, node: &str) -> Arc<EncodedTail> {
        if let Some(tail) = self.tails.get(&names) {
            return tail.clone();
        }
        if self.tails.len() >= self.search_at {
            self.tails.retain(|_, tail| Arc::strong_count(tail) > 1);
            self.search_at = (self.tails.len() * 2).max(TAILS_KEPT);
        }
        let tail = Arc::new(names.tail(node).to_encoded(names.family, &mut self.cut));
        self.tails.insert(names, tail.clone());
        tail
    }

    pub(super) fn cut(&self) -> Cut {
        self.cut
    }
}

/// The Pod of this Node that had `addr` at that time.
pub(super) fn local_pod<'a>(index: &'a Index, node: &str, addr: IpAddr, at: Timestamp) -> Option<&'a Arc<Pod>> {
    index.pod_by_ip(addr, at).filter(|pod| &*pod.node == node)
}

/// A small number for each state.
pub(super) fn state_number(state: TcpState) -> u8 {
    match state {
        TcpState::Listen => 1,
        TcpState::SynSent => 2,
        TcpState::SynReceived => 3,
        TcpState::Established => 4,
        TcpState::FinWait1 => 5,
        TcpState::FinWait2 => 6,
        TcpState::CloseWait => 7,
        TcpState::Closing => 8,
        TcpState::LastAck => 9,
        TcpState::TimeWait => 10,
        TcpState::Closed => 11,
        TcpState::None | TcpState::Other(_) => 0,
    }
}

fn place(index: &Index, node: &str, addr: IpAddr, at: Timestamp) -> Place {
    match index.pod_by_ip(addr, at) {
        Some(pod) if &*pod.node == node => Place::Here,
        Some(_) => Place::OtherNode,
        None if index.in_pod_network(addr) && !index.is_node_addr(addr) => Place::OtherNode,
        None => Place::NoPod,
    }
}

fn flow_type([src, dst]: [Place; 2]) -> FlowType {
    match (src, dst) {
        (Place::NoPod, Place::NoPod) => FlowType::Unknown,
        (Place::NoPod, _) => FlowType::FromExternal,
        (_, Place::NoPod) => FlowType::ToExternal,
        (Place::Here, Place::Here) => FlowType::IntraNode,
        _ => FlowType::InterNode,
    }
}
