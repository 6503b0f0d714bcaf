//! Both ends of the aggregator for tests: agents that send, collectors that receive, certificates.

use flow_aggregator::certs;
use flow_common::{
    ipfix::{accounting::Accounting, exporter},
    net::{
        Address, Connection, DatagramListener, Incoming, Listener, Protocol, StreamListener, TlsClient, TlsFiles,
        connect,
    },
    record::{Content, EndReason, FlowRecord, FlowType, Head, Tail},
};
use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

/// Nothing here takes so long; a test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const LOOPBACK: &str = "127.0.0.1:0";

/// Sends as an agent does.
pub(crate) struct Agent {
    pub(crate) connection: Connection,
    session: exporter::Session,
}

impl Agent {
    /// An agent of this observation domain that is connected.
    pub(crate) async fn connect(addr: SocketAddr, domain: u32, protocol: Protocol, tls: Option<&TlsClient>) -> Agent {
        let address = Address::parse(&format!("localhost:{}:{protocol}", addr.port()), protocol).unwrap();
        let address = if protocol == Protocol::Tls { address } else { at(addr, protocol) };
        let connection = connect(&address, tls).await.unwrap();
        let mut session = exporter::Session::new(exporter::Settings {
            domain,
            content: Content::Agent,
            extended: true,
            accounting: true,
            message_limit: connection.message_limit().min(1400),
            template_resend: None,
        });
        session.begin(1_704_067_200);
        Agent { connection, session }
    }

    /// Sends accounting as options data.
    pub(crate) async fn account(&mut self, records: &[Accounting]) {
        for record in records {
            self.session.push_accounting(record).unwrap();
        }
        self.send(&[]).await;
    }

    /// Sends these so that they never arrive.
    pub(crate) fn lose(&mut self, records: &[FlowRecord]) {
        for record in records {
            self.session.push_record(record).unwrap();
        }
        self.session.finish();
        self.session.clear();
    }

    pub(crate) async fn send(&mut self, records: &[FlowRecord]) {
        for record in records {
            self.session.push_record(record).unwrap();
        }
        self.session.finish();
        for message in self.session.messages() {
            self.connection.send(message).await.unwrap();
        }
        self.connection.flush().await.unwrap();
        self.session.clear();
    }
}

pub(crate) fn at(addr: SocketAddr, protocol: Protocol) -> Address {
    Address::parse(&format!("{addr}:{protocol}"), protocol).unwrap()
}

/// Both halves of an ended flow between Nodes, from this port.
pub(crate) fn halves(src_port: u16, packets: u64) -> [FlowRecord; 2] {
    let mut head = Head {
        start_seconds: 1_704_067_200,
        end_seconds: 1_704_067_205,
        end_reason: EndReason::End,
        src_port,
        dst_port: 8080,
        protocol: 6,
        src_addr: [10, 0, 1, 5].into(),
        dst_addr: [10, 0, 2, 7].into(),
        ..Head::default()
    };
    head.set_totals([packets, packets * 100, 0, 0]);
    head.set_deltas([packets, packets * 100, 0, 0]);
    let tail = |src: &str, dst: &str| Tail {
        src_pod: src.into(),
        dst_pod: dst.into(),
        flow_type: FlowType::InterNode,
        ..Tail::default()
    };
    let half = |tail| FlowRecord { head, tail, ..FlowRecord::default() };
    [half(tail("client", "")), half(tail("", "server"))]
}

/// A flow that one Node sees alone.
pub(crate) fn external(src_port: u16) -> FlowRecord {
    let [mut record, _] = halves(src_port, 1);
    record.tail.flow_type = FlowType::ToExternal;
    record
}

/// A collector of JSON on a free port.
pub(crate) async fn json_collector() -> (StreamListener, SocketAddr) {
    let listener = Listener::bind(LOOPBACK.parse().unwrap(), Protocol::Tcp, None).await.unwrap();
    let addr = listener.local().unwrap();
    match listener {
        Listener::Stream(listener) => (listener, addr),
        Listener::Datagram(_) => panic!("asked for a stream"),
    }
}

pub(crate) async fn datagram_collector() -> (DatagramListener, SocketAddr) {
    let listener = Listener::bind(LOOPBACK.parse().unwrap(), Protocol::Udp, None).await.unwrap();
    let addr = listener.local().unwrap();
    match listener {
        Listener::Datagram(listener) => (listener, addr),
        Listener::Stream(_) => panic!("asked for datagrams"),
    }
}

/// Reads so many lines, or all until the end.
pub(crate) async fn lines(incoming: &mut Incoming, count: usize) -> Vec<serde_json::Value> {
    let mut text = bytes::BytesMut::new();
    let reading = async {
        while text.iter().filter(|byte| **byte == b'\n').count() < count {
            text.reserve(64 * 1024);
            if incoming.fill(&mut text).await.unwrap() == 0 {
                break;
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the lines come");
    parse(std::str::from_utf8(&text).unwrap())
}

pub(crate) fn parse(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn tls(dir: &Path) -> (String, TlsClient) {
    let options = certs::Options { dir: dir.to_owned(), names: Vec::new(), days: 1, force: false };
    certs::init(&options, SystemTime::now()).unwrap();
    let path = |name: &str| dir.join(name);
    let files = TlsFiles { ca: path("ca.crt"), cert: path("client.crt"), key: path("client.key") };
    let dir = dir.display();
    let settings = format!("tls: {{ca: \"{dir}/ca.crt\", cert: \"{dir}/server.crt\", key: \"{dir}/server.key\"}}\n");
    (settings, TlsClient::load(&files).unwrap())
}
