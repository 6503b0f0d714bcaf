//! The aggregator as shipped, over real sockets: two agents' or other exporters' IPFIX in by TCP or TLS, joined IPFIX out
//! to a collector.
//!
//! Gives CPU time of the aggregator's process, in which everything from its first byte to its last is, and its memory.
//! A round's messages are made before they are sent, so that the senders are no bottleneck.

use crate::{
    foreign,
    load::{Load, READ, agent, messages},
    process::Process,
    usage::{cpu, memory, until},
};
use anyhow::{Context, Result, ensure};
use flow_aggregator::certs;
use flow_common::{
    ipfix::{
        collector::{self, Batch, Limits, TailHash},
        exporter::Session,
    },
    net::{Address, Connection, Protocol, TlsClient, TlsFiles, connect},
    record::EncodedTail,
};
use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::SystemTime,
};
use tokio::runtime::{Builder, Runtime};

pub(crate) struct Figures {
    pub(crate) records: u64,
    pub(crate) joined: u64,
    pub(crate) cpu_seconds: f64,
    /// Resident before the first record, after the first round, and at most.
    pub(crate) resident: [u64; 3],
    pub(crate) tombstones: u64,
}

/// Whose messages it gets.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Senders {
    /// Our agents', by this protocol.
    Agents(Protocol),
    /// Other exporters', by TCP.
    Others,
}

pub(crate) fn measure(load: &Load, rounds: u32, senders: Senders) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let (tls, client) = certificates(folder.path())?;
    let (collector, received) = collect()?;
    // What is measured is the table, not a sink that is behind: nothing may be dropped.
    let settings = format!("{tls}flowCollector: {{enable: true, address: \"{collector}\"}}\nsinkQueue: 4000000\n");
    let aggregator = Process::receiving(senders.protocol(), &folder.path().join("flow-aggregator.conf"), &settings);
    aggregator.until("sink_connected{sink=\"ipfix\"}", 1);
    let metric = |name: &str| aggregator.metric(name).with_context(|| format!("it tells no {name}"));
    let process = aggregator.pid().cast_unsigned();
    let mut agents =
        [0, 1].map(|side| Sender::connect(&aggregator, load, side, senders, &client).expect("it connects"));
    let (mut cpu_seconds, mut resident) = (0.0, [memory(process, "VmRSS")?, 0, 0]);
    for round in 1..=rounds {
        let before = cpu(process)?;
        thread::scope(|scope| {
            let sending = agents.each_mut().map(|agent| scope.spawn(move || agent.send(load, round)));
            sending.into_iter().try_for_each(|sending| sending.join().expect("it does not panic"))
        })?;
        let all = u64::from(load.flows) * 2 * u64::from(round);
        until("every record is used", || Ok(metric("records_received_total")? == all))?;
        let joined = u64::from(load.flows) * u64::from(if load.ended { round } else { 1 });
        until("every joined record is out", || Ok(received.load(Ordering::Relaxed) >= joined))?;
        cpu_seconds += cpu(process)? - before;
        if round == 1 {
            resident[1] = memory(process, "VmRSS")?;
        }
    }
    resident[2] = memory(process, "VmHWM")?;
    let records = metric("records_received_total")?;
    let joined = received.load(Ordering::Relaxed);
    let expected = u64::from(load.flows) * u64::from(if load.ended { rounds } else { 1 });
    ensure!(joined == expected, "{joined} joined records came out, not {expected}");
    let foreign = metric("records_foreign_total")?;
    ensure!(
        foreign == if senders == Senders::Others { records } else { 0 },
        "{foreign} records were taken for another exporter's"
    );
    let tombstones = metric("tombstones")?;
    Ok(Figures { records, joined, cpu_seconds, resident, tombstones })
}

impl Senders {
    fn protocol(self) -> Protocol {
        match self {
            Senders::Agents(protocol) => protocol,
            Senders::Others => Protocol::Tcp,
        }
    }
}

/// Settings of the aggregator's TLS, and what agents show.
fn certificates(folder: &Path) -> Result<(String, TlsClient)> {
    let options = certs::Options { dir: folder.to_owned(), names: Vec::new(), days: 1, force: false };
    certs::init(&options, SystemTime::now())?;
    let file = |name: &str| folder.join(name);
    let client = TlsFiles { ca: file("ca.crt"), cert: file("client.crt"), key: file("client.key") };
    let settings =
        format!("tls: {{ca: \"{0}/ca.crt\", cert: \"{0}/server.crt\", key: \"{0}/server.key\"}}\n", folder.display());
    Ok((settings, TlsClient::load(&client)?))
}

/// A collector of one session; counts the records that came whole and in order.
fn collect() -> Result<(SocketAddr, Arc<AtomicU64>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let (addr, received) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
    let counter = received.clone();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the aggregator connects");
        let mut session = collector::Session::new(Limits::STREAM, TailHash::new(1));
        let (mut buffer, mut filled, mut batch) = (vec![0; 2 * READ], 0, Batch::new(1_024));
        while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]) {
            filled += read;
            let mut at = 0;
            loop {
                let next = session.decode(&buffer[..filled], at, 0, &mut batch).expect("good messages");
                batch.clear();
                if next == at {
                    break;
                }
                at = next;
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
            assert_eq!(session.counters().lost, 0, "no gap in the sequence");
            counter.store(session.counters().records, Ordering::Relaxed);
        }
    });
    Ok((addr, received))
}

/// One Node's agent.
struct Sender {
    runtime: Runtime,
    connection: Connection,
    exporter: Exporter,
    side: u32,
}

/// What makes its messages.
enum Exporter {
    Agent { session: Box<Session>, tails: Vec<EncodedTail> },
    Foreign(foreign::Exporter),
}

impl Sender {
    fn connect(aggregator: &Process, load: &Load, side: u32, senders: Senders, tls: &TlsClient) -> Result<Sender> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // The certificate is for this name.
        let address = Address::parse(&format!("localhost:{}", aggregator.addr.port()), senders.protocol())?;
        let connection = runtime.block_on(connect(&address, Some(tls))).context("the aggregator is not reached")?;
        let (domain, tails) = (0xa + side, load.tails(side));
        let exporter = match senders {
            Senders::Agents(_) => Exporter::Agent { session: Box::new(agent(domain)), tails },
            Senders::Others => Exporter::Foreign(foreign::Exporter::new(domain, &tails)),
        };
        Ok(Sender { runtime, connection, exporter, side })
    }

    fn send(&mut self, load: &Load, round: u32) -> Result<()> {
        let (order, at) = (load.order(round, self.side), (round, self.side));
        let sent = match &mut self.exporter {
            Exporter::Agent { session, tails } => messages(load, &order, at, tails, session),
            Exporter::Foreign(exporter) => exporter.messages(load, &order, at),
        };
        self.runtime.block_on(async {
            for part in sent.chunks(READ) {
                self.connection.send(part).await?;
            }
            self.connection.flush().await
        })?;
        Ok(())
    }
}
