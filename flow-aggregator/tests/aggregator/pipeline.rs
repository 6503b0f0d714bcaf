//! The stages together, in this process.

use super::ends::{Agent, LOOPBACK, PATIENCE, datagram_collector, external, halves, json_collector, lines, parse, tls};
use flow_aggregator::{config, pipeline::Pipeline};
use flow_common::{
    daemon::{LogLevel, Shutdown, ShutdownTrigger},
    ipfix::collector,
    net::{Protocol, TlsClient, TlsFiles},
    record::{FlowRecord, ForwardingStatus, Tail},
};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

struct Running {
    addr: SocketAddr,
    admin: SocketAddr,
    trigger: ShutdownTrigger,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Starts an aggregator on free ports with these further settings.
    async fn start(settings: &str) -> Running {
        let text =
            format!("listenAddr: \"{LOOPBACK}\"\nadminAddr: \"{LOOPBACK}\"\napiServer: {{apiPort: \"\"}}\n{settings}");
        let config = config::read("test.conf", &text).unwrap().settings;
        let pipeline = Pipeline::bind(config, LogLevel::unused("info")).await.unwrap();
        let (addr, admin) = (pipeline.listens().unwrap(), pipeline.admin().unwrap());
        let (trigger, shutdown) = Shutdown::new();
        Running { addr, admin, trigger, task: tokio::spawn(pipeline.run(shutdown)) }
    }

    async fn agent(&self, domain: u32, protocol: Protocol, tls: Option<&TlsClient>) -> Agent {
        Agent::connect(self.addr, domain, protocol, tls).await
    }

    async fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until a metric has this value: what the process does shows nowhere else at once.
    async fn until(&self, metric: &str, value: u64) {
        let line = format!("flow_aggregator_{metric} {value}");
        let seen = timeout(PATIENCE, async {
            loop {
                let metrics = self.ask("/metrics").await;
                if metrics.lines().any(|shown| shown == line) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if seen.await.is_err() {
            panic!("{line} never came: {}", self.ask("/metrics").await);
        }
    }

    async fn stop(self) {
        self.trigger.request();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn halves_come_by_tls_and_go_out_joined_to_every_sink() {
    let dir = tempfile::tempdir().unwrap();
    let (certificates, client) = tls(dir.path());
    let (collector, collector_addr) = json_collector().await;
    let log = dir.path().join("flows.jsonl");
    let aggregator = Running::start(&format!(
        "{certificates}flowCollector: {{enable: true, address: \"{collector_addr}\", recordFormat: JSON}}\n\
         flowLogger: {{enable: true, path: \"{}\"}}\n",
        log.display()
    ))
    .await;
    let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
    let [source, destination] = halves(40_000, 10);
    let mut first = aggregator.agent(0xa, Protocol::Tls, Some(&client)).await;
    let mut second = aggregator.agent(0xb, Protocol::Tls, Some(&client)).await;
    first.send(&[source]).await;
    second.send(&[destination]).await;

    let line = lines(&mut incoming, 1).await.remove(0);
    let flow = &line["ipfix"];
    assert_eq!((flow["sourcePodName"].as_str(), flow["destinationPodName"].as_str()), (Some("client"), Some("server")));
    assert_eq!((flow["packetTotalCount"].as_u64(), flow["octetDeltaCount"].as_u64()), (Some(10), Some(1000)));
    assert_eq!((flow["flowEndReason"].as_u64(), flow["sourceIPv4Address"].as_str()), (Some(3), Some("10.0.1.5")));

    aggregator.until("sessions", 2).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 1).await;
    assert!(aggregator.ask("/readyz").await.contains("[+]collector ok"));
    aggregator.stop().await;
    assert_eq!(lines(&mut incoming, 1).await, [] as [serde_json::Value; 0], "the stream ends in order");
    let logged = parse(&std::fs::read_to_string(log).unwrap());
    assert_eq!(logged[0]["ipfix"], line["ipfix"]);
}

#[tokio::test]
async fn the_end_of_the_process_delivers_what_waits() {
    let (collector, collector_addr) = json_collector().await;
    let aggregator = Running::start(&format!(
        "aggregatorTransportProtocol: tcp\nflowCollector: {{enable: true, address: \"{collector_addr}\", recordFormat: JSON}}\n"
    ))
    .await;
    let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
    let mut agent = aggregator.agent(0xa, Protocol::Tcp, None).await;
    let [source, _] = halves(40_000, 10);
    agent.send(&[source]).await;
    aggregator.until("records_received_total", 1).await;
    aggregator.stop().await;
    let all = lines(&mut incoming, usize::MAX).await;
    assert_eq!(all.len(), 1, "the half whose partner did not come");
}

#[tokio::test]
async fn datagrams_go_in_and_out() {
    let (collector, collector_addr) = datagram_collector().await;
    let aggregator = Running::start(&format!(
        "aggregatorTransportProtocol: udp\nflowCollector: {{enable: true, address: \"{collector_addr}:udp\", observationDomainID: 99}}\n"
    ))
    .await;
    let mut agents =
        [aggregator.agent(0xa, Protocol::Udp, None).await, aggregator.agent(0xb, Protocol::Udp, None).await];
    // Garbage first: it is ignored and costs its sender nothing.
    for garbage in
        [&b"\0\x0a\0\x05"[..], b"", &[7; 2000], &[0, 10, 0, 20, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 3]]
    {
        agents[0].connection.send(garbage).await.unwrap();
    }
    for (agent, half) in agents.iter_mut().zip(halves(40_000, 10)) {
        agent.send(&[half]).await;
    }
    aggregator.until("messages_malformed_total", 4).await;

    let (mut received, mut records) = (bytes::BytesMut::new(), Vec::new());
    let mut session = collector::Session::new(collector::Limits::DATAGRAMS, collector::TailHash::new(1));
    let mut batch = collector::Batch::new(16);
    while records.is_empty() {
        let begin = received.len();
        timeout(PATIENCE, collector.receive(&mut received)).await.unwrap().unwrap();
        session.decode_datagram(&received, begin..received.len(), 0, &mut batch).unwrap();
        records.extend_from_slice(batch.records());
    }
    assert_eq!((records[0].domain, records[0].head.packet_total, records[0].head.src_port), (99, 10, 40_000));
    let tail = Tail::decode(records[0].head.family(), batch.tail(&records[0], &received)).unwrap();
    assert_eq!((tail.src_pod.as_str(), tail.dst_pod.as_str()), ("client", "server"));
    aggregator.stop().await;
}

#[tokio::test]
async fn lines_go_out_by_datagrams_too() {
    let (collector, collector_addr) = datagram_collector().await;
    let aggregator = Running::start(&format!(
        "aggregatorTransportProtocol: tcp\nextendedRecords: false\n\
         flowCollector: {{enable: true, address: \"{collector_addr}:udp\", recordFormat: JSON}}\n"
    ))
    .await;
    let mut agent = aggregator.agent(0xa, Protocol::Tcp, None).await;
    agent.send(&[external(1), external(2)]).await;
    for port in [1, 2] {
        let mut line = bytes::BytesMut::new();
        timeout(PATIENCE, collector.receive(&mut line)).await.unwrap().unwrap();
        let line = parse(std::str::from_utf8(&line).unwrap()).remove(0);
        assert_eq!(line["ipfix"]["sourceTransportPort"], port, "one line a datagram");
        assert_eq!(line["ipfix"].get("flowId"), None, "without the extended elements");
    }
    aggregator.stop().await;
}

#[tokio::test]
async fn agents_of_another_ca_are_turned_away_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, ours) = tls(&dir.path().join("ours"));
    tls(&dir.path().join("others"));
    // It trusts our CA, but shows what another one signed.
    let at = |ca: &str, name: &str| dir.path().join(ca).join(name);
    let files =
        TlsFiles { ca: at("ours", "ca.crt"), cert: at("others", "client.crt"), key: at("others", "client.key") };
    let others = TlsClient::load(&files).unwrap();
    let aggregator = Running::start(&settings).await;
    let mut stranger = aggregator.agent(0xbad, Protocol::Tls, Some(&others)).await;
    timeout(PATIENCE, stranger.connection.closed()).await.expect("it is told");
    aggregator.until("sessions_refused_total{reason=\"handshake\"}", 1).await;
    let mut agent = aggregator.agent(0xa, Protocol::Tls, Some(&ours)).await;
    agent.send(&[external(1)]).await;
    aggregator.until("records_received_total", 1).await;
    aggregator.stop().await;
}

#[tokio::test]
async fn a_folder_of_objects_names_the_pod_whose_node_does_not_report() {
    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().join("objects");
    std::fs::create_dir(&objects).unwrap();
    let pod = |name: &str, node: &str, addr: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: {node}}}\n\
             status: {{phase: Running, podIPs: [{{ip: {addr}}}]}}\n"
        )
    };
    std::fs::write(objects.join("client.yaml"), pod("client", "node-a", "10.0.1.5")).unwrap();
    std::fs::write(objects.join("server.yaml"), pod("server", "node-b", "10.0.2.7")).unwrap();
    let (collector, collector_addr) = json_collector().await;
    let aggregator = Running::start(&format!(
        "aggregatorTransportProtocol: tcp\nkubernetes: {{objects: \"{}\"}}\n\
         flowCollector: {{enable: true, address: \"{collector_addr}\", recordFormat: JSON}}\n",
        objects.display()
    ))
    .await;
    let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
    let mut agent = aggregator.agent(0xa, Protocol::Tcp, None).await;
    let [mut denied, _] = halves(40_000, 1);
    denied.extended.forwarding_status = ForwardingStatus::Dropped;
    agent.send(&[denied]).await;
    let line = lines(&mut incoming, 1).await.remove(0);
    assert_eq!(line["ipfix"]["destinationPodName"], "server");
    aggregator.stop().await;
}

#[tokio::test]
async fn a_malformed_stream_is_closed_and_costs_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows.jsonl");
    let aggregator = Running::start(&format!(
        "aggregatorTransportProtocol: tcp\nflowLogger: {{enable: true, path: \"{}\"}}\n",
        log.display()
    ))
    .await;
    let [source, destination] = halves(40_000, 10);
    let mut good = aggregator.agent(0xa, Protocol::Tcp, None).await;
    good.send(&[source]).await;
    // Not IPFIX at all; a length below the header's; a set that goes on behind its message.
    let cut = [0, 10, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 99];
    for (closed, garbage) in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 10, 0, 3], &cut].into_iter().enumerate() {
        let mut bad = aggregator.agent(0xbad, Protocol::Tcp, None).await;
        bad.connection.send(garbage).await.unwrap();
        timeout(PATIENCE, bad.connection.closed()).await.expect("the connection is closed");
        aggregator.until("sessions_malformed_total", closed as u64 + 1).await;
    }
    let mut other = aggregator.agent(0xb, Protocol::Tcp, None).await;
    other.send(&[destination]).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 1).await;
    aggregator.stop().await;
    assert_eq!(parse(&std::fs::read_to_string(log).unwrap())[0]["ipfix"]["destinationPodName"], "server");
}

#[tokio::test]
async fn what_is_lost_on_the_way_is_known_by_exporter() {
    let aggregator = Running::start("aggregatorTransportProtocol: tcp\n").await;
    for (domain, lost) in [(10, 3), (11, 5), (12, 0)] {
        let mut agent = aggregator.agent(domain, Protocol::Tcp, None).await;
        agent.send(&[external(1)]).await;
        agent.lose(&(0..lost).map(|port| external(2 + port)).collect::<Vec<_>>());
        agent.send(&[external(20)]).await;
    }
    aggregator.until("records_lost_total", 8).await;
    aggregator.until("records_received_total", 6).await;
    let name = "exporter_records_lost_total";
    for (domain, lost) in [(10, 3), (11, 5)] {
        aggregator.until(&format!("{name}{{exporter=\"127.0.0.1\",domain=\"{domain}\"}}"), lost).await;
    }
    assert_eq!(aggregator.ask("/metrics").await.matches(&format!("{name}{{")).count(), 2, "only who lost some");
    aggregator.stop().await;
}

#[tokio::test]
async fn a_sink_that_does_not_read_stalls_nobody() {
    const FLOWS: u16 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows.jsonl");
    let (collector, collector_addr) = json_collector().await;
    let aggregator = Running::start(&format!(
        "aggregatorTransportProtocol: tcp\nsinkQueue: 3000\n\
         flowCollector: {{enable: true, address: \"{collector_addr}\", recordFormat: JSON}}\n\
         flowLogger: {{enable: true, path: \"{}\"}}\n",
        log.display()
    ))
    .await;
    let silent = collector.accept().await.unwrap().complete().await.unwrap();
    let mut agents =
        [aggregator.agent(0xa, Protocol::Tcp, None).await, aggregator.agent(0xb, Protocol::Tcp, None).await];
    // A step at a time, so that the log, whose queue is as short, keeps up.
    for step in 0..FLOWS / 1000 {
        for (which, agent) in agents.iter_mut().enumerate() {
            let ports = 1 + step * 1000..=(step + 1) * 1000;
            let records: Vec<FlowRecord> = ports.map(|port| halves(port, 1)[which].clone()).collect();
            agent.send(&records).await;
        }
        aggregator.until("sink_delivered_total{sink=\"log\"}", u64::from(step + 1) * 1000).await;
    }
    let metrics = aggregator.ask("/metrics").await;
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("flow_aggregator_{name}{{sink=\"json\"}}")));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok()).expect(name)
    };
    assert!(value("sink_dropped_total") > 0, "{metrics}");
    assert!(value("sink_queued") <= 3_000);
    drop(silent);
    aggregator.stop().await;
    let ports: BTreeMap<u64, usize> =
        parse(&std::fs::read_to_string(log).unwrap()).iter().fold(BTreeMap::new(), |mut ports, line| {
            *ports.entry(line["ipfix"]["sourceTransportPort"].as_u64().unwrap()).or_default() += 1;
            ports
        });
    assert_eq!(ports.len(), usize::from(FLOWS));
    assert!(ports.values().all(|count| *count == 1), "each once");
}

#[tokio::test]
async fn what_cannot_be_bound_or_read_is_said_at_the_start() {
    let taken = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let bind = |text: String| async move {
        let config = config::read("test.conf", &text).unwrap().settings;
        format!("{:#}", Pipeline::bind(config, LogLevel::unused("info")).await.unwrap_err())
    };
    let addr = taken.local_addr().unwrap();
    let text = bind(format!("aggregatorTransportProtocol: tcp\nlistenAddr: \"{addr}\"\n")).await;
    assert!(text.starts_with(&format!("cannot listen on {addr} (tcp)")), "{text}");
    let text =
        bind(format!("aggregatorTransportProtocol: tcp\nlistenAddr: \"{LOOPBACK}\"\nadminAddr: \"{addr}\"\n")).await;
    assert!(text.contains("set adminAddr to a free address"), "{text}");
    let text =
        bind("tls: {ca: /nowhere/ca.crt, cert: /nowhere/server.crt, key: /nowhere/server.key}\n".to_owned()).await;
    assert!(text.contains("/nowhere/ca.crt") && text.contains("certs init"), "{text}");
}
