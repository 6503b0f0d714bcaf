//! Sinks by their settings, and sinks in trouble: the other ones must not notice.

use super::ends::{Agent, PATIENCE, datagram_collector, external, json_collector, lines, parse};
use super::process::{Process, ports};
use bytes::BytesMut;
use flate2::read::GzDecoder;
use flow_aggregator::certs;
use flow_common::{
    ipfix::collector::{Batch, Limits, Session, TailHash},
    net::{Incoming, Listener, Protocol, TlsFiles, TlsServer, TlsSuites, TlsVersion},
    record::{FlowRecord, RuleAction},
};
use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

fn config(dir: &Path) -> PathBuf {
    dir.join("flow-aggregator.conf")
}

/// Flows from these ports, each over at once.
fn flows(ports: std::ops::RangeInclusive<u16>) -> Vec<FlowRecord> {
    ports.map(external).collect()
}

fn logged_ports(text: &str) -> Vec<u64> {
    parse(text).iter().map(|line| line["ipfix"]["sourceTransportPort"].as_u64().unwrap()).collect()
}

/// Ports of the flows in so many records of IPFIX on a stream.
async fn records(incoming: &mut Incoming, count: usize) -> Vec<u16> {
    let (mut buffer, mut at, mut found) = (BytesMut::new(), 0, Vec::new());
    let mut session = Session::new(Limits::STREAM, TailHash::new(1));
    let mut batch = Batch::new(1_000);
    let reading = async {
        while found.len() < count {
            buffer.reserve(64 * 1024);
            assert_ne!(incoming.fill(&mut buffer).await.unwrap(), 0, "{} of {count} records", found.len());
            while let Ok(next) = session.decode(&buffer, at, 0, &mut batch)
                && next > at
            {
                found.extend(batch.records().iter().map(|record| record.head.src_port));
                batch.clear();
                at = next;
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the records come");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn collectors_are_reached_by_tls_and_by_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let options = certs::Options { dir: dir.path().to_owned(), names: Vec::new(), days: 1, force: false };
    certs::init(&options, SystemTime::now()).unwrap();
    let at = |name: &str| dir.path().join(name);
    let files = TlsFiles { ca: at("ca.crt"), cert: at("server.crt"), key: at("server.key") };
    let open = TlsServer::open(&files.cert, &files.key, TlsVersion::Tls13, &TlsSuites::default()).unwrap();
    let mutual = TlsServer::load(&files).unwrap();
    let shown = at("").display().to_string();
    let pair = format!(", cert: \"{shown}client.crt\", key: \"{shown}client.key\"");
    for (server, format, pair) in [(open, "IPFIX", ""), (mutual, "JSON", pair.as_str())] {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Protocol::Tls, Some(&server)).await.unwrap();
        let addr = listener.local().unwrap();
        let Listener::Stream(listener) = listener else { panic!("TLS is a stream") };
        let aggregator = Process::start(
            &config(dir.path()),
            &format!(
                "flowCollector: {{enable: true, address: \"{addr}\", recordFormat: {format}, \
                 tls: {{enable: true, ca: \"{shown}ca.crt\", serverName: localhost, minVersion: VersionTLS13{pair}}}}}\n"
            ),
        );
        let mut incoming = listener.accept().await.unwrap().complete().await.unwrap();
        let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
        agent.send(&flows(1..=3)).await;
        match format {
            "IPFIX" => assert_eq!(records(&mut incoming, 3).await, [1, 2, 3]),
            _ => assert_eq!(lines(&mut incoming, 3).await.len(), 3),
        }
        assert!(aggregator.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_keep_the_bound_and_templates_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let (collector, addr) = datagram_collector().await;
    let aggregator = Process::start(
        &config(dir.path()),
        &format!(
            "flowCollector: {{enable: true, address: \"{addr}:udp\", templateRefreshTimeout: 1s, maxIPFIXMsgSize: 700}}\n"
        ),
    );
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&flows(1..=50)).await;
    let (mut templates, mut data) = (0, 0);
    // Two templates at the begin, and two a second later though nothing is to be sent.
    while templates < 4 || data < 17 {
        let mut datagram = BytesMut::new();
        timeout(PATIENCE, collector.receive(&mut datagram)).await.unwrap().unwrap();
        assert!(datagram.len() <= 700, "{}", datagram.len());
        match u16::from_be_bytes([datagram[16], datagram[17]]) {
            2 => templates += 1,
            256 => data += 1,
            set => panic!("set {set}"),
        }
    }
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_put_aside_by_size_and_every_line_is_in_one_of_them() {
    const FLOWS: u16 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("logs");
    fs::create_dir(&folder).unwrap();
    let aggregator = Process::start(
        &config(dir.path()),
        &format!(
            "flowLogger: {{enable: true, path: \"{}/flows.json\", maxSize: 1, maxBackups: 0}}\n",
            folder.display()
        ),
    );
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&flows(1..=FLOWS)).await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", FLOWS.into());
    let names = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let packed = |name: &PathBuf| name.extension().is_some_and(|extension| extension == "gz");
    let text = |name: &PathBuf| {
        let mut text = String::new();
        match packed(name) {
            true => GzDecoder::new(fs::File::open(name).unwrap()).read_to_string(&mut text).unwrap(),
            false => fs::File::open(name).unwrap().read_to_string(&mut text).unwrap(),
        };
        text
    };
    aggregator.wait("all but the last are packed", || {
        let names = names();
        names.len() >= 3 && names.iter().filter(|name| packed(name)).count() == names.len() - 1
    });
    assert!(aggregator.stop().success());
    let files: Vec<String> = names().iter().map(text).collect();
    assert!(files.iter().all(|text| text.len() <= 1_000_000), "no file is longer than it may be");
    let ports: Vec<u64> = files.iter().flat_map(|text| logged_ports(text)).collect();
    assert_eq!(ports.len(), usize::from(FLOWS));
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), usize::from(FLOWS), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_put_aside_by_age_though_nothing_comes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("logs");
    fs::create_dir(&folder).unwrap();
    let aggregator = Process::start(
        &config(dir.path()),
        &format!("flowLogger: {{enable: true, path: \"{}/flows.json\", rotateAfter: 1s}}\n", folder.display()),
    );
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&flows(1..=1)).await;
    let names = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let packed = |name: &PathBuf| name.extension().is_some_and(|extension| extension == "gz");
    aggregator.wait("a packed file", || names().iter().any(packed));
    // An empty file is not put aside, however old it is.
    let begun = fs::metadata(folder.join("flows.json")).unwrap().modified().unwrap();
    aggregator.wait("the next is old", || begun.elapsed().unwrap() > Duration::from_millis(1_500));
    assert_eq!(names().len(), 2, "{:?}", names());
    assert_eq!(fs::metadata(folder.join("flows.json")).unwrap().len(), 0);
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_takes_flows_by_what_policies_did() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows.csv");
    let aggregator = Process::start(
        &config(dir.path()),
        &format!(
            "flowLogger:\n  enable: true\n  path: \"{}\"\n  recordFormat: CSV\n  filters:\n\
             \x20   - ingressNetworkPolicyRuleActions: [Drop, Reject]\n    - egressNetworkPolicyRuleActions: [Drop]\n",
            log.display()
        ),
    );
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    let ruled = |port, ingress, egress| {
        let mut flow = external(port);
        (flow.tail.ingress_action, flow.tail.egress_action) = (ingress, egress);
        flow
    };
    agent
        .send(&[
            ruled(1, RuleAction::Allow, RuleAction::Allow),
            ruled(2, RuleAction::Reject, RuleAction::None),
            ruled(3, RuleAction::None, RuleAction::Drop),
            external(4),
        ])
        .await;
    aggregator.until("sink_delivered_total{sink=\"log\"}", 2);
    assert!(aggregator.stop().success());
    insta::assert_snapshot!(fs::read_to_string(log).unwrap());
}

/// The disk is one of the process's own: a small file system in a namespace of mounts.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_out_without_a_lost_or_doubled_or_half_line() {
    const FLOWS: u16 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let (collector, addr) = json_collector().await;
    let settings = format!(
        "flowCollector: {{enable: true, address: \"{addr}\", recordFormat: JSON}}\n\
         flowLogger: {{enable: true, path: \"{}/flows.json\"}}\n",
        disk.display()
    );
    fs::write(config(dir.path()), ports(&settings)).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=4m none \"$1\" && head -c 3900000 /dev/zero > \"$1/filler\" && \
                  exec \"$2\" run --config \"$3\"";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.arg(&disk).arg(env!("CARGO_BIN_EXE_flow-aggregator")).arg(config(dir.path())).env_remove("RUST_LOG");
    let aggregator = Process::spawn(command, &config(dir.path()));
    let inside = |name: &str| PathBuf::from(format!("/proc/{}/root{}/{name}", aggregator.pid(), disk.display()));
    let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    agent.send(&flows(1..=FLOWS)).await;
    // The collector has all of them while the file has not.
    assert_eq!(lines(&mut incoming, FLOWS.into()).await.len(), usize::from(FLOWS));
    aggregator.logged("No space left on device");
    for metric in ["sink_queued{sink=\"log\"}", "sink_failures_total{sink=\"log\"}"] {
        aggregator.wait(metric, || aggregator.metric(metric).unwrap() > 0);
    }
    let meanwhile = fs::read_to_string(inside("flows.json")).unwrap();
    assert!(meanwhile.is_empty() || meanwhile.ends_with('\n'), "no half line stands there");
    fs::remove_file(inside("filler")).unwrap();
    aggregator.until("sink_delivered_total{sink=\"log\"}", FLOWS.into());
    let ports = logged_ports(&fs::read_to_string(inside("flows.json")).unwrap());
    assert_eq!(ports, (1..=u64::from(FLOWS)).collect::<Vec<_>>());
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_closes_after_each_message_bothers_nobody_else() {
    const FLOWS: u16 = 200;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    let (collector, addr) = json_collector().await;
    let rude = tokio::spawn(async move {
        loop {
            let Ok(handshake) = collector.accept().await else { continue };
            let Ok(mut incoming) = handshake.complete().await else { continue };
            let mut message = BytesMut::with_capacity(4_096);
            // Whatever came, that is enough.
            let _ = incoming.fill(&mut message).await;
        }
    });
    let settings = format!(
        "flowCollector: {{enable: true, address: \"{addr}\"}}\nflowLogger: {{enable: true, path: \"{}\"}}\n",
        log.display()
    );
    let aggregator = Process::start(&config(dir.path()), &settings);
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    for step in 0..4 {
        agent.send(&flows(step * 50 + 1..=(step + 1) * 50)).await;
        aggregator.until("sink_delivered_total{sink=\"log\"}", u64::from(step + 1) * 50);
    }
    aggregator.wait("lost connections are counted", || {
        aggregator.metric("sink_failures_total{sink=\"ipfix\"}").is_some_and(|failures| failures >= 2)
    });
    assert!(aggregator.stop().success());
    rude.abort();
    assert_eq!(logged_ports(&fs::read_to_string(log).unwrap()).len(), usize::from(FLOWS));
}

/// One sink's destination reads slowly, another's is not there at all, and the third has every flow at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_collector_and_an_absent_server_cost_flows_of_their_own_alone() {
    const STEPS: u16 = 60;
    const STEP: u16 = 1_000;
    const QUEUE: u64 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    let (collector, addr) = json_collector().await;
    let slow = tokio::spawn(async move {
        let mut incoming = collector.accept().await.unwrap().complete().await.unwrap();
        let mut read = 0;
        loop {
            let mut some = BytesMut::with_capacity(64 * 1024);
            match incoming.fill(&mut some).await {
                Ok(0) | Err(_) => return read,
                Ok(length) => read += length,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let settings = format!(
        "sinkQueue: {QUEUE}\nflowCollector: {{enable: true, address: \"{addr}\", recordFormat: JSON}}\n\
         clickHouse: {{enable: true, databaseURL: \"tcp://127.0.0.1:1\", queue: {QUEUE}}}\n\
         flowLogger: {{enable: true, path: \"{}\", maxSize: 1000}}\n",
        log.display()
    );
    let aggregator = Process::start(&config(dir.path()), &settings);
    let mut agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    let resident = || {
        let text = fs::read_to_string(format!("/proc/{}/statm", aggregator.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
    };
    let mut early = 0;
    for step in 0..STEPS {
        agent.send(&flows(step * STEP + 1..=(step + 1) * STEP)).await;
        aggregator.until("sink_delivered_total{sink=\"log\"}", u64::from(step + 1) * u64::from(STEP));
        for sink in ["json", "clickhouse"] {
            assert!(aggregator.metric(&format!("sink_queued{{sink=\"{sink}\"}}")).unwrap() <= QUEUE);
        }
        // Both queues have been full by then.
        early = if step == STEPS / 3 { resident() } else { early };
    }
    let metric = |name: &str, sink: &str| aggregator.metric(&format!("sink_{name}{{sink=\"{sink}\"}}")).unwrap();
    assert_eq!(metric("dropped_total", "log"), 0);
    assert!(metric("dropped_total", "json") > 0 && metric("delivered_total", "json") > 0);
    // How many are in a queue is shown four times a second.
    aggregator.wait("every flow is dropped or in the queue", || {
        metric("dropped_total", "clickhouse") + metric("queued", "clickhouse") == u64::from(STEPS * STEP)
    });
    assert!(metric("failures_total", "clickhouse") > 0 && metric("connected", "clickhouse") == 0);
    // Tombstones of 40,000 flows, and no more.
    let grown = resident().saturating_sub(early);
    assert!(grown < 24 << 20, "{grown} bytes more than when the queues were full already");
    assert_eq!(logged_ports(&fs::read_to_string(&log).unwrap()).len(), usize::from(STEPS * STEP));
    assert!(aggregator.stop().success());
    assert!(slow.await.unwrap() > 0);
}
