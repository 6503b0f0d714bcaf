//! Settings that change while the aggregator runs: the file is written anew, and what follows from it.

use super::ends::{Agent, LOOPBACK, external, json_collector, lines, parse};
use super::process::{Process, ports};
use flow_common::net::Protocol;
use std::{fs, os::unix::fs::symlink};
use tokio::net::TcpSocket;

fn logger(path: &std::path::Path) -> String {
    format!("flowLogger: {{enable: true, path: \"{}\"}}\n", path.display())
}

fn json(addr: std::net::SocketAddr) -> String {
    format!("flowCollector: {{enable: true, address: \"{addr}\", recordFormat: JSON}}\n")
}

fn ports_of(lines: &[serde_json::Value]) -> Vec<u64> {
    lines.iter().map(|line| line["ipfix"]["sourceTransportPort"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_start_change_and_stop_and_others_keep_their_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (first_log, second_log) = (dir.path().join("first"), dir.path().join("second"));
    let (collector, addr) = json_collector().await;
    let file = dir.path().join("flow-aggregator.conf");
    let aggregator = Process::start(&file, &json(addr));
    let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&[external(1)]).await;
    assert_eq!(ports_of(&lines(&mut incoming, 1).await), [1]);

    aggregator.configure(&format!("{}{}", json(addr), logger(&first_log)));
    aggregator.until("config_reloads_total", 1);
    aggregator.until("sink_connected{sink=\"log\"}", 1);
    agent.send(&[external(2)]).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 1);

    aggregator.configure(&format!("{}{}", json(addr), logger(&second_log)));
    aggregator.wait("the other file", || second_log.exists());
    agent.send(&[external(3)]).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 2);

    aggregator.configure(&json(addr));
    aggregator.until("config_reloads_total", 3);
    agent.send(&[external(4)]).await;
    // One connection all along: none of the changes was its own.
    assert_eq!(ports_of(&lines(&mut incoming, 3).await), [2, 3, 4]);
    aggregator.until("sink_connected{sink=\"log\"}", 0);
    assert_eq!(aggregator.log().matches("sink json: open").count(), 1);
    assert!(aggregator.stop().success());
    let logged = |path| ports_of(&parse(&fs::read_to_string(path).unwrap()));
    assert_eq!((logged(first_log), logged(second_log)), (vec![2], vec![3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_wrong_address_goes_to_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flow-aggregator.conf");
    // Bound, so that the port is nobody else's, but it does not listen.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind(LOOPBACK.parse().unwrap()).unwrap();
    let aggregator = Process::start(&file, &json(nobody.local_addr().unwrap()));
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&[external(1), external(2)]).await;
    aggregator.until("sink_queued{sink=\"json\"}", 2);
    let (collector, addr) = json_collector().await;
    aggregator.configure(&json(addr));
    let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
    assert_eq!(ports_of(&lines(&mut incoming, 2).await), [1, 2]);
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    let file = dir.path().join("flow-aggregator.conf");
    let aggregator = Process::start(&file, &logger(&log));
    aggregator.configure("activeFlowRecordTimeout: 5s\nmaxFlows: many\n");
    aggregator.until("config_reloads_refused_total", 1);
    aggregator.until("config_stale", 1);
    aggregator.logged("flow-aggregator.conf:5: maxFlows: a number from 0 to 4294967295 is wanted, found \"many\"");
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&[external(1)]).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 1);

    // A port waits for a restart; what came with it does not.
    let listen = ports("").replace("listenAddr: \"127.0.0.1:0\"", "listenAddr: \"127.0.0.1:1\"");
    fs::write(&file, format!("{listen}{}logLevel: warn\nmaxSessions: 1\n", logger(&log))).unwrap();
    aggregator.until("config_stale", 0);
    aggregator.logged("listenAddr changed, but takes effect with a restart only");
    aggregator.logged("changed: maxSessions, logLevel");
    aggregator.until("config_reloads_total", 1);
    let mut second = Agent::connect(aggregator.addr, 0xb, Protocol::Tcp, None).await;
    tokio::time::timeout(super::ends::PATIENCE, second.connection.closed()).await.expect("it is turned away");
    aggregator.until("sessions_refused_total{reason=\"sessions\"}", 1);
    drop(agent);
    aggregator.until("sessions", 0);
    assert!(!aggregator.log().contains("closed its connection"), "that is below the new level");
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_link_of_a_mounted_configmap_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let version = |name: &str, settings: &str| {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("flow-aggregator.conf"), ports(settings)).unwrap();
    };
    let log = at("flows");
    version("..1", "");
    symlink("..1", at("..data")).unwrap();
    symlink("..data/flow-aggregator.conf", at("flow-aggregator.conf")).unwrap();
    let aggregator = Process::start(&at("flow-aggregator.conf"), "");
    version("..2", &logger(&log));
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..1")).unwrap();
    aggregator.until("config_reloads_total", 1);
    aggregator.until("sink_connected{sink=\"log\"}", 1);
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_and_bounds_hold_for_flows_that_are_there_already() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    let file = dir.path().join("flow-aggregator.conf");
    let aggregator = Process::start(&file, &format!("inactiveFlowRecordTimeout: 1h\n{}", logger(&log)));
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    let mut live = external(1);
    live.head.end_reason = flow_common::record::EndReason::Active;
    agent.send(&[live]).await;
    aggregator.until("flows", 1);
    aggregator.configure(&format!("inactiveFlowRecordTimeout: 2s\ncorrelationTimeout: 1s\n{}", logger(&log)));
    aggregator.until("flows", 0);
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_changes_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    let file = dir.path().join("flow-aggregator.conf");
    let (ipfix, addr) = json_collector().await;
    let further = format!("flowCollector: {{enable: true, address: \"{addr}\"}}\n{}", logger(&log));
    let aggregator = Process::start(&file, &format!("mode: Proxy\n{further}"));
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    let [half, _] = super::ends::halves(1, 10);
    agent.send(std::slice::from_ref(&half)).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 1);
    let mut first = ipfix.accept().await.unwrap().complete().await.unwrap();
    assert_eq!(templates(&mut first, 57).await, 57, "41 of the agent, 4 of its origin, 2 labels, 10 extended");

    aggregator.configure(&format!("mode: Aggregate\ncorrelationTimeout: 1s\n{further}"));
    aggregator.until("config_reloads_total", 1);
    let mut second = ipfix.accept().await.unwrap().complete().await.unwrap();
    assert_eq!(templates(&mut second, 77).await, 77);
    agent.send(&[half]).await;
    aggregator.until("flows_uncorrelated_total", 1);
    aggregator.until("sink_delivered_total{sink=\"log\"}", 2);
    assert!(aggregator.stop().success());
    let lines = parse(&fs::read_to_string(log).unwrap());
    assert_eq!(lines[0]["ipfix"]["originalObservationDomainId"], 0xa);
    assert_eq!(lines[0]["ipfix"]["originalExporterIPv4Address"], "127.0.0.1");
    assert_eq!(lines[0]["ipfix"]["flowDirection"], 1);
    assert_eq!(lines[1]["ipfix"].get("flowDirection"), None);
    assert_eq!(lines[1]["ipfix"]["packetTotalCountFromSourceNode"], 10);
}

/// How many elements the first template of a session has; it is long enough for so many.
async fn templates(incoming: &mut flow_common::net::Incoming, elements: usize) -> u16 {
    let mut bytes = bytes::BytesMut::new();
    while bytes.len() < 24 + elements * 4 {
        bytes.reserve(4_096);
        assert_ne!(incoming.fill(&mut bytes).await.unwrap(), 0);
    }
    u16::from_be_bytes([bytes[22], bytes[23]])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_objects_and_labels_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().join("objects");
    fs::create_dir(&objects).unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: shop, labels: {app: web}}\n\
               spec: {nodeName: node-b}\nstatus: {phase: Running, podIPs: [{ip: 10.0.2.7}]}\n";
    fs::write(objects.join("server.yaml"), pod).unwrap();
    fs::write(objects.join("torn.yaml"), "kind: Pod\nmetadata: {").unwrap();
    let log = dir.path().join("flows");
    let file = dir.path().join("flow-aggregator.conf");
    let aggregator = Process::start(&file, &logger(&log));
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    let known = format!("kubernetes: {{objects: \"{}\"}}\nrecordContents: {{podLabels: true}}\n", objects.display());
    for (port, settings, refused) in [(1, "", 0), (2, known.as_str(), 1), (3, "", 0)] {
        aggregator.configure(&format!("{}{settings}", logger(&log)));
        aggregator.until("config_reloads_total", u64::from(port) - 1);
        aggregator.until("objects_refused", refused);
        let [mut denied, _] = super::ends::halves(port, 1);
        denied.extended.forwarding_status = flow_common::record::ForwardingStatus::Dropped;
        agent.send(&[denied]).await;
        aggregator.until("sink_delivered_total{sink=\"log\"}", port.into());
    }
    assert!(aggregator.stop().success());
    let lines = parse(&fs::read_to_string(log).unwrap());
    let named = |line: &serde_json::Value| {
        let flow = &line["ipfix"];
        (
            flow["destinationPodName"].as_str().unwrap().to_owned(),
            flow["destinationPodLabels"].as_str().unwrap().to_owned(),
        )
    };
    let nothing = (String::new(), String::new());
    let everything = ("server".to_owned(), r#"{"app":"web"}"#.to_owned());
    assert_eq!(lines.iter().map(named).collect::<Vec<_>>(), [nothing.clone(), everything, nothing]);
}
