//! The aggregate in memory: agents' messages in, joined IPFIX out, on one thread and in simulated time.
//!
//! Flows come in an order that is shuffled anew each round, of thousands of Pods, with extended elements; agents send
//! both halves. Figures are CPU time of the process. Arguments: `flows=200000 rounds=5 pods=5000`.

#[path = "aggregate/load.rs"]
mod load;

use flow_aggregator::{
    aggregate::{Aggregate, Counts, Settings},
    collector::SessionId,
};
use flow_common::{
    ipfix::exporter::{self, Session},
    record::{Content, EncodedTail},
};
use load::{BEGIN, Load};
use std::io::Write;

const READ: usize = 256 * 1024;

fn main() -> std::io::Result<()> {
    let argument = |name: &str, default: u32| {
        let value = std::env::args().find_map(|text| text.strip_prefix(&format!("{name}=")).map(str::to_owned));
        value.and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let load = Load { flows: argument("flows", 200_000), pods: argument("pods", 5_000), ended: false };
    let rounds = argument("rounds", 5);
    let mut out = std::io::stdout();
    writeln!(out, "{} flows, {} Pods, both halves, {rounds} rounds", load.flows, load.pods * 2)?;
    let live = measure(&load, rounds);
    writeln!(out, "live flows:      {live}")?;
    let churn = measure(&Load { flows: load.flows / 2, ended: true, ..load }, rounds.min(4));
    writeln!(out, "all new, ended:  {churn}")
}

struct Figures {
    first: f64,
    later: f64,
    bytes_a_flow: f64,
    counts: Counts,
    sent: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} ns a record in the first round, {:.0} later = {:.2} M/s; {:.0} B a flow; {} records in, {} joined out",
            self.first,
            self.later,
            1000.0 / self.later,
            self.bytes_a_flow,
            self.counts.received,
            self.sent
        )
    }
}

fn measure(load: &Load, rounds: u32) -> Figures {
    let settings = Settings {
        active: 60,
        inactive: 90,
        correlation: 15,
        tombstone: 300,
        max_flows: 1_048_576,
        max_tombstones: 1_000_000,
        labels: false,
        proxy: false,
    };
    let mut aggregate = Aggregate::new(&settings);
    let sides = [SessionId::next(), SessionId::next()];
    for (node, session) in sides.iter().enumerate() {
        aggregate.open(*session, [192, 0, 2, node as u8 + 1].into(), false);
    }
    let mut agents = [agent(0xa), agent(0xb)];
    let mut collector = Session::new(exporter::Settings { domain: 1, content: Content::Joined, ..of(1) });
    let tails = [load.tails(0), load.tails(1)];
    let (mut spent, mut grown) = (Vec::new(), 0);
    for round in 1..=rounds {
        let sent = [0, 1].map(|side| messages(load, round, side as u32, &tails[side], &mut agents[side]));
        let (before, begin, now) = (resident(), cpu(), round * 5);
        while aggregate.expired(now, 2_048) {
            deliver(&mut aggregate, &mut collector);
        }
        let mut at = [0, 0];
        while (0..2).any(|side| at[side] < sent[side].len()) {
            for side in 0..2 {
                let end = whole(&sent[side], at[side]);
                aggregate.feed(sides[side], &sent[side][at[side]..end], now).expect("good messages");
                at[side] = end;
                deliver(&mut aggregate, &mut collector);
            }
        }
        spent.push(cpu() - begin);
        if round == 1 {
            grown = resident().saturating_sub(before);
        }
    }
    let records = f64::from(load.flows) * 2.0;
    Figures {
        first: spent[0] * 1e9 / records,
        later: spent[1..].iter().sum::<f64>() * 1e9 / records / (spent.len() - 1) as f64,
        bytes_a_flow: grown as f64 / f64::from(load.flows),
        counts: aggregate.counts(),
        sent: collector.counters().records,
    }
}

/// As the IPFIX sink does, but for the socket.
fn deliver(aggregate: &mut Aggregate, collector: &mut Session) {
    if aggregate.batched() == 0 {
        return;
    }
    collector.begin(BEGIN);
    for joined in aggregate.take_batch().iter() {
        collector.push_encoded(joined.family, joined.bytes(true)).expect("it fits");
    }
    collector.finish();
    std::hint::black_box(collector.bytes());
    collector.clear();
}

fn of(domain: u32) -> exporter::Settings {
    exporter::Settings {
        domain,
        content: Content::Agent,
        extended: true,
        accounting: false,
        message_limit: exporter::STREAM_LIMIT,
        template_resend: None,
    }
}

fn agent(domain: u32) -> Session {
    let mut session = Session::new(of(domain));
    session.begin(BEGIN);
    session
}

/// Where the whole messages of one read end.
fn whole(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() {
        let length = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        if at + length - from > READ {
            break;
        }
        at += length;
    }
    at
}

/// One side's messages of one round.
fn messages(load: &Load, round: u32, side: u32, tails: &[EncodedTail], agent: &mut Session) -> Vec<u8> {
    let mut sent = Vec::new();
    for flow in load.order(round, side) {
        let (head, tail, extended) = load.record(flow, round, side);
        agent.push(&head, &tails[tail], &extended).expect("it fits");
        if agent.len() > READ {
            agent.finish();
            sent.extend_from_slice(agent.bytes());
            agent.clear();
        }
    }
    agent.finish();
    sent.extend_from_slice(agent.bytes());
    agent.clear();
    sent
}

/// Seconds of CPU time of this process.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Bytes resident.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * rustix::param::page_size()
}
