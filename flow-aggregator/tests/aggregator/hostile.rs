//! Crowds and bad neighbours: many exporters, clients that come and go, floods of garbage, clients that take their
//! time. Whoever behaves must be served all the while, and what was refused must be counted.

use super::ends::{Agent, PATIENCE, external, halves, parse, tls};
use super::process::Process;
use flow_common::{
    net::{Address, Protocol, TlsClient, TlsTrust, Trust, connect_as},
    record::FlowRecord,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time::{interval, sleep, timeout},
};

/// Bad clients have an address of their own, as they would have elsewhere.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FLOOD: Duration = Duration::from_secs(3);

/// An aggregator that writes what it exports to a file, and has an API.
pub(crate) struct Served {
    pub(crate) aggregator: Process,
    api: SocketAddr,
    folder: tempfile::TempDir,
    client: TlsClient,
}

impl Served {
    fn start(protocol: Protocol) -> Served {
        Served::with(protocol, "")
    }

    /// With these settings beside those that all have.
    pub(crate) fn with(protocol: Protocol, further: &str) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let (certificates, client) = tls(folder.path());
        let settings = format!(
            "{}correlationTimeout: 1h\ninactiveFlowRecordTimeout: 2h\napiServer: {{apiPort: 0, bindAddress: 127.0.0.1, folder: \"{folder}/run\"}}\n\
             flowLogger: {{enable: true, path: \"{folder}/flows\"}}\n{further}",
            if protocol == Protocol::Tls { &certificates } else { "" },
            folder = folder.path().display()
        );
        let aggregator = Process::receiving(protocol, &folder.path().join("flow-aggregator.conf"), &settings);
        let api = aggregator.told("the API is on https://");
        Served { aggregator, api, folder, client }
    }

    pub(crate) async fn agent(&self, domain: u32, protocol: Protocol) -> Agent {
        Agent::connect(self.aggregator.addr, domain, protocol, Some(&self.client)).await
    }

    /// Whether the API says within a moment that it lives.
    async fn lives(&self) -> bool {
        let asked = async {
            let trust = TlsTrust::from(Trust::Ca(self.folder.path().join("run/api.crt")));
            let address = Address::parse(&self.api.to_string(), Protocol::Tls).unwrap();
            let connection = connect_as(&address, "localhost", Some(&TlsClient::trusting(&trust).unwrap())).await;
            let mut stream = connection.unwrap().into_stream().unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.starts_with("HTTP/1.1 200 ")
        };
        timeout(PATIENCE, asked).await.unwrap_or(false)
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.aggregator.metric(name).unwrap_or(0)
    }

    /// Flows in the log file.
    fn logged(&self) -> Vec<serde_json::Value> {
        parse(&fs::read_to_string(self.folder.path().join("flows")).unwrap())
    }

    fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.aggregator.pid())).unwrap().count()
    }
}

pub(crate) fn flows(ports: std::ops::Range<u16>) -> Vec<FlowRecord> {
    ports.map(external).collect()
}

pub(crate) async fn stranger(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((STRANGER, 0).into())?;
    socket.connect(to).await
}

/// Bytes that mean nothing, others each time.
fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_exporters_send_at_once_and_every_half_finds_its_partner() {
    const PAIRS: u16 = 100;
    const FLOWS: u16 = 25;
    let served = Served::start(Protocol::Tls);
    let mut exporters = Vec::new();
    for number in 0..2 * PAIRS {
        exporters.push((number, served.agent(number.into(), Protocol::Tls).await));
    }
    served.aggregator.until("sessions", u64::from(2 * PAIRS));
    let mut sending = JoinSet::new();
    for (number, mut exporter) in exporters {
        sending.spawn(async move {
            for flow in 0..FLOWS {
                let port = 1 + (number / 2) * FLOWS + flow;
                exporter.send(&[halves(port, 10)[usize::from(number % 2)].clone()]).await;
            }
            exporter
        });
    }
    let exporters = sending.join_all().await;
    served.aggregator.until("records_received_total", u64::from(2 * PAIRS * FLOWS));
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", u64::from(PAIRS * FLOWS));
    drop(exporters);
    served.aggregator.until("sessions", 0);
    let metric = |name| served.metric(name);
    assert_eq!((metric("flows_uncorrelated_total"), metric("records_lost_total")), (0, 0));
    let logged = served.logged();
    let joined = |flow: &&serde_json::Value| {
        flow["ipfix"]["sourcePodName"] == "client" && flow["ipfix"]["destinationPodName"] == "server"
    };
    assert_eq!(logged.iter().filter(joined).count(), usize::from(PAIRS * FLOWS));
    assert!(served.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_come_and_go_and_leave_nothing_behind() {
    const CLIENTS: u64 = 10_000;
    const TASKS: u64 = 8;
    let served = Served::start(Protocol::Tcp);
    let mut agent = served.agent(0xa, Protocol::Tcp).await;
    served.aggregator.until("sessions", 1);
    served.aggregator.until("sink_connected{sink=\"log\"}", 1);
    assert!(served.lives().await);
    let before = served.open_files();
    let addr = served.aggregator.addr;
    let mut clients = JoinSet::new();
    for task in 0..TASKS {
        clients.spawn(async move {
            for number in 0..CLIENTS / TASKS {
                let mut stream = stranger(addr).await.unwrap();
                match (number + task) % 3 {
                    0 => {}
                    // The begin of a message.
                    1 => stream.write_all(&[0, 10, 0, 200, 1, 2, 3]).await.unwrap(),
                    // A reset: what was not read is thrown away.
                    _ => stream.set_zero_linger().unwrap(),
                }
            }
        });
    }
    for step in 0..10 {
        agent.send(&flows(step * 100 + 1..step * 100 + 101)).await;
        served.aggregator.until("sink_delivered_total{sink=\"log\"}", u64::from(step + 1) * 100);
        assert!(served.lives().await);
    }
    clients.join_all().await;
    served.aggregator.until("sessions", 1);
    let counted =
        served.metric("sessions_accepted_total") + served.metric("sessions_refused_total{reason=\"handshake\"}");
    // One that was reset before it was accepted was never there.
    assert!(counted <= CLIENTS + 1 && counted > CLIENTS / 2, "{counted}");
    served.aggregator.wait("their sockets are closed", || served.open_files() <= before + 1);
    assert!(served.aggregator.stop().success());
}

/// Garbage on the exporters' port and the API's while a good exporter sends.
async fn flooded(protocol: Protocol) {
    let served = Served::start(protocol);
    let mut agent = served.agent(0xa, protocol).await;
    // Its templates, which come by datagrams once, are there before the flood is.
    agent.send(&flows(1..2)).await;
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", 1);
    let (port, api) = (served.aggregator.addr, served.api);
    let end = Instant::now() + FLOOD;
    let mut floods = JoinSet::new();
    for (number, to) in [port, port, api, api].into_iter().enumerate() {
        let by_datagrams = protocol == Protocol::Udp && to == port;
        floods.spawn(async move {
            let mut seed = number as u64 * 1_000_000;
            while Instant::now() < end {
                seed += 1;
                if by_datagrams {
                    datagrams_of_garbage(to, seed).await;
                } else if let Ok(mut stream) = stranger(to).await {
                    // Some of it begins as it should.
                    let begin: &[u8] = if seed.is_multiple_of(2) { &[0, 10] } else { &[22, 3, 1] };
                    let _ = stream.write_all(&[begin, &garbage(seed, 50_000)].concat()).await;
                }
            }
        });
    }
    let (mut sent, mut lived) = (1, 0);
    while Instant::now() < end {
        agent.send(&flows(sent + 1..sent + 51)).await;
        sent += 50;
        assert!(served.lives().await, "the API answers, {lived} answers before");
        lived += 1;
    }
    floods.join_all().await;
    if protocol == Protocol::Udp {
        // Datagrams may be lost, and are then sent again, as totals are in a later record.
        let begun = Instant::now();
        while served.metric("sink_delivered_total{sink=\"log\"}") < u64::from(sent) {
            assert!(begun.elapsed() < PATIENCE, "{}", served.aggregator.ask("/metrics"));
            agent.send(&flows(1..sent + 1)).await;
            sleep(Duration::from_millis(200)).await;
        }
    }
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", sent.into());
    let refused = match protocol {
        Protocol::Tls => "sessions_refused_total{reason=\"handshake\"}",
        Protocol::Tcp => "sessions_malformed_total",
        Protocol::Udp => "messages_malformed_total",
    };
    assert!(served.metric(refused) > 10, "{refused}: {}", served.metric(refused));
    let connected = if protocol == Protocol::Udp { served.metric("sessions") } else { 1 };
    served.aggregator.until("sessions", connected);
    served.aggregator.until("api_connections", 0);
    assert_eq!(served.logged().len(), usize::from(sent), "each once");
    assert!(served.aggregator.stop().success());
}

async fn datagrams_of_garbage(to: SocketAddr, seed: u64) {
    let socket = UdpSocket::bind((STRANGER, 0)).await.unwrap();
    for number in 0..50 {
        let message = garbage(seed * 50 + number, 20 + number as usize * 25);
        let header = [&[0, 10][..], &(message.len() as u16 + 2).to_be_bytes()[..]].concat();
        let begin: &[u8] = if number.is_multiple_of(2) { &header } else { &[] };
        let _ = socket.send_to(&[begin, &message].concat(), to).await;
    }
    tokio::task::yield_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_by_tcp_costs_nobody_else() {
    flooded(Protocol::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_by_tls_costs_nobody_else() {
    flooded(Protocol::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_by_udp_costs_nobody_else() {
    flooded(Protocol::Udp).await;
}

/// Slow clients of the exporters' port send a message, or by TLS their part of the handshake, a byte at a time; those of
/// the API's never end their handshake.
async fn slow_clients(protocol: Protocol) {
    const SLOW: u64 = 100;
    const HELLO: &[u8] = &[22, 3, 1, 2, 0, 1];
    let served = Served::start(protocol);
    let mut agent = served.agent(0xa, protocol).await;
    let (slowly, reason) = match protocol {
        Protocol::Tls => (HELLO, "handshake"),
        Protocol::Tcp | Protocol::Udp => (&[0, 10, 0, 200][..], "stalled"),
    };
    let (port, api) = (served.aggregator.addr, served.api);
    let mut slow = JoinSet::new();
    for number in 0..2 * SLOW {
        slow.spawn(async move {
            let (to, begin) = if number < SLOW { (port, slowly) } else { (api, HELLO) };
            let mut stream = stranger(to).await.unwrap();
            let mut second = interval(Duration::from_secs(1));
            let mut bytes = begin.iter().chain(std::iter::repeat(&0));
            loop {
                second.tick().await;
                let byte = *bytes.next().unwrap();
                // Whether it is closed shows at the next byte but one.
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        });
    }
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        agent.send(&flows(sent + 1..sent + 51)).await;
        sent += 50;
        served.aggregator.until("sink_delivered_total{sink=\"log\"}", sent.into());
        assert!(served.lives().await);
    }
    served.aggregator.until(&format!("sessions_refused_total{{reason=\"{reason}\"}}"), SLOW);
    served.aggregator.until("sessions", 1);
    served.aggregator.until("api_connections", 0);
    assert!(served.metric("api_connections_refused_total") > 0, "one address has its share and no more");
    timeout(PATIENCE, slow.join_all()).await.expect("every one of them is sent away");
    assert!(served.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_their_time_are_sent_away_and_hold_up_nobody() {
    slow_clients(Protocol::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_take_their_time_are_broken_off_and_hold_up_nobody() {
    slow_clients(Protocol::Tls).await;
}
