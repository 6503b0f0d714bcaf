//! The aggregator as shipped before a modern ClickHouse: agents' IPFIX over TCP in, joined, rows over the native protocol out.
//!
//! Both halves of flows between Nodes, in an order that is shuffled anew each round, of thousands of Pods. Figures are CPU
//! time of the aggregator's process, in which everything from its first byte to its last is: a row has two records.
//! Arguments: `flows=200000 rounds=5 pods=5000 url=tcp|http compress=true|false`.

#[path = "../../../flow-aggregator/benches/aggregate/load.rs"]
mod load;
#[path = "../../../flow-aggregator/benches/aggregate/usage.rs"]
mod usage;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flow_common::ipfix::exporter::Session;
use flow_common::record::EncodedTail;
use interop::{Age, Aggregator, Certificates, ClickHouse};
use load::{Load, agent, messages};
use usage::{cpu, memory, until};

/// Flows whose records are written together.
const PART: u32 = 1_000;
/// A flow that goes on is exported so often.
const ACTIVE: Duration = Duration::from_secs(3);
const OCTETS: &str = "SELECT toString(sum(octetDeltaCount)) FROM flows";

fn main() -> Result<()> {
    let argument = |name: &str, default: &str| {
        let value = std::env::args().find_map(|text| text.strip_prefix(&format!("{name}=")).map(str::to_owned));
        value.unwrap_or_else(|| default.to_owned())
    };
    let (scheme, compress) = (argument("url", "tcp"), argument("compress", "true"));
    let load =
        Load { flows: argument("flows", "200000").parse()?, pods: argument("pods", "5000").parse()?, ended: false };
    let rounds = argument("rounds", "5").parse()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} flows, {} Pods, both halves, {rounds} rounds; {scheme}, compress {compress}",
        load.flows,
        load.pods * 2,
    )?;
    writeln!(out, "live flows:     {}", measure(&load, rounds, &scheme, &compress)?)?;
    writeln!(out, "all new, ended: {}", measure(&Load { ended: true, ..load }, rounds, &scheme, &compress)?)?;
    Ok(())
}

/// What all flows have sent when a round is over.
fn octets(load: &Load, round: u32) -> u64 {
    u64::from(load.flows) * u64::from(round) * 1_000
}

fn measure(load: &Load, rounds: u32, scheme: &str, compress: &str) -> Result<String> {
    let server = ClickHouse::start(Age::Modern, &Certificates::new()?)?;
    let url = format!("{scheme}://{}", server.addr(scheme));
    let settings = format!(
        "activeFlowRecordTimeout: {}s\n\
         clickHouse: {{enable: true, commitInterval: 1s, databaseURL: \"{url}\", compress: {compress}}}\n",
        ACTIVE.as_secs()
    );
    let aggregator = Aggregator::start(&settings, &[])?;
    until("the sink is open", || Ok(aggregator.sink("connected")? == 1))?;
    let mut agents = [Agent::new(&aggregator, load, 0)?, Agent::new(&aggregator, load, 1)?];
    let (before, begun) = (cpu(aggregator.id())?, Instant::now());
    for round in 1..=rounds {
        let orders = [0, 1].map(|side| load.order(round, side));
        // Both halves of most flows come within a second, as from Nodes whose clocks agree.
        for part in 0..load.flows.div_ceil(PART) as usize {
            for (agent, order) in agents.iter_mut().zip(&orders) {
                let flows = order.chunks(PART as usize).nth(part).unwrap_or_default();
                agent.send(load, flows, round)?;
            }
        }
        let octets = octets(load, round);
        until("every octet is there", || Ok(server.number(OCTETS)? == octets))?;
        if !load.ended {
            std::thread::sleep(ACTIVE);
        }
    }
    let (used, took) = (cpu(aggregator.id())? - before, begun.elapsed().as_secs_f64());
    let rows = server.number("SELECT toString(count()) FROM flows")?;
    let refused = aggregator.sink("dropped_total")? + aggregator.sink("failures_total")?;
    ensure!(refused == 0 && server.number(OCTETS)? == self::octets(load, rounds), "rows are dropped or doubled");
    let disk =
        server.number("SELECT toString(sum(bytes_on_disk)) FROM system.parts WHERE active AND table = 'flows'")?;
    Ok(format!(
        "{:.0} rows a CPU second ({:.2} us a row), {rows} rows in {took:.1} s, {} bytes a row on the disk, {} MiB resident at most",
        rows as f64 / used,
        used * 1e6 / rows as f64,
        disk / rows,
        memory(aggregator.id(), "VmHWM")? >> 20,
    ))
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
        let stream = TcpStream::connect(aggregator.addr)?;
        Ok(Agent { stream, session: agent(0xa + side), tails: load.tails(side), side })
    }

    /// Sends one record of each of these flows.
    fn send(&mut self, load: &Load, flows: &[u32], round: u32) -> Result<()> {
        let sent = messages(load, flows, (round, self.side), &self.tails, &mut self.session);
        Ok(self.stream.write_all(&sent)?)
    }
}
