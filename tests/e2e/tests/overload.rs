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
use lab::topology::{DNS, DROPPED_PORT, Family, Host, Node, Pod, TALK};
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

/// Beyond the ports that the lab gives to single clients.
fn flood(lab: &Lab, kind: Kind, to: SocketAddr) -> Result<()> {
    lab.ask(&client(), kind, SocketAddr::new(client().addr(Family::V4), 40_000), to).map(drop)
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
        eventually(EXPORTED / 6, || expect::all_hold(&done, &lab.truth()?, &product.joined().records()?))
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
            ours.map(|record| record.source_transport_port).filter(|port| *port >= 40_000).collect();
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
    is_survived(Kind::Flood { flows: 20_000 }, server(DNS.target))
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
