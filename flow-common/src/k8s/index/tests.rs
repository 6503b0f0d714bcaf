//! The index against simulated clusters and against itself.

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::super::object::{Labels, Phase, Port, TransportProtocol};
use super::*;

fn labels() -> Labels {
    Labels::from(Vec::new())
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_000_000 + seconds)
}

fn addr(last: u8) -> IpAddr {
    [10, 244, 1, last].into()
}

fn pod(name: &str, addresses: &[IpAddr], created: Timestamp) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        uid: name.into(),
        labels: labels(),
        node: "node-1".into(),
        host_network: false,
        service_account: "default".into(),
        phase: Phase::Running,
        addresses: addresses.to_vec(),
        created,
        deletion: None,
        ports: Vec::new(),
    }
}

fn apply_pod(index: &mut Index, pod: Pod, now: Timestamp) {
    index.apply(Object::Pod(Arc::new(pod)), now);
}

fn pod_name(index: &Index, addr: IpAddr, at: Timestamp) -> Option<String> {
    index.pod_by_ip(addr, at).map(|pod| pod.name.to_string())
}

fn named(kind: Kind, namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind, namespace: namespace.into(), name: name.into() }
}

fn service(name: &str, kind: ServiceType, cluster: &[IpAddr], ports: Vec<Port>) -> Object {
    Object::Service(Arc::new(Service {
        namespace: "shop".into(),
        name: name.into(),
        selector: labels(),
        kind,
        cluster_addresses: cluster.to_vec(),
        external_addresses: vec![[198, 51, 100, 7].into()],
        load_balancer_addresses: vec![[203, 0, 113, 9].into()],
        ports,
        external_traffic_local: false,
    }))
}

fn port(name: &str, port: u16, node_port: Option<u16>) -> Port {
    Port { name: name.into(), protocol: TransportProtocol::Tcp, port, node_port }
}

fn node(name: &str, last: u8, network: &str) -> Object {
    Object::Node(Arc::new(Node {
        name: name.into(),
        labels: labels(),
        addresses: vec![[192, 168, 0, last].into()],
        pod_networks: vec![network.parse().unwrap()],
    }))
}

fn service_name(index: &Index, addr: impl Into<IpAddr>, port: u16) -> Option<String> {
    index.service_by_addr(addr.into(), port, 6).map(|found| found.name.to_string())
}

#[test]
fn a_deleted_pod_is_found_by_its_time_for_five_minutes() {
    let mut index = Index::new(100);
    apply_pod(&mut index, pod("old", &[addr(1)], at(0)), at(1));
    index.delete(&named(Kind::Pod, "shop", "old"), at(50));
    apply_pod(&mut index, pod("new", &[addr(1)], at(55)), at(57));

    assert_eq!(pod_name(&index, addr(1), at(49)).as_deref(), Some("old"));
    assert_eq!(pod_name(&index, addr(1), at(52)), None);
    assert_eq!(pod_name(&index, addr(1), at(60)).as_deref(), Some("new"));
    index.expire(at(349));
    assert_eq!(pod_name(&index, addr(1), at(49)).as_deref(), Some("old"));
    let epoch = index.epoch();
    index.expire(at(350));
    assert_eq!(pod_name(&index, addr(1), at(49)), None);
    assert_ne!(index.epoch(), epoch);
}

#[test]
fn an_ended_pod_gives_its_address_up() {
    let mut index = Index::new(100);
    apply_pod(&mut index, pod("job", &[addr(1)], at(0)), at(0));
    apply_pod(&mut index, Pod { phase: Phase::Succeeded, ..pod("job", &[addr(1)], at(0)) }, at(20));
    assert_eq!(pod_name(&index, addr(1), at(19)).as_deref(), Some("job"));
    assert_eq!(pod_name(&index, addr(1), at(21)), None);
    apply_pod(&mut index, pod("next", &[addr(1)], at(5)), at(30));
    assert_eq!(
        pod_name(&index, addr(1), at(19)).as_deref(),
        Some("job"),
        "it had the address, not the Pod created since"
    );
    assert_eq!(pod_name(&index, addr(1), at(31)).as_deref(), Some("next"));
    index.delete(&named(Kind::Pod, "shop", "job"), at(40));
    assert_eq!(pod_name(&index, addr(1), at(41)).as_deref(), Some("next"));
}

#[test]
fn a_host_network_pod_is_never_found_by_address() {
    let mut index = Index::new(100);
    apply_pod(&mut index, Pod { host_network: true, ..pod("proxy", &[[192, 168, 0, 1].into()], at(0)) }, at(0));
    assert_eq!(pod_name(&index, [192, 168, 0, 1].into(), at(1)), None);
}

#[test]
fn a_pod_sends_before_its_address_is_heard_of() {
    let mut index = Index::new(100);
    apply_pod(&mut index, Pod { phase: Phase::Pending, ..pod("web", &[], at(0)) }, at(0));
    apply_pod(&mut index, pod("web", &[addr(1)], at(0)), at(20));
    assert_eq!(pod_name(&index, addr(1), at(11)).as_deref(), Some("web"));
    assert_eq!(pod_name(&index, addr(1), at(9)), None);
}

#[test]
fn a_pod_of_the_same_name_is_another_by_its_uid() {
    let mut index = Index::new(100);
    apply_pod(&mut index, Pod { uid: "1".into(), ..pod("db-0", &[addr(1)], at(0)) }, at(0));
    apply_pod(&mut index, Pod { uid: "2".into(), ..pod("db-0", &[addr(2)], at(30)) }, at(31));
    assert_eq!(pod_name(&index, addr(1), at(20)).as_deref(), Some("db-0"));
    assert_eq!(pod_name(&index, addr(1), at(32)), None);
    assert_eq!(pod_name(&index, addr(2), at(32)).as_deref(), Some("db-0"));
    assert_eq!(index.statistics().objects[Kind::Pod as usize], 1);
}

#[test]
fn a_manifest_without_times_has_always_been_so() {
    let mut index = Index::new(100);
    apply_pod(&mut index, pod("static", &[addr(1)], Timestamp::ZERO), at(1000));
    assert_eq!(pod_name(&index, addr(1), at(0)).as_deref(), Some("static"));
    let mapped: IpAddr = "::ffff:10.244.1.1".parse().unwrap();
    assert_eq!(pod_name(&index, mapped, at(0)).as_deref(), Some("static"));
}

#[test]
fn services_are_found_by_each_of_their_addresses() {
    let mut index = Index::new(100);
    index.apply(node("node-1", 1, "10.244.1.0/24"), at(0));
    let ports = vec![port("http", 80, Some(30080)), port("", 443, None)];
    index.apply(service("web", ServiceType::NodePort, &[[10, 96, 0, 10].into()], ports), at(0));

    assert_eq!(service_name(&index, [10, 96, 0, 10], 80).as_deref(), Some("shop/web:http"));
    assert_eq!(service_name(&index, [10, 96, 0, 10], 443).as_deref(), Some("shop/web"));
    assert_eq!(service_name(&index, [198, 51, 100, 7], 80).as_deref(), Some("shop/web:http"));
    assert_eq!(service_name(&index, [203, 0, 113, 9], 80).as_deref(), Some("shop/web:http"));
    assert_eq!(service_name(&index, [192, 168, 0, 1], 30080).as_deref(), Some("shop/web:http"));
    assert_eq!(service_name(&index, [192, 168, 0, 1], 80), None, "no Service port at a Node's address");
    assert_eq!(service_name(&index, [192, 168, 0, 9], 30080), None, "no NodePort at an address of no Node");
    assert_eq!(index.service_by_addr([10, 96, 0, 10].into(), 80, 17), None, "another protocol");
    assert_eq!(index.service_by_addr([192, 168, 0, 1].into(), 30080, 6).unwrap().port, 80);
}

#[test]
fn of_two_services_at_one_address_the_first_by_name_counts() {
    let mut index = Index::new(100);
    index.apply(service("b", ServiceType::ClusterIp, &[], vec![port("b", 80, None)]), at(0));
    index.apply(service("a", ServiceType::ClusterIp, &[], vec![port("a", 80, None)]), at(0));
    assert_eq!(service_name(&index, [198, 51, 100, 7], 80).as_deref(), Some("shop/a:a"));
    index.delete(&named(Kind::Service, "shop", "a"), at(1));
    assert_eq!(service_name(&index, [198, 51, 100, 7], 80).as_deref(), Some("shop/b:b"));
}

#[test]
fn an_agent_reports_addresses_that_the_api_does_not_list() {
    let mut index = Index::new(100);
    let reported: [IpAddr; 3] = [[10, 244, 1, 1].into(), [127, 0, 0, 1].into(), [192, 168, 0, 1].into()];
    index.report_node_addresses("node-1", &reported);
    index.apply(node("node-1", 1, "10.244.1.0/24"), at(0));
    assert_eq!(index.node_by_addr([10, 244, 1, 1].into()).map(|name| &**name), Some("node-1"));
    assert!(!index.is_node_addr([127, 0, 0, 1].into()));
    index.delete(&named(Kind::Node, "", "node-1"), at(1));
    assert!(index.is_node_addr([192, 168, 0, 1].into()), "still reported");
    index.report_node_addresses("node-1", &[]);
    assert!(!index.is_node_addr([192, 168, 0, 1].into()));
}

#[test]
fn a_full_index_refuses_and_counts() {
    let mut index = Index::new(1);
    apply_pod(&mut index, pod("a", &[addr(1)], at(0)), at(0));
    let epoch = index.epoch();
    apply_pod(&mut index, pod("b", &[addr(2)], at(0)), at(0));
    apply_pod(&mut index, pod("a", &[addr(1)], at(0)), at(1));
    assert_eq!((index.statistics().refused, index.epoch()), (1, epoch), "nor is it a change to hear the same again");
    for name in ["c", "d"] {
        index.delete(&named(Kind::Pod, "shop", "a"), at(2));
        index.delete(&named(Kind::Pod, "shop", name), at(3));
        apply_pod(&mut index, pod("a", &[addr(1)], at(2)), at(3));
    }
    index.delete(&named(Kind::Pod, "shop", "a"), at(4));
    assert_eq!((index.statistics().departed, index.statistics().forgotten), (1, 2));
}

/// What happens in a simulated cluster: after so many seconds an address gets a new Pod, or loses the one it has.
#[derive(Clone, Debug)]
struct Happening {
    after: u64,
    address: u8,
    ends_by_phase: bool,
}

fn happening() -> impl Strategy<Value = Happening> {
    (1..40u64, 0..3u8, any::<bool>()).prop_map(|(after, address, ends_by_phase)| Happening {
        after,
        address,
        ends_by_phase,
    })
}

#[derive(Debug)]
struct Life {
    name: String,
    address: u8,
    from: u64,
    until: Option<u64>,
}

/// Plays the happenings against an index that hears of each `lag` seconds later, and says what was true.
fn play(happenings: Vec<Happening>, lag: u64) -> (Index, Vec<Life>, u64) {
    let (mut index, mut lives, mut now) = (Index::new(1000), Vec::<Life>::new(), 0);
    for (number, Happening { after, address, ends_by_phase }) in happenings.into_iter().enumerate() {
        now += after;
        match lives.iter_mut().find(|life| life.address == address && life.until.is_none()) {
            Some(life) => {
                life.until = Some(now);
                let ended = Pod { phase: Phase::Failed, ..pod(&life.name, &[addr(address)], at(life.from)) };
                if ends_by_phase {
                    apply_pod(&mut index, ended, at(now + lag));
                } else {
                    index.delete(&named(Kind::Pod, "shop", &life.name), at(now + lag));
                }
            }
            None => {
                let name = format!("pod-{number}");
                apply_pod(&mut index, pod(&name, &[addr(address)], at(now)), at(now + lag));
                lives.push(Life { name, address, from: now, until: None });
            }
        }
    }
    (index, lives, now)
}

proptest! {
    /// At a moment when a Pod had an address it is found, and no other ever is, until it is forgotten.
    #[test]
    fn the_pod_of_the_moment_is_found(happenings in prop::collection::vec(happening(), 0..40)) {
        let (index, lives, now) = play(happenings, 0);
        for moment in now.saturating_sub(299)..=now {
            for address in 0..3 {
                let alive = |life: &&Life| life.address == address && life.from <= moment && life.until.is_none_or(|until| moment < until);
                let truth = lives.iter().find(alive).map(|life| life.name.clone());
                prop_assert_eq!(pod_name(&index, addr(address), at(moment)), truth, "{} at {}", address, moment);
            }
        }
    }

    /// Where the cluster's news come late, a Pod that has its address at the moment is never taken for one that is to
    /// get it later.
    #[test]
    fn late_news_name_no_pod_before_it_was_created(happenings in prop::collection::vec(happening(), 0..40), lag in 0..30u64) {
        let (index, lives, now) = play(happenings, lag);
        for moment in 0..=now {
            for address in 0..3 {
                if let Some(name) = pod_name(&index, addr(address), at(moment)) {
                    let life = lives.iter().find(|life| life.name == name).unwrap();
                    prop_assert!(life.address == address && life.from <= moment, "{:?} at {}", life, moment);
                    prop_assert!(life.until.is_none_or(|until| moment < until + lag), "{:?} at {}", life, moment);
                }
            }
        }
    }

    /// What was applied and deleted on the way leaves no trace: an index answers as one that only ever knew what is
    /// left.
    #[test]
    fn only_what_is_left_counts(
        steps in prop::collection::vec((0..8usize, any::<bool>()), 0..60),
        reported in subsequence(vec![1u8, 2, 3, 4], 0..4),
    ) {
        let objects = population();
        let (mut index, mut left) = (Index::new(100), std::collections::BTreeMap::new());
        for (which, present) in steps {
            let object = objects[which].clone();
            if present {
                index.apply(object.clone(), at(0));
                left.insert(object.reference(), object);
            } else {
                index.delete(&object.reference(), at(0));
                left.remove(&object.reference());
            }
        }
        let mut fresh = Index::new(100);
        for object in left.into_values() {
            fresh.apply(object, at(0));
        }
        let reported: Vec<IpAddr> = reported.into_iter().map(|last| [192, 168, 0, last].into()).collect();
        index.report_node_addresses("node-1", &reported);
        fresh.report_node_addresses("node-1", &reported);
        prop_assert_eq!(answers(&index), answers(&fresh));
        prop_assert_eq!(index.statistics().objects, fresh.statistics().objects);
    }
}

/// Objects of which some have the same name and some the same address.
fn population() -> Vec<Object> {
    let shared: IpAddr = [10, 96, 0, 1].into();
    vec![
        service("a", ServiceType::ClusterIp, &[shared], vec![port("x", 80, None)]),
        service("a", ServiceType::NodePort, &[shared], vec![port("y", 80, Some(30000)), port("z", 81, Some(30001))]),
        service("b", ServiceType::NodePort, &[shared], vec![port("x", 80, Some(30000))]),
        service("b", ServiceType::ExternalName, &[shared], vec![port("x", 80, Some(30000))]),
        node("node-1", 1, "10.244.0.0/16"),
        node("node-1", 2, "10.244.0.0/16"),
        node("node-2", 2, "10.244.0.0/16"),
        node("node-3", 3, "10.245.0.0/16"),
    ]
}

fn answers(index: &Index) -> String {
    let mut answers = Vec::new();
    for last in 0..6u8 {
        for addr in [[10, 96, 0, last], [192, 168, 0, last], [198, 51, 100, last], [10, 243 + last, 1, 1]] {
            let services: Vec<_> = [80, 81, 30000, 30001].map(|port| service_name(index, addr, port)).to_vec();
            answers.push(format!(
                "{services:?} {:?} {}",
                index.node_by_addr(addr.into()),
                index.in_pod_network(addr.into())
            ));
        }
    }
    answers.push(format!("{:?}", index.nodes().map(|node| &node.addresses).collect::<Vec<_>>()));
    answers.join("\n")
}
