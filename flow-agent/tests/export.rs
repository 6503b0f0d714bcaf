//! Export against a real peer on the loopback, by TLS, TCP and UDP: templates first, every record whole, ended flows again on each new
//! connection, and nothing lost while the collector is away.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use flow_agent::config::{self, Config};
use flow_agent::doctor::{Export, Facts};
use flow_agent::enrich::Record;
use flow_agent::export::{self, Exporter};
use flow_common::ipfix::message::{HEADER_LEN, Header};
use flow_common::ipfix::wire::Reader;
use flow_common::net::{Incoming, Listener, Protocol, TlsFiles, TlsServer};
use flow_common::record::{Cut, EndReason, Extended, Family, FlowRecord, Head, Tail};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

fn record(id: u64, reason: EndReason) -> Record {
    let tail = Tail { src_pod: format!("pod-{id}"), ..Tail::default() };
    let v6 = id % 2 == 1;
    let (family, addr) = if v6 { (Family::V6, "fd00::1".parse().unwrap()) } else { (Family::V4, [10, 0, 0, 1].into()) };
    let head = Head {
        src_addr: addr,
        dst_addr: addr,
        end_reason: reason,
        packet_delta: id,
        octet_delta: id * 100,
        ..Head::default()
    };
    let extended = Extended { flow_id: id, ..Extended::absent(family) };
    Record { head, tail: Arc::new(tail.to_encoded(family, &mut Cut::default())), extended }
}

fn batch(records: &[(u64, EndReason)]) -> Arc<Vec<Record>> {
    Arc::new(records.iter().map(|(id, reason)| record(*id, *reason)).collect())
}

/// The stage under test, with the test at both its ends.
struct Stage {
    batches: mpsc::Sender<Arc<Vec<Record>>>,
    status: watch::Receiver<Export>,
    _facts: watch::Sender<Arc<Facts>>,
    task: JoinHandle<()>,
}

impl Stage {
    fn start(collector: &str, tls: Option<&TlsFiles>, further: &str) -> Self {
        let files = tls.map_or(String::new(), |TlsFiles { ca, cert, key }| {
            format!("tls: {{ca: {}, cert: {}, key: {}}}\n", ca.display(), cert.display(), key.display())
        });
        let text = format!("flowExporter: {{flowCollectorAddr: \"{collector}\"}}\n{files}{further}");
        let config: Config = config::read("test.conf", &text).unwrap().settings;
        let (batches, input) = mpsc::channel(64);
        let (state, status) = watch::channel(Export::default());
        let (facts, latest) = watch::channel(Arc::new(Facts::default()));
        let exporter = Exporter::new(&config, "node-a", state, latest);
        Self { batches, status, _facts: facts, task: tokio::spawn(export::run(exporter, input)) }
    }

    async fn connected(&mut self) {
        self.status.wait_for(|status| status.peer.is_some()).await.unwrap();
    }

    async fn disconnected(&mut self) -> String {
        let status = self.status.wait_for(|status| status.peer.is_none() && status.failure.is_some()).await.unwrap();
        status.failure.clone().unwrap()
    }

    /// Ends the input and waits until all is sent.
    async fn finish(self) -> Export {
        drop(self.batches);
        self.task.await.unwrap();
        self.status.borrow().clone()
    }
}

/// What a collector heard.
#[derive(Debug, Default)]
struct Heard {
    flows: Vec<FlowRecord>,
    templates: HashSet<u16>,
    options: usize,
    messages: usize,
    sequence: u32,
}

impl Heard {
    /// The flows' numbers; both address families are sent beside each other.
    fn sorted(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.flows.iter().map(|flow| flow.extended.flow_id).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes the whole messages out of `buffer`, each checked as a collector would.
    fn take(&mut self, buffer: &mut BytesMut) {
        while let Some(Ok(header)) = Header::read(&mut Reader::new(buffer)) {
            if buffer.len() < usize::from(header.length) {
                return;
            }
            assert_eq!(header.sequence, self.sequence, "a record went missing or was counted twice");
            let message = buffer.split_to(usize::from(header.length));
            let mut sets = Reader::new(&message[HEADER_LEN..]);
            while let (Some(id), Some(length)) = (sets.u16(), sets.u16()) {
                self.set(id, sets.bytes(usize::from(length) - 4).unwrap());
            }
            assert!(sets.is_empty());
            self.messages += 1;
        }
    }

    fn set(&mut self, id: u16, body: &[u8]) {
        match id {
            2 | 3 => {
                self.templates.insert(Reader::new(body).u16().unwrap());
            }
            256 | 257 => {
                assert!(self.templates.contains(&id), "data before its template");
                let family = if id == 256 { Family::V4 } else { Family::V6 };
                let mut rest = body;
                while !rest.is_empty() {
                    let (flow, behind) = FlowRecord::decode(family, true, rest).unwrap();
                    self.flows.push(flow);
                    self.sequence += 1;
                    rest = behind;
                }
            }
            // The two records of a fixed length that every accounting has.
            258 | 259 => {
                self.options += 1;
                self.sequence += 1;
            }
            other => panic!("set {other}"),
        }
    }
}

/// A collector that hears streams.
struct Peer {
    listener: Listener,
    addr: SocketAddr,
}

impl Peer {
    async fn bind(addr: &str, tls: Option<&TlsServer>) -> Self {
        let protocol = if tls.is_some() { Protocol::Tls } else { Protocol::Tcp };
        let listener = Listener::bind(addr.parse().unwrap(), protocol, tls).await.unwrap();
        let addr = listener.local().unwrap();
        Self { listener, addr }
    }

    async fn accept(&self) -> Incoming {
        let Listener::Stream(listener) = &self.listener else { panic!("a stream listener") };
        listener.accept().await.unwrap().complete().await.unwrap()
    }
}

/// Hears until so many flows came.
async fn hear(incoming: &mut Incoming, buffer: &mut BytesMut, heard: &mut Heard, flows: usize) {
    while heard.flows.len() < flows {
        buffer.reserve(65_536);
        assert_ne!(incoming.fill(buffer).await.unwrap(), 0, "the stream ended early");
        heard.take(buffer);
    }
}

/// Hears until the stream ends.
async fn hear_out(incoming: &mut Incoming) -> Heard {
    let (mut heard, mut buffer) = (Heard::default(), BytesMut::new());
    loop {
        buffer.reserve(65_536);
        if incoming.fill(&mut buffer).await.unwrap() == 0 {
            assert!(buffer.is_empty(), "the stream ended within a message");
            return heard;
        }
        heard.take(&mut buffer);
    }
}

const ACTIVE: EndReason = EndReason::Active;
const END: EndReason = EndReason::End;

#[tokio::test]
async fn records_arrive_whole_by_tcp() {
    let peer = Peer::bind("127.0.0.1:0", None).await;
    let mut stage = Stage::start(&format!("{}:tcp", peer.addr), None, "");
    let mut incoming = peer.accept().await;
    stage.connected().await;
    let sent: Vec<(u64, EndReason)> = (0..3_000).map(|id| (id, if id % 3 == 0 { END } else { ACTIVE })).collect();
    for some in sent.chunks(500) {
        stage.batches.send(batch(some)).await.unwrap();
    }
    let (heard, status) = tokio::join!(hear_out(&mut incoming), stage.finish());
    assert_eq!(heard.sorted(), (0..3_000).collect::<Vec<_>>());
    for flow in &heard.flows {
        let id = flow.extended.flow_id;
        assert_eq!(*flow, record(id, sent[usize::try_from(id).unwrap()].1).owned());
    }
    assert_eq!(heard.templates, HashSet::from([256, 257, 258, 259, 260, 261, 262]));
    assert_eq!(heard.options, 4, "accounting at the beginning and at the end");
    assert_eq!((status.records, status.connects, status.unsent), (3_000, 1, 0));
    assert_eq!(status.messages, u64::try_from(heard.messages).unwrap());
}

#[tokio::test]
async fn a_datagram_holds_one_message_that_fits_the_path() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut stage = Stage::start(&format!("{}:udp", socket.local_addr().unwrap()), None, "accountingRecords: false\n");
    stage.connected().await;
    stage.batches.send(batch(&(0..600).map(|id| (id, ACTIVE)).collect::<Vec<_>>())).await.unwrap();
    let (mut heard, mut longest) = (Heard::default(), 0);
    while heard.flows.len() < 600 {
        let mut datagram = vec![0; 65_536];
        let length = socket.recv(&mut datagram).await.unwrap();
        longest = longest.max(length);
        let mut buffer = BytesMut::from(&datagram[..length]);
        heard.take(&mut buffer);
        assert!(buffer.is_empty(), "a datagram holds whole messages");
    }
    assert!(longest <= 65_507 && heard.messages > 2, "{longest} bytes, {} messages", heard.messages);
    stage.finish().await;
}

#[tokio::test]
async fn ended_flows_come_again_on_a_new_connection() {
    let peer = Peer::bind("127.0.0.1:0", None).await;
    let mut stage = Stage::start(&format!("{}:tcp", peer.addr), None, "");
    let mut incoming = peer.accept().await;
    stage.connected().await;
    stage.batches.send(batch(&[(1, ACTIVE), (2, END), (3, EndReason::Resources), (4, EndReason::Idle)])).await.unwrap();
    let (mut heard, mut buffer) = (Heard::default(), BytesMut::new());
    hear(&mut incoming, &mut buffer, &mut heard, 4).await;
    drop(incoming);
    assert_eq!(stage.disconnected().await, "the collector closed the connection");
    // While it is away: what ended waits, what lives is healed by its totals.
    stage.batches.send(batch(&[(5, ACTIVE), (6, END)])).await.unwrap();
    let mut incoming = peer.accept().await;
    let (heard, status) = tokio::join!(hear_out(&mut incoming), stage.finish());
    assert_eq!(heard.sorted(), [2, 3, 6]);
    assert_eq!((status.connects, status.passed_over, status.lost_flows), (2, 1, 0));
}

/// A port at which nobody listens, and which is nobody else's meanwhile.
fn held() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_away_costs_the_oldest_ended_flows() {
    let (_held, port) = held();
    let mut stage = Stage::start(&format!("{port}:tcp"), None, "spoolRecords: 2\n");
    assert!(stage.disconnected().await.contains("refused"));
    stage.batches.send(batch(&[(2, END), (4, END), (6, END), (8, ACTIVE)])).await.unwrap();
    let peer = Peer::bind(&port.to_string(), None).await;
    let mut incoming = peer.accept().await;
    let (heard, status) = tokio::join!(hear_out(&mut incoming), stage.finish());
    assert_eq!(heard.sorted(), [4, 6]);
    assert_eq!((status.lost_flows, status.lost.packets, status.lost.bytes), (1, 2, 200));
}

#[tokio::test(start_paused = true)]
async fn the_last_records_get_one_more_attempt() {
    let (_held, port) = held();
    let mut stage = Stage::start(&format!("{port}:tcp"), None, "");
    stage.disconnected().await;
    stage.batches.send(batch(&[(2, EndReason::Forced)])).await.unwrap();
    let status = tokio::time::timeout(Duration::from_secs(5), stage.finish()).await.unwrap();
    assert_eq!(status.unsent, 1);
}

/// A CA, and a pair for each end, in PEM files.
fn certificates(folder: &Path) -> [TlsFiles; 2] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = write("ca.crt", params.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(params, key);
    ["server", "client"].map(|name| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        TlsFiles {
            ca: ca.clone(),
            cert: write(&format!("{name}.crt"), params.signed_by(&key, &issuer).unwrap().pem()),
            key: write(&format!("{name}.key"), key.serialize_pem()),
        }
    })
}

#[tokio::test]
async fn records_arrive_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let [server, client] = certificates(folder.path());
    let peer = Peer::bind("127.0.0.1:0", Some(&TlsServer::load(&server).unwrap())).await;
    let stage = Stage::start(&format!("{}:tls", peer.addr), Some(&client), "");
    let mut incoming = peer.accept().await;
    stage.batches.send(batch(&[(2, END), (3, EndReason::Forced)])).await.unwrap();
    let (heard, _) = tokio::join!(hear_out(&mut incoming), stage.finish());
    assert_eq!(heard.sorted(), [2, 3]);
}

#[tokio::test]
async fn renewed_certificates_are_shown_at_the_next_connection() {
    let folder = tempfile::tempdir().unwrap();
    let [server, client] = certificates(folder.path());
    let peer = Peer::bind("127.0.0.1:0", Some(&TlsServer::load(&server).unwrap())).await;
    let mut stage = Stage::start(&format!("{}:tls", peer.addr), Some(&client), "");
    let first = peer.accept().await;
    stage.connected().await;
    // By another CA, in the same files.
    certificates(folder.path());
    drop(first);
    let Listener::Stream(listener) = &peer.listener else { panic!("a stream listener") };
    let again = async {
        loop {
            // The collector's files may be read a moment later than the agent's.
            if let Ok(incoming) = listener.accept().await.unwrap().complete().await {
                return incoming;
            }
        }
    };
    let mut incoming = tokio::time::timeout(Duration::from_secs(30), again).await.expect("both use what is there now");
    stage.batches.send(batch(&[(2, END)])).await.unwrap();
    let (heard, _) = tokio::join!(hear_out(&mut incoming), stage.finish());
    assert_eq!(heard.sorted(), [2]);
}

#[tokio::test]
async fn a_collector_of_another_ca_hears_nothing() {
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [_, client] = certificates(ours.path());
    let [server, _] = certificates(others.path());
    let peer = Peer::bind("127.0.0.1:0", Some(&TlsServer::load(&server).unwrap())).await;
    let mut stage = Stage::start(&format!("{}:tls", peer.addr), Some(&client), "");
    let Listener::Stream(listener) = &peer.listener else { panic!("a stream listener") };
    let refused = listener.accept().await.unwrap().complete().await;
    assert!(refused.is_err(), "the client ends the handshake");
    let failure = stage.disconnected().await;
    assert!(failure.contains("certificate"), "{failure}");
}
