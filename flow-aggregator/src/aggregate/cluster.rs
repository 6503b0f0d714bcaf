//! What is known of the cluster: its Pods from the Kubernetes index, its Nodes' addresses also from their agents.
//!
//! Takes changes of objects and agents' reports; gives what a half cannot know: where both ends are, the name of a Pod
//! whose Node will not report, Pods' labels, whether an address is another Node's. Without an index the agents' word
//! stands.

use super::{flow::Exporter, nodes::Nodes};
use flow_common::{
    k8s::{Change, Index, Pod},
    record::{FlowType, Tail},
    time::Timestamp,
};
use std::net::IpAddr;

/// Objects of a large cluster.
const MAX_OBJECTS: usize = 1_000_000;

/// Pods and Nodes.
#[derive(Debug)]
pub(super) struct Cluster {
    index: Index,
    /// An object was seen: without any, nothing is known of anything.
    known: bool,
    pub(super) nodes: Nodes,
    labels: bool,
}

/// Both ends of a flow and when it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) at: Timestamp,
}

impl Cluster {
    /// Nothing is known yet. Labels are given only if they are wanted.
    pub(super) fn new(labels: bool) -> Cluster {
        Cluster { index: Index::new(MAX_OBJECTS), known: false, nodes: Nodes::default(), labels }
    }

    /// Labels are given or not from here on.
    pub(super) fn show_labels(&mut self, labels: bool) {
        self.labels = labels;
    }

    /// As before the first change; what agents reported of their Nodes stays.
    pub(super) fn forget_objects(&mut self) {
        self.index = Index::new(MAX_OBJECTS);
        self.known = false;
    }

    pub(super) fn change(&mut self, change: Change, now: Timestamp) {
        self.known = true;
        self.index.change(change, now);
    }

    /// Whether there is an index to ask.
    #[inline]
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// A half's names with what the index knows better, or `None` if that is nothing: where the two ends are, and, of a
    /// half that will stay alone, the Pod that it does not name.
    pub(super) fn correct(&self, ends: Ends, alone: bool, tail: &Tail) -> Option<Tail> {
        let pod = |addr| self.index.pod_by_ip(addr, ends.at);
        let (src, dst) = (pod(ends.src), pod(ends.dst));
        let mut better = tail.clone();
        better.flow_type = match (src, dst) {
            (Some(src), Some(dst)) if src.node == dst.node => FlowType::IntraNode,
            (Some(_), Some(_)) => FlowType::InterNode,
            (Some(_), None) => FlowType::ToExternal,
            (None, Some(_)) => FlowType::FromExternal,
            (None, None) => tail.flow_type,
        };
        if alone {
            name(src, [&mut better.src_pod, &mut better.src_namespace, &mut better.src_node]);
            name(dst, [&mut better.dst_pod, &mut better.dst_namespace, &mut better.dst_node]);
        }
        (better != *tail).then_some(better)
    }

    /// The labels of the Pod that has this address: a JSON object, or "" where none is known or wanted.
    pub(super) fn labels(&self, addr: IpAddr, at: Timestamp) -> String {
        if !self.labels {
            return String::new();
        }
        let Some(pod) = self.index.pod_by_ip(addr, at) else { return String::new() };
        let labels: serde_json::Map<String, serde_json::Value> =
            pod.labels.iter().map(|(key, value)| (key.to_string(), value.as_ref().into())).collect();
        serde_json::Value::Object(labels).to_string()
    }

    /// Whether the address is a Node's, and not that of the destination's Node, which reports.
    pub(super) fn is_other_node(
        &self,
        addr: IpAddr,
        reporter: Exporter,
        now: u32,
        half: impl Fn() -> Option<Tail>,
    ) -> bool {
        let by_index = || {
            let node = self.index.node_by_addr(addr)?;
            half().map(|half| half.dst_node != **node)
        };
        self.nodes.is_other(addr, reporter, now) || by_index().unwrap_or(false)
    }
}

/// Fills what is empty.
fn name(pod: Option<&std::sync::Arc<Pod>>, [own, namespace, node]: [&mut String; 3]) {
    let Some(pod) = pod.filter(|_| own.is_empty()) else { return };
    *own = pod.name.to_string();
    *namespace = pod.namespace.to_string();
    *node = pod.node.to_string();
}
