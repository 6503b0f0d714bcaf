//! The API and the command line that asks it.

use super::ends::{Agent, PATIENCE, external, halves};
use super::process::{Process, command, ports};
use flow_common::{
    ipfix::accounting::Accounting,
    net::{Address, ByteStream, Protocol, TlsClient, TlsTrust, Trust, connect_as},
    record::{EndReason, FlowRecord, FlowType, ForwardingStatus, InterfaceCount, Metering},
};
use insta::assert_snapshot;
use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

struct Api {
    aggregator: Process,
    addr: SocketAddr,
    folder: PathBuf,
    agent: Agent,
}

impl Api {
    async fn start(dir: &Path, further: &str) -> Api {
        let folder = dir.join("run");
        let settings =
            format!("apiServer: {{apiPort: 0, bindAddress: 127.0.0.1, folder: \"{}\"}}\n{further}", folder.display());
        let aggregator = Process::start(&dir.join("flow-aggregator.conf"), &settings);
        let addr = aggregator.told("the API is on https://");
        let agent = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
        Api { aggregator, addr, folder, agent }
    }

    /// A live flow from each port, which stays in the table.
    async fn fill(&mut self, ports: std::ops::RangeInclusive<u16>) {
        let count = ports.len() as u64;
        self.agent.send(&ports.map(live).collect::<Vec<_>>()).await;
        self.aggregator.until("flows", count);
    }

    async fn connect(&self) -> ByteStream {
        let trust = TlsTrust::from(Trust::Ca(self.folder.join("api.crt")));
        let address = Address::parse(&self.addr.to_string(), Protocol::Tls).unwrap();
        let client = TlsClient::trusting(&trust).unwrap();
        connect_as(&address, "localhost", Some(&client)).await.unwrap().into_stream().unwrap()
    }

    /// Asks with these headers; gives status and body.
    async fn ask(&self, request: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        let length = body.len();
        let text = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", fs::read_to_string(self.folder.join("token")).unwrap())
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command(arguments);
        let file = |name: &str| self.folder.join(name);
        command.arg("--server").arg(format!("localhost:{}", self.addr.port()));
        command.arg("--token-file").arg(file("token")).arg("--ca-file").arg(file("api.crt"));
        command
    }

    /// What the command line says on standard output and standard error, and whether it succeeded.
    fn run(&self, arguments: &[&str]) -> (String, String, bool) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.success())
    }
}

/// A flow of which both ends are known and that goes on.
fn live(port: u16) -> FlowRecord {
    let [mut flow, _] = halves(port, 10);
    flow.head.end_reason = EndReason::Active;
    let tail = &mut flow.tail;
    tail.flow_type = FlowType::IntraNode;
    (tail.src_namespace, tail.src_node) = ("shop".into(), "node-a".into());
    (tail.dst_pod, tail.dst_namespace, tail.dst_node) = ("server".into(), "shop".into(), "node-a".into());
    tail.service = "shop/web:http".into();
    flow.extended.forwarding_status = ForwardingStatus::Forwarded;
    flow.extended.flow_id = port.into();
    flow
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_health_is_told_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path(), "").await;
    for open in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(api.ask(&format!("GET {open}"), "", "").await.0, 200, "{open}");
    }
    let guarded = ["/flowrecords", "/recordmetrics", "/accounting", "/loglevel", "/metrics", "/version", "/nowhere"];
    for path in guarded {
        for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic x\r\n"] {
            assert_eq!(api.ask(&format!("GET {path}"), headers, "").await.0, 401, "{path} {headers}");
        }
        let wanted = if path == "/nowhere" { 404 } else { 200 };
        assert_eq!(api.ask(&format!("GET {path}"), &api.bearer(), "").await.0, wanted, "{path}");
    }
    let (_, refusal) = api.ask("GET /version", "", "").await;
    assert_snapshot!(refusal);
    assert_eq!(api.aggregator.metric("api_unauthorized_total"), Some(3 * guarded.len() as u64 + 1));
    let file = dir.path().join("secret");
    fs::write(&file, "of the file\n").unwrap();
    let keys = format!("apiPort: 0, bindAddress: 127.0.0.1, folder: \"{}\"", api.folder.display());
    api.aggregator.configure(&format!("apiServer: {{{keys}, tokenFile: \"{}\"}}\n", file.display()));
    api.aggregator.until("config_reloads_total", 1);
    assert_eq!(api.ask("GET /version", &api.bearer(), "").await.0, 401);
    assert_eq!(api.ask("GET /version", "Authorization: Bearer of the file\r\n", "").await.0, 200);
    // What was made goes with the process, and others may not read the token meanwhile.
    let token = api.folder.join("token");
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(api.aggregator.stop().success());
    assert!(!token.exists() && !api.folder.join("api.crt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_shown_filtered_and_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let mut api = Api::start(dir.path(), "").await;
    api.fill(40_001..=40_003).await;
    let get = |arguments: &[&str]| {
        let (shown, said, good) = api.run(&[&["get", "flowrecords"], arguments].concat());
        assert!(good, "{said}");
        (shown, said)
    };
    assert_snapshot!(get(&[]).0);
    assert_snapshot!(get(&["-o", "csv", "--srcport", "40002"]).0);
    assert_snapshot!(get(&["-o", "wide", "--srcip", "10.0.1.5", "--srcport", "40003", "--proto", "tcp"]).0);
    let yaml = get(&["-o", "yaml", "src.port = 40001"]).0;
    assert!(yaml.starts_with("---\n") && yaml.contains("  sourceTransportPort: 40001\n"), "{yaml}");
    let json: serde_json::Value = serde_json::from_str(&get(&["-o", "json", "src.port = 40001"]).0).unwrap();
    assert_eq!(json["ipfix"]["destinationPodName"], "server");
    assert_eq!(get(&["--dstip", "10.9.9.9"]), (String::new(), "No flows.\n".to_owned()));
    let (shown, said) = get(&["--limit", "2"]);
    assert_eq!(shown.lines().count(), 3);
    assert_snapshot!(said);

    let (_, said, good) = api.run(&["get", "flowrecords", "verdct = denied"]);
    assert!(!good);
    assert_snapshot!(said);
    let (status, refusal) = api.ask("GET /flowrecords?filter=verdct%20%3D%20denied", &api.bearer(), "").await;
    assert_eq!(status, 400);
    assert_snapshot!(refusal);
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_give_each_flow_once_while_records_come() {
    const FLOWS: u16 = 6_000;
    let dir = tempfile::tempdir().unwrap();
    let mut api = Api::start(dir.path(), "").await;
    api.fill(1..=FLOWS).await;
    let (mut ports, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (status, page) = api.ask(&format!("GET /flowrecords?limit=1000{cursor}"), &api.bearer(), "").await;
        assert_eq!(status, 200);
        // The body is chunked: what is no JSON between its pieces is their lengths.
        let text: String = page.split("\r\n").filter(|piece| !is_chunk_length(piece)).collect();
        let page: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let flows = page["flowRecords"].as_array().unwrap();
        assert!(flows.len() <= 1_000);
        ports.extend(flows.iter().map(|flow| flow["ipfix"]["sourceTransportPort"].as_u64().unwrap()));
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
        let mut more = live(1);
        more.head.set_totals([20 + pages, 2_000, 0, 0]);
        api.agent.send(&[more]).await;
    }
    ports.sort_unstable();
    assert_eq!(ports, (1..=u64::from(FLOWS)).collect::<Vec<_>>());
    assert!(pages >= 6, "{pages}");
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_does_not_stall_the_table() {
    const FLOWS: u16 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let mut api = Api::start(dir.path(), "").await;
    api.fill(1..=FLOWS).await;
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut stream = api.connect().await;
        let request = format!("GET /flowrecords?limit=10000 HTTP/1.1\r\nHost: x\r\n{}\r\n", api.bearer());
        stream.write_all(request.as_bytes()).await.unwrap();
        unread.push(stream);
    }
    api.aggregator.until("api_connections", 4);
    let before = api.aggregator.metric("records_received_total").unwrap();
    for step in 1..=5 {
        api.agent.send(&(1..=1_000).map(external).collect::<Vec<_>>()).await;
        api.aggregator.until("records_received_total", before + step * 1_000);
    }
    assert!(api.aggregator.stop().success(), "nor the end of the process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_takes_its_time_takes_none_of_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let mut api = Api::start(dir.path(), "").await;
    let with_long_names = |port: u16| {
        let mut flow = live(port);
        let mut bits = u64::from(port);
        let letter = |_| {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if bits >> 63 == 0 { 'a' } else { 'b' }
        };
        flow.tail.src_pod = (0..253).map(letter).collect();
        flow
    };
    api.agent.send(&(1..=200).map(with_long_names).collect::<Vec<_>>()).await;
    api.aggregator.until("flows", 200);
    // Each of these regular expressions is as large as may be, and takes a name milliseconds.
    let costly = ["pod%20~%20%22(a%7Cb%7Cab)%7B1,300%7D9%22"; 12].join("%20or%20");
    let mut asking = api.connect().await;
    let request = format!("GET /flowrecords?filter={costly} HTTP/1.1\r\nHost: x\r\n{}\r\n", api.bearer());
    asking.write_all(request.as_bytes()).await.unwrap();
    // The head comes when the filter was read; the first flows are being tried then.
    assert_ne!(asking.read(&mut [0; 1_024]).await.unwrap(), 0);
    let begin = std::time::Instant::now();
    let (status, _) = api.ask("GET /recordmetrics", &api.bearer(), "").await;
    let waited = begin.elapsed();
    assert_eq!(status, 200, "after {waited:?}");
    assert!(timeout(Duration::ZERO, asking.read(&mut [0; 4])).await.is_err(), "the filter was done before: {waited:?}");
    assert!(api.aggregator.stop().success());
}

fn is_chunk_length(piece: &str) -> bool {
    piece.len() < 8 && piece.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_followed_as_they_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    let mut api = Api::start(dir.path(), "").await;
    let mut command = api.command(&["get", "flowrecords", "--follow", "-o", "csv", "src.port > 100"]);
    let mut following = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.take(2).for_each(|line| drop(sender.send(line.unwrap()))));
    api.aggregator.until("api_connections", 1);
    // The request may come to the table only after the first records.
    for port in 101.. {
        api.agent.send(&[external(port), external(7)]).await;
        if let Ok(header) = received.recv_timeout(Duration::from_millis(200)) {
            let row = received.recv_timeout(PATIENCE).unwrap();
            assert!(header.starts_with("SRC_IP,DST_IP,SPORT"), "{header}");
            assert!(row.starts_with("10.0.1.5,10.0.2.7,1"), "{row}");
            break;
        }
        assert!(port < 200, "nothing came");
    }
    following.kill().unwrap();
    following.wait().unwrap();
    api.aggregator.until("api_connections", 0);
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_does_not_read_misses_records_and_the_sinks_none() {
    let dir = tempfile::tempdir().unwrap();
    let log = format!("flowLogger: {{enable: true, path: \"{}/flows\"}}\n", dir.path().display());
    let mut api = Api::start(dir.path(), &log).await;
    let mut follower = api.connect().await;
    let request = format!("GET /flowrecords?follow=true HTTP/1.1\r\nHost: x\r\n{}\r\n", api.bearer());
    follower.write_all(request.as_bytes()).await.unwrap();
    // The answer's head comes when the table's task knows of the follower.
    assert_ne!(follower.read(&mut [0; 4]).await.unwrap(), 0);
    // Few enough that the kernel does not end the connection meanwhile, as it does where nothing is taken for 30 s.
    for step in 0..15 {
        api.agent.send(&(1..=1_000).map(|port| external(step * 1_000 + port)).collect::<Vec<_>>()).await;
        api.aggregator.until("sink_delivered_total{sink=\"log\"}", (u64::from(step) + 1) * 1_000);
    }
    // It is told once it reads on.
    let (mut told, mut piece) = (String::new(), vec![0; 1 << 20]);
    while !told.contains("skippedBatches") {
        let length = timeout(PATIENCE, follower.read(&mut piece)).await.unwrap().unwrap();
        assert_ne!(length, 0, "the end");
        let end = told.len().saturating_sub(20);
        told = told.split_off(end) + &String::from_utf8_lossy(&piece[..length]);
    }
    assert!(api.aggregator.metric("api_batches_skipped_total").unwrap() > 0);
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_accounting_and_log_level_are_told_and_set() {
    let dir = tempfile::tempdir().unwrap();
    let log = format!("flowLogger: {{enable: true, path: \"{}/flows\"}}\n", dir.path().display());
    let mut api = Api::start(dir.path(), &log).await;
    api.fill(1..=3).await;
    let count = |reason: &str, packets| {
        Accounting::Interface(InterfaceCount {
            interface: 3,
            reason: reason.into(),
            interface_name: "veth3".into(),
            packets,
            octets: packets * 1_000,
        })
    };
    let metering = Metering { metering_process: 1, messages: 2, records: 3, octets: 4 };
    let told = [count("seen", 1_000), count("accounted", 990), count("map_full", 10), Accounting::Metering(metering)];
    api.agent.account(&told).await;
    api.aggregator.until("agents_packets{selector=\"seen\"}", 1_000);
    api.aggregator.until("sink_delivered_total{sink=\"log\"}", 3);
    let get = |arguments: &[&str]| {
        let (shown, said, good) = api.run(arguments);
        assert!(good, "{said}");
        shown
    };
    assert_snapshot!(get(&["get", "recordmetrics"]));
    assert_snapshot!(get(&["get", "recordmetrics", "-o", "json"]));
    assert_snapshot!(get(&["get", "accounting", "-o", "wide"]));
    assert_snapshot!(get(&["get", "accounting", "-o", "yaml"]));
    assert_eq!(get(&["log-level"]), "info\n");
    assert_eq!(get(&["log-level", "debug"]), "debug\n");
    TcpStream::connect(api.addr).await.unwrap().write_all(b"no TLS at all").await.unwrap();
    api.aggregator.logged("does not speak as this port does");
    assert_eq!(get(&["log-level"]), "debug\n");
    let (_, said, good) = api.run(&["log-level", "loud"]);
    assert!(!good);
    assert_snapshot!(said);
    let (status, level) = api.ask("PUT /loglevel", &api.bearer(), "{\"level\":\"warn\"}").await;
    assert_eq!((status, level.as_str()), (200, "{\"level\":\"warn\"}"));
    assert_eq!(api.ask("PUT /loglevel", &api.bearer(), &"x".repeat(2_000)).await.0, 400);
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_aggregator_that_finds_the_port_taken_changes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path(), "").await;
    let files = || ["api.crt", "token"].map(|name| fs::read(api.folder.join(name)).unwrap());
    let before = files();
    let config = dir.path().join("another.conf");
    let folder = api.folder.display();
    let port = api.addr.port();
    let settings = format!("apiServer: {{apiPort: {port}, bindAddress: 127.0.0.1, folder: \"{folder}\"}}\n");
    fs::write(&config, ports(&settings)).unwrap();
    let ended = command(&["run", "--config", config.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && said.contains("apiServer.apiPort") && said.contains("in use"), "{said}");
    assert_eq!(files(), before);
    assert!(api.run(&["get", "recordmetrics"]).2, "the first one still answers");
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_many_clients_of_one_address_hold_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path(), "").await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        idle.push(socket.connect(api.addr).await.unwrap());
    }
    // Of the other address nobody is turned away, though the first has more than its share.
    api.aggregator.until("api_connections_refused_total", 8);
    assert_eq!(api.ask("GET /version", &api.bearer(), "").await.0, 200);
    // A header that does not end is not waited for.
    let mut slow = api.connect().await;
    slow.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let begin = std::time::Instant::now();
    let mut answer = Vec::new();
    // It may be told, or just closed.
    let _ = timeout(PATIENCE, slow.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(begin.elapsed().as_secs() < 9, "{:?}", begin.elapsed());
    drop(idle);
    api.aggregator.until("api_connections", 0);
    assert!(api.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_api_port_costs_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::start(dir.path(), "").await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 2_000], &[0x16, 3, 1, 0xff, 0xff, 1]] {
        let mut stream = TcpStream::connect(api.addr).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // It is closed, with an alert or without.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed");
    }
    for bad in
        ["GET /flowrecords?limit=x", "GET /flowrecords?filter=%28", "DELETE /loglevel", "GET /flowrecords?srcip=%ff"]
    {
        let (status, _) = api.ask(bad, &api.bearer(), "").await;
        assert!((400..500).contains(&status), "{bad}: {status}");
    }
    assert!(api.aggregator.stop().success());
}

#[test]
fn without_an_aggregator_the_command_line_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flow-aggregator.conf");
    fs::write(&file, "aggregatorTransportProtocol: tcp\napiServer: {folder: /nowhere}\n").unwrap();
    let output = command(&["get", "recordmetrics", "--config", file.to_str().unwrap()]).output().unwrap();
    assert!(!output.status.success());
    assert_snapshot!(String::from_utf8(output.stderr).unwrap());
}
