//! The aggregator as shipped before a modern ClickHouse: agents' IPFIX over TCP in, joined, rows over the native protocol out.
//!
//! Both halves of flows between Nodes, in an order that is shuffled anew each round, of thousands of Pods. Figures are CPU
//! time of the aggregator's process, in which everything from its first byte to its last is: a row has two records.
//! Arguments: `flows=200000 rounds=5 pods=5000 url=tcp|http compress=true|false`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flow_common::ipfix::exporter::{STREAM_LIMIT, Session, Settings};
use flow_common::record::{
    Content, Cut, EncodedTail, EndReason, Extended, Family, FlowType, ForwardingStatus, Head, Tail, TcpState,
};
use interop::{Age, Certificates, ClickHouse, beside, free_port};

const PATIENCE: Duration = Duration::from_secs(300);
const BEGIN: u32 = 1_704_067_200;
/// Flows whose records are written together.
const PART: u32 = 1_000;
/// A flow that goes on is exported so often.
const ACTIVE: Duration = Duration::from_secs(3);
const OCTETS: &str = "SELECT toString(sum(octetDeltaCount)) FROM flows";

/// What agents send.
struct Load {
    flows: u32,
    rounds: u32,
    pods: u32,
    /// Every round has new flows, which end at once.
    ended: bool,
}

fn main() -> Result<()> {
    let argument = |name: &str, default: &str| {
        let value = std::env::args().find_map(|text| text.strip_prefix(&format!("{name}=")).map(str::to_owned));
        value.unwrap_or_else(|| default.to_owned())
    };
    let (scheme, compress) = (argument("url", "tcp"), argument("compress", "true"));
    let load = Load {
        flows: argument("flows", "200000").parse()?,
        rounds: argument("rounds", "5").parse()?,
        pods: argument("pods", "5000").parse()?,
        ended: false,
    };
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} flows, {} Pods, both halves, {} rounds; {scheme}, compress {compress}",
        load.flows,
        load.pods * 2,
        load.rounds
    )?;
    writeln!(out, "live flows:     {}", measure(&load, &scheme, &compress)?)?;
    writeln!(out, "all new, ended: {}", measure(&Load { ended: true, ..load }, &scheme, &compress)?)?;
    Ok(())
}

impl Load {
    /// Its flows in another order for each round and side.
    fn order(&self, round: u32, side: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.flows).collect();
        let mut state = u64::from(round * 2 + side + 77);
        for at in (1..order.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(at, (state % (at as u64 + 1)) as usize);
        }
        order
    }

    /// What all flows have sent when a round is over.
    fn octets(&self, round: u32) -> u64 {
        u64::from(self.flows) * u64::from(round) * 1_000
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn measure(load: &Load, scheme: &str, compress: &str) -> Result<String> {
    let server = ClickHouse::start(Age::Modern, &Certificates::new()?)?;
    let aggregator = Aggregator::start(&format!("{scheme}://{}", server.addr(scheme)), compress)?;
    let mut agents = [Agent::new(&aggregator, load, 0)?, Agent::new(&aggregator, load, 1)?];
    let (cpu, begun) = (aggregator.cpu()?, Instant::now());
    for round in 1..=load.rounds {
        let orders = [0, 1].map(|side| load.order(round, side));
        // Both halves of most flows come within a second, as from Nodes whose clocks agree.
        for part in 0..load.flows.div_ceil(PART) as usize {
            for (agent, order) in agents.iter_mut().zip(&orders) {
                let flows = order.chunks(PART as usize).nth(part).unwrap_or_default();
                agent.send(load, flows, round)?;
            }
        }
        let octets = load.octets(round);
        until("every octet is there", || Ok(server.number(OCTETS)? == octets))?;
        if !load.ended {
            std::thread::sleep(ACTIVE);
        }
    }
    let (cpu, took) = (aggregator.cpu()? - cpu, begun.elapsed().as_secs_f64());
    let rows = server.number("SELECT toString(count()) FROM flows")?;
    let refused = aggregator.metric("dropped_total")? + aggregator.metric("failures_total")?;
    ensure!(refused == 0 && server.number(OCTETS)? == load.octets(load.rounds), "rows are dropped or doubled");
    let disk =
        server.number("SELECT toString(sum(bytes_on_disk)) FROM system.parts WHERE active AND table = 'flows'")?;
    Ok(format!(
        "{:.0} rows a CPU second ({:.2} us a row), {rows} rows in {took:.1} s, {} bytes a row on the disk, {} MiB resident at most",
        rows as f64 / cpu,
        cpu * 1e6 / rows as f64,
        disk / rows,
        aggregator.peak()? >> 20,
    ))
}

/// The aggregator's process.
struct Aggregator {
    child: Child,
    listen: u16,
    admin: u16,
    _folder: tempfile::TempDir,
}

impl Aggregator {
    fn start(url: &str, compress: &str) -> Result<Aggregator> {
        let folder = tempfile::tempdir()?;
        let (listen, admin) = (free_port()?, free_port()?);
        let file = folder.path().join("flow-aggregator.conf");
        std::fs::write(
            &file,
            format!(
                "aggregatorTransportProtocol: tcp\nlistenAddr: \"127.0.0.1:{listen}\"\nadminAddr: \"127.0.0.1:{admin}\"\n\
                 activeFlowRecordTimeout: {}s\nclickHouse: {{enable: true, commitInterval: 1s, databaseURL: \"{url}\", compress: {compress}}}\n",
                ACTIVE.as_secs()
            ),
        )?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(beside("flow-aggregator")?);
        let child = command.args(["run", "--config"]).arg(&file).stdin(Stdio::null()).stderr(log).spawn()?;
        let aggregator = Aggregator { child, listen, admin, _folder: folder };
        until("the aggregator comes up", || Ok(aggregator.metric("connected").is_ok_and(|connected| connected == 1)))?;
        Ok(aggregator)
    }

    fn metric(&self, metric: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let name = format!("flow_aggregator_sink_{metric}{{sink=\"clickhouse\"}} ");
        Ok(answer.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| answer.clone())?.parse()?)
    }

    /// CPU seconds so far, of all its threads.
    fn cpu(&self) -> Result<f64> {
        let tasks = Path::new("/proc").join(self.child.id().to_string()).join("schedstat");
        // The process's own file counts its first thread alone.
        let threads = tasks.with_file_name("task");
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(threads)? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(nanoseconds as f64 / 1e9)
    }

    /// Bytes resident at most.
    fn peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }
}

impl Drop for Aggregator {
    fn drop(&mut self) {
        // Ended already, or to be ended by force.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One Node's agent.
struct Agent {
    stream: TcpStream,
    session: Session,
    tails: Vec<EncodedTail>,
    side: u32,
}

impl Agent {
    fn new(aggregator: &Aggregator, load: &Load, side: u32) -> Result<Agent> {
        let stream = TcpStream::connect(("127.0.0.1", aggregator.listen))?;
        let mut session = Session::new(Settings {
            domain: 0xa + side,
            content: Content::Agent,
            extended: true,
            accounting: false,
            message_limit: STREAM_LIMIT,
            template_resend: None,
        });
        session.begin(BEGIN);
        let state = if load.ended { TcpState::Closed } else { TcpState::Established };
        let tail = |pod: u32| {
            let names = match side {
                0 => Tail {
                    src_pod: format!("frontend-7d8f9c6b5-{pod:05}"),
                    src_namespace: "shop".into(),
                    src_node: "node-a".into(),
                    service_port: 80,
                    service: "shop/web:http".into(),
                    service_addr: [10, 96, 0, 10].into(),
                    ..Tail::default()
                },
                _ => Tail {
                    dst_pod: format!("backend-5c4d7b8f6-{pod:05}"),
                    dst_namespace: "shop".into(),
                    dst_node: "node-b".into(),
                    ..Tail::default()
                },
            };
            let tail = Tail { flow_type: FlowType::InterNode, tcp_state: state, ..names };
            tail.to_encoded(Family::V4, &mut Cut::default())
        };
        Ok(Agent { stream, session, tails: (0..load.pods).map(tail).collect(), side })
    }

    /// Sends one record of each of these flows.
    fn send(&mut self, load: &Load, flows: &[u32], round: u32) -> Result<()> {
        for flow in flows {
            let flow = if load.ended { flow + round * load.flows } else { *flow };
            let (head, extended) = self.record(load, flow, round);
            let tail = &self.tails[((flow >> (4 * self.side)) % load.pods) as usize];
            self.session.push(&head, tail, &extended)?;
        }
        self.session.finish();
        self.stream.write_all(self.session.bytes())?;
        self.session.clear();
        Ok(())
    }

    fn record(&self, load: &Load, flow: u32, round: u32) -> (Head, Extended) {
        let told = u64::from(if load.ended { 1 } else { round });
        let mut head = Head {
            start_seconds: BEGIN,
            end_seconds: BEGIN + 5 * round,
            end_reason: if load.ended { EndReason::End } else { EndReason::Active },
            src_port: 32_768 + (flow % 28_000) as u16,
            dst_port: 8080,
            protocol: 6,
            src_addr: [10, 10, ((flow / 28_000) >> 8) as u8, (flow / 28_000) as u8].into(),
            dst_addr: [10, 20, (flow >> 4) as u8 & 63, (flow & 15) as u8].into(),
            ..Head::default()
        };
        head.set_totals([10 * told, 1_000 * told, 8 * told, 5_000 * told]);
        head.set_deltas([10, 1_000, 8, 5_000]);
        let extended = Extended {
            start_milliseconds: u64::from(BEGIN) * 1_000 + 3,
            end_milliseconds: u64::from(BEGIN + 5 * round) * 1_000 + 7,
            tcp_flags: 0x1b,
            reverse_tcp_flags: 0x1b,
            flow_id: (u64::from(flow) * 2 + u64::from(self.side) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            forwarding_status: ForwardingStatus::Forwarded,
            ..Extended::default()
        };
        (head, extended)
    }
}
