//! Names, flow types and what is exported, from objects as Kubernetes has them.

use std::net::IpAddr;

use flow_common::k8s::{Node, Object, Phase, Pod, Port, Service, ServiceType, TransportProtocol};
use flow_common::record::{Extended, Family, Tail, TcpState};

use super::*;

const NOW: Timestamp = Timestamp::from_seconds(1_000);

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, node: &str, address: &str) -> Object {
    Object::Pod(Arc::new(Pod {
        namespace: "shop".into(),
        name: name.into(),
        uid: name.into(),
        labels: Arc::new([]),
        node: node.into(),
        host_network: false,
        service_account: "default".into(),
        phase: Phase::Running,
        addresses: vec![addr(address)],
        created: Timestamp::ZERO,
        deletion: None,
        ports: Vec::new(),
    }))
}

fn node(name: &str, address: &str) -> Object {
    let network = if name == "node-a" { "10.0.1.0/24" } else { "10.0.2.0/24" };
    Object::Node(Arc::new(Node {
        name: name.into(),
        labels: Arc::new([]),
        addresses: vec![addr(address)],
        pod_networks: vec![network.parse().unwrap()],
    }))
}

fn service() -> Object {
    Object::Service(Arc::new(Service {
        namespace: "shop".into(),
        name: "web".into(),
        selector: Arc::new([]),
        kind: ServiceType::LoadBalancer,
        cluster_addresses: vec![addr("10.96.0.10")],
        external_addresses: Vec::new(),
        load_balancer_addresses: vec![addr("203.0.113.7")],
        ports: vec![Port { name: "http".into(), protocol: TransportProtocol::Tcp, port: 80, node_port: Some(30_080) }],
        external_traffic_local: false,
    }))
}

/// Two Nodes; `client` and `server` here, `far` there.
fn enricher() -> Enricher {
    let mut index = Index::new(1_000);
    for object in [
        node("node-a", "172.18.0.2"),
        node("node-b", "172.18.0.3"),
        pod("client", "node-a", "10.0.1.2"),
        pod("server", "node-a", "10.0.1.3"),
        pod("far", "node-b", "10.0.2.3"),
        service(),
    ] {
        index.apply(object, NOW);
    }
    Enricher::new("node-a", true, index)
}

fn ends(src: &str, dst: &str, original_dst: Option<(&str, u16)>) -> Ends {
    Ends {
        src: addr(src),
        dst: addr(dst),
        src_port: 40_000,
        dst_port: 8080,
        protocol: 6,
        original_dst: original_dst.map(|(address, port)| (addr(address), port)),
        nat_src: None,
        at_pod: false,
    }
}

fn update(ends: Ends) -> Update {
    Update {
        slot: 0,
        revision: 1,
        head: Head::default(),
        extended: Extended::default(),
        ends,
        zone: 0,
        tcp_state: TcpState::Established,
        start: NOW,
    }
}

fn named(enricher: &mut Enricher, ends: Ends) -> Tail {
    let record = enricher.record(&Update { slot: enricher.named.len() as u32, ..update(ends) });
    Tail::decode(Family::of(ends.src), record.tail.bytes()).unwrap()
}

#[test]
fn pods_of_this_node_and_the_service_are_named() {
    let mut enricher = enricher();
    let tail = named(&mut enricher, ends("10.0.1.2", "10.0.1.3", Some(("10.96.0.10", 80))));
    let expected = Tail {
        src_pod: "client".into(),
        src_namespace: "shop".into(),
        src_node: "node-a".into(),
        dst_pod: "server".into(),
        dst_namespace: "shop".into(),
        dst_node: "node-a".into(),
        service: "shop/web:http".into(),
        service_port: 80,
        service_addr: addr("10.96.0.10"),
        tcp_state: TcpState::Established,
        flow_type: FlowType::IntraNode,
        ..Tail::default()
    };
    assert_eq!(tail, expected);
}

#[test]
fn another_nodes_pod_is_left_to_that_node() {
    let mut enricher = enricher();
    let tail = named(&mut enricher, ends("10.0.1.2", "10.0.2.3", None));
    assert_eq!((&*tail.src_pod, &*tail.dst_pod, &*tail.dst_node), ("client", "", ""));
    assert_eq!((tail.flow_type, tail.service_port, tail.service_addr), (FlowType::InterNode, 0, addr("0.0.0.0")));
}

#[test]
fn flow_types_follow_from_where_the_ends_are() {
    let enricher = enricher();
    for (src, dst, flow_type) in [
        ("10.0.1.2", "10.0.1.3", FlowType::IntraNode),
        ("10.0.1.2", "10.0.2.3", FlowType::InterNode),
        // A Pod that is not known yet, of another Node's network.
        ("10.0.1.2", "10.0.2.99", FlowType::InterNode),
        ("10.0.1.2", "192.0.2.1", FlowType::ToExternal),
        ("10.0.1.2", "172.18.0.3", FlowType::ToExternal),
        ("192.0.2.1", "10.0.1.3", FlowType::FromExternal),
        ("172.18.0.3", "10.0.1.3", FlowType::FromExternal),
        ("192.0.2.1", "10.0.2.3", FlowType::FromExternal),
        ("192.0.2.1", "192.0.2.2", FlowType::Unknown),
    ] {
        assert_eq!(enricher.flow_type(&update(ends(src, dst, None))), flow_type, "{src} {dst}");
    }
}

#[test]
fn a_service_is_found_by_each_of_its_addresses() {
    let mut enricher = enricher();
    for (address, port) in [("10.96.0.10", 80), ("203.0.113.7", 80), ("172.18.0.2", 30_080), ("172.18.0.3", 30_080)] {
        let tail = named(&mut enricher, ends("192.0.2.1", "10.0.1.3", Some((address, port))));
        assert_eq!((&*tail.service, tail.service_addr, tail.service_port), ("shop/web:http", addr(address), port));
    }
    // One that has no backend is not translated.
    let refused = Ends { dst_port: 80, ..ends("10.0.1.2", "10.96.0.10", None) };
    assert_eq!(named(&mut enricher, refused).service, "shop/web:http");
    // A translation that no Service explains.
    let tail = named(&mut enricher, ends("10.0.1.2", "10.0.1.3", Some(("198.51.100.1", 81))));
    assert_eq!((&*tail.service, tail.service_addr, tail.service_port), ("", addr("198.51.100.1"), 81));
}

#[test]
fn an_unchanged_flow_keeps_its_names_and_a_changed_one_does_not() {
    let mut enricher = enricher();
    let first = update(ends("10.0.1.2", "10.0.2.3", None));
    let before = enricher.record(&first).tail;
    assert!(Arc::ptr_eq(&before, &enricher.record(&first).tail));
    // Another flow of the same ends has the same allocation.
    let other = Update { slot: 5, revision: 9, ..first };
    assert!(Arc::ptr_eq(&before, &enricher.record(&other).tail));

    let closed = enricher.record(&Update { tcp_state: TcpState::TimeWait, ..first }).tail;
    assert_eq!(Tail::decode(Family::V4, closed.bytes()).unwrap().tcp_state, TcpState::TimeWait);
    let joined = Update { revision: 2, ends: ends("10.0.1.2", "10.0.1.3", None), ..first };
    let joined = enricher.record(&joined).tail;
    assert_eq!(Tail::decode(Family::V4, joined.bytes()).unwrap().dst_pod, "server");

    enricher.change(Change::Apply(pod("late", "node-a", "10.0.1.9")), NOW);
    let late = update(ends("10.0.1.9", "10.0.2.3", None));
    assert_eq!(Tail::decode(Family::V4, enricher.record(&late).tail.bytes()).unwrap().src_pod, "late");
}

#[test]
fn an_address_names_the_pod_that_had_it_when_the_flow_began() {
    let mut enricher = enricher();
    let Object::Pod(client) = pod("client", "node-a", "10.0.1.2") else { unreachable!() };
    let gone = Timestamp::from_seconds(1_100);
    enricher.change(Change::Delete(Object::Pod(client).reference()), gone);
    let Object::Pod(next) = pod("next", "node-a", "10.0.1.2") else { unreachable!() };
    let next = Pod { created: Timestamp::from_seconds(1_110), ..Pod::clone(&next) };
    enricher.change(Change::Apply(Object::Pod(Arc::new(next))), Timestamp::from_seconds(1_110));
    for (start, name) in [(1_050, "client"), (1_120, "next")] {
        let flow = Update {
            slot: start as u32,
            start: Timestamp::from_seconds(start),
            ..update(ends("10.0.1.2", "10.0.2.3", None))
        };
        assert_eq!(Tail::decode(Family::V4, enricher.record(&flow).tail.bytes()).unwrap().src_pod, name);
    }
}

#[test]
fn what_concerns_no_pod_here_is_not_exported() {
    let enricher = enricher();
    let masqueraded = Ends {
        nat_src: Some((addr("172.18.0.2"), 61_000)),
        ..ends("192.0.2.1", "10.0.2.3", Some(("172.18.0.2", 30_080)))
    };
    let through_other_node = Ends { original_dst: Some((addr("172.18.0.3"), 30_080)), ..masqueraded };
    for (flow, exported) in [
        (ends("10.0.1.2", "192.0.2.1", None), true),
        (ends("192.0.2.1", "10.0.1.3", None), true),
        (ends("10.0.2.3", "192.0.2.1", None), false),
        (ends("192.0.2.1", "172.18.0.2", None), false),
        (masqueraded, true),
        (through_other_node, false),
        (ends("192.0.2.1", "10.0.2.3", Some(("203.0.113.7", 80))), true),
        // The Node's own processes, to a Service.
        (ends("172.18.0.2", "10.0.2.3", Some(("10.96.0.10", 80))), false),
        // A Pod's interface saw it, though the Pod is not known yet.
        (Ends { at_pod: true, ..ends("10.0.1.99", "192.0.2.1", None) }, true),
    ] {
        assert_eq!(enricher.exports(&flow, NOW), exported, "{flow:?}");
    }
    let on_a_host = Enricher::new("host", false, Index::new(10));
    assert!(on_a_host.exports(&ends("192.0.2.1", "192.0.2.2", None), NOW));
}
