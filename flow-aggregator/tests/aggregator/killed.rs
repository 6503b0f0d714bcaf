//! kill -9 of the aggregator under load, with a collector of IPFIX: what is promised, and no more.
//!
//! Totals are exact from the agents' next reports on. Ended flows come again out of the agents' spools, so that each is
//! there at least once, and all its records agree. Of a flow that goes on, the sum of deltas lacks at most what a life
//! had heard and not yet delivered, and is never too much.

use super::ends::{Agent, LOOPBACK, PATIENCE};
use super::process::Process;
use bytes::BytesMut;
use flow_common::{
    ipfix::collector::{Batch, Limits, Session, TailHash},
    net::{Listener, Protocol, StreamListener},
    record::{EndReason, Extended, FlowRecord, FlowType, ForwardingStatus, Head, Tail},
};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::time::sleep;

const LIVES: usize = 20;
const STEPS: u32 = 4;
const ENDED_A_STEP: u32 = 50;
const LIVE: u32 = 50;
/// Numbers of flows that end; those that go on are below.
const ENDED: u32 = 1_000;
const BEGIN: u32 = 1_704_067_200;

/// A record as it arrived.
#[derive(Clone, Debug)]
struct Arrived {
    life: usize,
    total: u64,
    delta: u64,
    reason: EndReason,
    names: [String; 2],
}

/// By the flow's number.
type Received = Arc<Mutex<HashMap<u32, Vec<Arrived>>>>;

/// One Node's half of a flow's record.
fn half(number: u32, side: u32, total: u64, delta: u64, time: u32) -> FlowRecord {
    let reason = if number < ENDED { EndReason::Active } else { EndReason::End };
    let mut head = Head {
        start_seconds: BEGIN,
        end_seconds: BEGIN + time,
        end_reason: reason,
        src_port: number as u16,
        dst_port: 8080,
        protocol: 6,
        src_addr: [10, 0, 1, 5].into(),
        dst_addr: [10, 0, 2, 7].into(),
        ..Head::default()
    };
    head.set_totals([total, total * 100, total, total * 50]);
    head.set_deltas([delta, delta * 100, delta, delta * 50]);
    let names = Tail { flow_type: FlowType::InterNode, ..Tail::default() };
    let tail = match side {
        0 => Tail { src_pod: "client".into(), ..names },
        _ => Tail { dst_pod: "server".into(), ..names },
    };
    let extended = Extended {
        flow_id: u64::from(number) * 2 + u64::from(side) + 1,
        forwarding_status: ForwardingStatus::Forwarded,
        ..Extended::default()
    };
    FlowRecord { head, tail, extended }
}

/// Takes one connection after the other: each is a life of the aggregator.
async fn collect(listener: StreamListener, received: Received) {
    for life in 0.. {
        let Ok(mut incoming) = listener.accept().await.unwrap().complete().await else { continue };
        let mut session = Session::new(Limits::STREAM, TailHash::new(1));
        let (mut buffer, mut at, mut batch) = (BytesMut::with_capacity(1 << 20), 0, Batch::new(1_000));
        loop {
            buffer.reserve(64 * 1024);
            // Killed, it leaves as it may.
            let Ok(1..) = incoming.fill(&mut buffer).await else { break };
            while let Ok(next) = session.decode(&buffer, at, 0, &mut batch)
                && next > at
            {
                take(&batch, &buffer, life, &mut received.lock().unwrap());
                batch.clear();
                at = next;
            }
        }
    }
}

fn take(batch: &Batch, buffer: &[u8], life: usize, received: &mut HashMap<u32, Vec<Arrived>>) {
    for record in batch.records() {
        let tail = Tail::decode(record.head.family(), batch.tail(record, buffer)).unwrap();
        received.entry(record.head.src_port.into()).or_default().push(Arrived {
            life,
            total: record.head.packet_total,
            delta: record.head.packet_delta,
            reason: record.head.end_reason,
            names: [tail.src_pod, tail.dst_pod],
        });
    }
}

/// Both Nodes' agents, as far as they outlive the aggregator.
struct Nodes {
    time: u32,
    ended: u32,
    /// Of every flow that goes on.
    total: u64,
}

impl Nodes {
    /// A record of each flow that goes on, and of some that have ended.
    async fn report(&mut self, agents: &mut [Agent; 2]) {
        self.time += 1;
        self.total += 10;
        let ended = self.ended..self.ended + ENDED_A_STEP;
        self.ended = ended.end;
        for (side, agent) in (0..).zip(agents) {
            let live = (1..=LIVE).map(|number| half(number, side, self.total, 10, self.time));
            let over = ended.clone().map(|number| half(number, side, number.into(), number.into(), self.time));
            agent.send(&live.chain(over).collect::<Vec<_>>()).await;
        }
    }

    /// New connections; the spools' ended flows come again.
    async fn connect(&self, aggregator: &Process) -> [Agent; 2] {
        let mut agents = [
            Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await,
            Agent::connect(aggregator.addr, 0xb, Protocol::Tcp, None).await,
        ];
        for (side, agent) in (0..).zip(&mut agents) {
            let spool = (ENDED..self.ended).map(|number| half(number, side, number.into(), number.into(), self.time));
            agent.send(&spool.collect::<Vec<_>>()).await;
        }
        agents
    }
}

/// A small generator, so that what failed can be repeated.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_killed_twenty_times_keeps_totals_exact_and_every_ended_flow() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::bind(LOOPBACK.parse().unwrap(), Protocol::Tcp, None).await.unwrap();
    let addr = listener.local().unwrap();
    let Listener::Stream(listener) = listener else { panic!("asked for a stream") };
    let received = Received::default();
    let collecting = tokio::spawn(collect(listener, received.clone()));
    let settings = format!("activeFlowRecordTimeout: 1s\nflowCollector: {{enable: true, address: \"{addr}\"}}\n");
    let start = |dir: &Path| Process::start(&dir.join("flow-aggregator.conf"), &settings);
    let (mut nodes, mut seed) = (Nodes { time: 0, ended: ENDED, total: 0 }, 521_288_629);
    // What the live flows' totals were at the end of each life.
    let mut heard = Vec::new();
    for _ in 0..LIVES {
        let aggregator = start(dir.path());
        aggregator.until("sink_connected{sink=\"ipfix\"}", 1);
        let mut agents = nodes.connect(&aggregator).await;
        for _ in 0..STEPS {
            nodes.report(&mut agents).await;
            sleep(Duration::from_millis(draw(&mut seed, 200))).await;
        }
        heard.push(nodes.total);
        // Its end is a kill -9.
        drop(aggregator);
    }
    let aggregator = start(dir.path());
    aggregator.until("sink_connected{sink=\"ipfix\"}", 1);
    let mut agents = nodes.connect(&aggregator).await;
    nodes.report(&mut agents).await;
    heard.push(nodes.total);

    let flows = |range: std::ops::Range<u32>| -> Vec<Vec<Arrived>> {
        let received = received.lock().unwrap();
        range.map(|number| received.get(&number).cloned().unwrap_or_default()).collect()
    };
    let last = |records: &Vec<Arrived>| records.last().map_or(0, |record| record.total);
    let begun = Instant::now();
    while flows(1..LIVE + 1).iter().any(|records| last(records) != nodes.total)
        || flows(ENDED..nodes.ended).iter().any(Vec::is_empty)
    {
        assert!(begun.elapsed() < PATIENCE, "totals or ended flows are missing\n{}", aggregator.log());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(aggregator.stop().success());
    collecting.abort();
    ended_flows_agree(ENDED, &flows(ENDED..nodes.ended));
    deltas_lack_what_was_heard_and_not_delivered(&flows(1..LIVE + 1), &heard);
}

fn ended_flows_agree(first: u32, flows: &[Vec<Arrived>]) {
    let mut repeated = 0;
    for (number, records) in (u64::from(first)..).zip(flows) {
        // Where a life was killed between both halves the next one has both.
        let whole = |record: &&Arrived| record.names == ["client", "server"];
        assert!(records.iter().any(|record| whole(&record)), "{number}: {records:?}");
        assert!(records.iter().all(|record| record.total == number && record.reason == EndReason::End), "{records:?}");
        assert_eq!(records.iter().map(|record| record.delta).max(), Some(number), "{records:?}");
        repeated += records.len() - 1;
    }
    assert!(repeated > 0, "nothing came twice, so nothing was tried");
}

fn deltas_lack_what_was_heard_and_not_delivered(flows: &[Vec<Arrived>], heard: &[u64]) {
    for records in flows {
        let mut missing = 0;
        let mut before = 0;
        for (life, at_end) in heard.iter().enumerate() {
            let of_life = records.iter().filter(|record| record.life == life);
            missing += at_end - of_life.map(|record| record.total).max().unwrap_or(before);
            before = *at_end;
        }
        let total = records.last().map_or(0, |record| record.total);
        let deltas: u64 = records.iter().map(|record| record.delta).sum();
        assert!(deltas <= total && deltas + missing >= total, "{deltas} of {total}, {missing} may lack: {records:?}");
    }
}
