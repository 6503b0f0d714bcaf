//! The aggregate in memory: agents' messages in, joined IPFIX out, on one thread and in simulated time.
//!
//! Gives what a record costs in the first round and in later ones, and by how much resident memory grew in each.

use crate::load::{BEGIN, Load, READ, agent, messages};
use flow_aggregator::{
    aggregate::{Aggregate, Settings},
    input::SessionId,
};
use flow_common::{
    ipfix::exporter::{self, STREAM_LIMIT, Session},
    record::Content,
};

pub(crate) struct Figures {
    pub(crate) first_ns: f64,
    pub(crate) later_ns: f64,
    /// Bytes that the first round took, and all later ones together.
    pub(crate) grown: [usize; 2],
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

pub(crate) fn measure(load: &Load, rounds: u32) -> Figures {
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
    let mut collector = Session::new(exporter::Settings {
        domain: 1,
        content: Content::Joined,
        extended: true,
        accounting: false,
        message_limit: STREAM_LIMIT,
        template_resend: None,
    });
    let tails = [load.tails(0), load.tails(1)];
    let (mut spent, mut grown) = (Vec::new(), [0; 2]);
    for round in 1..=rounds {
        let sent = [0, 1].map(|side| {
            let order = load.order(round, side as u32);
            messages(load, &order, (round, side as u32), &tails[side], &mut agents[side])
        });
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
        grown[usize::from(round > 1)] += resident().saturating_sub(before);
    }
    let records = f64::from(load.flows) * 2.0;
    Figures {
        first_ns: spent[0] * 1e9 / records,
        later_ns: spent[1..].iter().sum::<f64>() * 1e9 / records / (spent.len() - 1) as f64,
        grown,
        received: aggregate.counts().received,
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
