//! What the aggregator's own index adds.

use crate::aggregate::{
    Aggregate,
    testing::{EPOCH, NODE_A, NODE_B, destination, external, over, settings, since, source},
};
use flow_common::{
    k8s::{Change, Node, Object, Phase, Pod},
    record::{FlowType, ForwardingStatus, TcpState},
    time::Timestamp,
};
use std::{net::IpAddr, sync::Arc};

fn pod(name: &str, node: &str, addr: [u8; 4], labels: &[(&str, &str)]) -> Change {
    Change::Apply(Object::Pod(Arc::new(Pod {
        namespace: "shop".into(),
        name: name.into(),
        uid: "".into(),
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        node: node.into(),
        host_network: false,
        service_account: "default".into(),
        phase: Phase::Running,
        addresses: vec![addr.into()],
        created: Timestamp::ZERO,
        deletion: None,
        ports: Vec::new(),
    })))
}

/// Client and server on two Nodes, whose addresses are known.
fn table() -> Aggregate {
    let mut table = Aggregate::new(&settings());
    let nodes = [("node-a", [192, 0, 2, 1]), ("node-b", [192, 0, 2, 2])].map(|(name, addr): (&str, [u8; 4])| {
        let addresses: Vec<IpAddr> = vec![addr.into()];
        Change::Apply(Object::Node(Arc::new(Node {
            name: name.into(),
            labels: Arc::default(),
            addresses,
            pod_networks: Vec::new(),
        })))
    });
    let pods = [
        pod("client", "node-a", [10, 0, 1, 5], &[("app", "client")]),
        pod("server", "node-b", [10, 0, 2, 7], &[("app", "web"), ("tier", "1")]),
    ];
    for change in nodes.into_iter().chain(pods) {
        table.change(change, Timestamp::from_seconds(EPOCH.into()));
    }
    table
}

#[test]
fn where_both_ends_are_is_the_aggregators_word() {
    let mut table = table();
    // The agents do not know the other Node's Pods: each takes the other end for something outside.
    let (mut src, mut dst) = (source(5, 10), destination(5, 10));
    src.tail.flow_type = FlowType::ToExternal;
    dst.tail.flow_type = FlowType::FromExternal;
    table.hear(NODE_A, &[src], 0);
    assert_eq!(table.exports(), [], "between Nodes: the other half is waited for");
    table.hear(NODE_B, &[dst.clone()], 0);
    assert_eq!(table.exports()[0].tail.flow_type, FlowType::InterNode);

    // Other names later (here the state) do not bring the guess back.
    let mut later = since(over(dst), 0);
    later.tail.tcp_state = TcpState::TimeWait;
    later.extended.end_milliseconds += 1;
    table.hear(NODE_B, &[later], 1);
    table.pass(2, 61);
    let flow = table.exports().remove(0);
    assert_eq!((flow.tail.flow_type, flow.tail.tcp_state), (FlowType::InterNode, TcpState::TimeWait));
}

#[test]
fn the_pod_whose_node_will_not_report_is_named() {
    let mut table = table();
    let mut denied = over(source(1, 2));
    denied.extended.forwarding_status = ForwardingStatus::Dropped;
    table.hear(NODE_A, &[denied], 0);
    let flow = table.exports().remove(0);
    let names = [&flow.tail.dst_pod, &flow.tail.dst_namespace, &flow.tail.dst_node, &flow.tail.src_pod];
    assert_eq!(names, ["server", "shop", "node-b", "client"]);
}

#[test]
fn labels_are_sorted_objects() {
    let mut table = table();
    table.hear(NODE_A, &[source(5, 10)], 0);
    table.hear(NODE_B, &[destination(5, 10)], 0);
    let labels = table.exports().remove(0).labels;
    assert_eq!(
        (labels.src_labels.as_str(), labels.dst_labels.as_str()),
        (r#"{"app":"client"}"#, r#"{"app":"web","tier":"1"}"#)
    );
    table.hear(NODE_A, &[external(5, 10)], 0);
    assert_eq!(table.exports()[0].labels.dst_labels, "", "of what is no Pod nothing is known");
}

#[test]
fn an_address_of_another_node_is_known_without_its_agent() {
    let mut table = table();
    let mut inner = destination(5, 10);
    inner.tail.flow_type = FlowType::FromExternal;
    for (addr, waits) in [([192, 0, 2, 1], true), ([192, 0, 2, 2], false), ([198, 51, 100, 4], false)] {
        inner.head.src_addr = addr.into();
        table.hear(NODE_B, std::slice::from_ref(&inner), 0);
        assert_eq!(table.exports().is_empty(), waits, "{addr:?}");
    }
}
