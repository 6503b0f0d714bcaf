//! More than the agent was made for, and an agent that does not get to run: what is lost is counted to the packet, memory stays bounded,
//! and afterwards all is right again. Each test has a lab of its own.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{Case, Item, Way};
use lab::expect;
use lab::product::{Product, Settings};
use lab::topology::{DNS, DROPPED_PORT, Family, Host, Node, Pod, Protocol, TALK};
use lab::traffic::{Kind, Session};
use lab::wait::eventually;

const EXPORTED: Duration = Duration::from_secs(60);

/// One flood at a time: nft's sets take their counters from a small reserve of per-CPU memory, which a flood in another lab empties.
static FLOODS: Mutex<()> = Mutex::new(());

/// With few flows in the table; a debug build's.
const MEMORY: u64 = 96 << 20;

fn client() -> Host {
    Host::Pod(Pod::client(Node::A))
}

fn server(port: u16) -> SocketAddr {
    SocketAddr::new(Pod::server(Node::B).addr(Family::V4), port)
}

/// Of the floods' clients; beyond the ports that the lab gives to single clients.
const FIRST_PORT: u16 = 40_000;

#[expect(clippy::print_stdout, reason = "how fast it was depends on the machine")]
fn flood(lab: &Lab, kind: Kind, to: SocketAddr) -> Result<()> {
    let report = lab.ask(&client(), kind, SocketAddr::new(client().addr(Family::V4), FIRST_PORT), to)?;
    println!("{kind:?} took {} ms", report.ended_ms - report.started_ms);
    Ok(())
}

/// What is told of ordinary traffic is right.
fn all_is_right_again(lab: &Lab, product: &Product<'_>) -> Result<()> {
    let ways = [Way::AcrossNodes, Way::ServiceRemote];
    let cases = ways.into_iter().flat_map(|way| [Item::ShortHttp, Item::Udp].map(|item| (item, way)));
    let again = || -> Result<()> {
        // Flows with a packet within the last 2 s do not make room for these.
        std::thread::sleep(Duration::from_secs(3));
        let done = { cases.clone() }.map(|(item, way)| Case { item, way, family: Family::V4 }.run(lab));
        let done = done.collect::<Result<Vec<_>>>()?;
        eventually(EXPORTED / 6, || {
            expect::all_hold(&done, &lab.truth()?, &product.joined().records()?, product.missed_drops()?)
        })
    };
    eventually(EXPORTED, again).map_err(|error| product.with_logs(error))?;
    eventually(EXPORTED, || product.adds_up()).map_err(|error| product.with_logs(error))?;
    for node in Node::ALL {
        let memory = product.agent_memory(node)?;
        ensure!(memory < MEMORY, "{} had {} MiB", node.name(), memory >> 20);
    }
    Ok(())
}

fn is_exact(lab: &Lab, product: &Product<'_>, session: &Session) -> Result<()> {
    let report = session.report();
    eventually(EXPORTED, || {
        let expected = lab.truth()?.both_ways(&client(), report.direction())?;
        let records = product.joined().of_client(report.protocol, report.from)?;
        let last = records.last().context("no joined flow")?;
        ensure!(last.totals() == expected, "{:?}, nft counted {expected:?}", last.totals());
        Ok(())
    })
    .map_err(|error| product.with_logs(error))
}

#[test]
fn a_million_packets_pass_while_the_agent_is_stopped() -> Result<()> {
    const EXCHANGES: u32 = 500_000;
    let _alone = FLOODS.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings { agent: "ringBytes: 65536\n".to_owned(), ..Settings::default() })?;
    let open = |port, kind| lab.open(&client(), kind, lab.client(&client(), Family::V4, Node::B), server(port));
    let echo = |protocol| Kind::Echo { protocol, exchanges: 2, bytes: 64 };
    let (mut talk, mut dns) = (open(TALK.target, echo(TALK.protocol))?, open(DNS.target, echo(DNS.protocol))?);
    is_exact(&lab, &product, &dns)?;

    let began = std::time::Instant::now();
    product.hold_agent(Node::A, true)?;
    dns.exchange(EXCHANGES)?;
    talk.exchange(10)?;
    // As many new flows as the ring has room for, and as many more.
    flood(&lab, Kind::Flood { flows: 700 }, server(DNS.target))?;
    std::thread::sleep(Duration::from_secs(10).saturating_sub(began.elapsed()));
    product.hold_agent(Node::A, false)?;

    for session in [&talk, &dns] {
        is_exact(&lab, &product, session)?;
    }
    let lost = product.facts(Node::A)?.interfaces.iter().map(|it| it.events_lost[0]).sum::<u64>();
    ensure!(lost > 0, "no event found the ring full");
    let told = || {
        let records = product.joined().records()?;
        let ours =
            records.iter().filter(|it| it.destination_transport_port == DNS.target && it.packet_total_count == 1);
        let mut ports: Vec<u16> =
            ours.map(|record| record.source_transport_port).filter(|port| *port >= FIRST_PORT).collect();
        ports.sort_unstable();
        ports.dedup();
        ensure!(ports.len() == 700, "{} of 700 flows are told of", ports.len());
        Ok(())
    };
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))?;
    all_is_right_again(&lab, &product)
}

#[test]
fn a_flood_of_syns_into_small_maps_is_counted() -> Result<()> {
    is_survived(Kind::Syns { flows: 20_000 }, server(DROPPED_PORT))
}

#[test]
fn a_flood_of_datagrams_into_small_maps_is_counted() -> Result<()> {
    is_survived(Kind::Datagrams { flows: 20_000 }, server(DNS.target))
}

/// A flood into a map, rings and a spool that are all too small, with the collector away at first.
fn is_survived(kind: Kind, to: SocketAddr) -> Result<()> {
    let _alone = FLOODS.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new()?;
    let small = "maxFlows: 1024\nringBytes: 4096\nspoolRecords: 64\n".to_owned();
    let product = Product::start(&lab, Settings { agent: small, ..Settings::default() })?;
    product.kill_aggregator()?;
    flood(&lab, kind, to)?;
    eventually(EXPORTED, || {
        let facts = product.facts(Node::A)?;
        let full = facts.interfaces.iter().flat_map(|it| &it.lost).filter(|loss| loss.reason == "map_full");
        let full: u64 = full.map(|loss| loss.tally.packets).sum();
        ensure!(full > 0 || facts.flows.evicted > 0, "20,000 flows found room in a map of 1,024: {facts:?}");
        ensure!(facts.export.lost_flows > 0, "20,000 ended flows found room in a spool of 64");
        Ok(())
    })
    .map_err(|error| product.with_logs(error))?;
    product.start_aggregator()?;
    all_is_right_again(&lab, &product)
}

/// The limit on connections in connection tracking, which is the whole machine's; as it was when this goes.
struct Limit(String);

impl Limit {
    const FILE: &'static str = "/proc/sys/net/netfilter/nf_conntrack_max";

    fn set(limit: u32) -> Result<Self> {
        let before = std::fs::read_to_string(Self::FILE)?;
        std::fs::write(Self::FILE, limit.to_string())?;
        Ok(Self(before))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // The machine goes with the tests.
        let _ = std::fs::write(Self::FILE, &self.0);
    }
}

/// Only where the machine is the tests' own.
#[test]
#[ignore = "sets a limit of the whole machine"]
fn a_full_table_of_connection_tracking_hides_no_packet() -> Result<()> {
    const FLOWS: u32 = 1_000;
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings::default())?;
    let limit = Limit::set(200)?;
    flood(&lab, Kind::Datagrams { flows: FLOWS }, server(DNS.target))?;
    // As long as it is: connections that nobody answers go after 30 s.
    let screen = product.agent_cli(Node::A, &["doctor"])?;
    ensure!(screen.contains("nf_conntrack_max"), "doctor does not see that the table is full: {screen}");
    // Each was counted at its Pod, wherever it came to.
    eventually(EXPORTED, || {
        let records = product.joined().records()?;
        let mut sent = std::collections::HashMap::new();
        for record in records.iter().filter(|it| it.source == client().addr(Family::V4) && it.is(Protocol::Udp)) {
            if record.source_transport_port >= FIRST_PORT {
                sent.insert(record.source_transport_port, record.packet_total_count);
            }
        }
        ensure!(sent.len() == FLOWS as usize, "{} of {FLOWS} flows are told of", sent.len());
        ensure!(sent.values().all(|packets| *packets == 1), "more than a packet was told of");
        Ok(())
    })
    .map_err(|error| product.with_logs(error))?;
    let dropped = product.agent_cli(Node::A, &["drops"])?;
    ensure!(dropped.contains("NETFILTER_DROP") || dropped.contains("nf_hook_slow"), "no drop is told of: {dropped}");
    drop(limit);
    all_is_right_again(&lab, &product)?;
    let (status, report) = product.agent_says(Node::A, &["verify"])?;
    ensure!(status == Some(0), "unexplained: {report}");
    Ok(())
}
