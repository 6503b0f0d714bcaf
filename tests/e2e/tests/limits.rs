//! Full maps, rings and spools, and malformed IPFIX: what does not fit is counted, and nothing else is lost by it. Each
//! test has a lab of its own.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{Case, Done, Item, Way};
use lab::expect;
use lab::product::{Product, Settings, Transport};
use lab::topology::{DNS, FAMILIES, Family, Host, Node, Pod, collector};
use lab::traffic::Kind;
use lab::wait::eventually;

const EXPORTED: Duration = Duration::from_secs(60);

/// Held alone by whoever floods: nft's sets take their counters from a small reserve of per-CPU memory, which a flood in another lab empties,
/// and then nft counts nothing.
static FLOODS: RwLock<()> = RwLock::new(());

/// A UDP question and answer from each of so many ports of node-a's client to node-b's server.
fn flood(lab: &Lab, flows: u32) -> Result<()> {
    let client = Host::Pod(Pod::client(Node::A));
    // Beyond the ports that the lab gives to single clients.
    let from = SocketAddr::new(client.addr(Family::V4), 40_000);
    let to = SocketAddr::new(Pod::server(Node::B).addr(Family::V4), DNS.target);
    let report = lab.ask(&client, Kind::Flood { flows }, from, to)?;
    ensure!(report.exchanges == flows, "{report:?}");
    Ok(())
}

fn cases(lab: &Lab, items: &[Item]) -> Result<Vec<Done>> {
    let all = items.iter().flat_map(|item| [Way::AcrossNodes, Way::ServiceRemote].map(|way| (*item, way)));
    all.filter(|(item, way)| item.goes(*way))
        .flat_map(|(item, way)| FAMILIES.map(|family| Case { item, way, family }))
        .map(|case| case.run(lab))
        .collect()
}

fn are_told(lab: &Lab, product: &Product<'_>, done: &[Done]) -> Result<()> {
    let told = || expect::all_hold(done, &lab.truth()?, &product.joined().records()?, product.missed_drops()?);
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))
}

#[test]
fn a_full_map_counts_what_it_has_no_room_for() -> Result<()> {
    let _alone = FLOODS.write().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings { agent: "maxFlows: 1024\n".to_owned(), ..Settings::default() })?;
    let before = cases(&lab, &[Item::ShortHttp, Item::Udp])?;
    flood(&lab, 4_000)?;
    eventually(EXPORTED, || {
        let facts = product.facts(Node::A)?;
        let lost = |it: &lab::product::Interface| it.lost.iter().any(|loss| loss.tally.packets > 0);
        let pressed = facts.flows.evicted > 0 || facts.interfaces.iter().any(lost);
        ensure!(pressed, "4,000 flows found room in a map of 1,024: {facts:?}");
        Ok(())
    })
    .map_err(|error| product.with_logs(error))?;
    eventually(EXPORTED, || product.adds_up()).map_err(|error| product.with_logs(error))?;
    are_told(&lab, &product, &before)
}

#[test]
fn a_full_ring_hides_no_flow() -> Result<()> {
    let _alone = FLOODS.write().unwrap_or_else(PoisonError::into_inner);
    const FLOWS: u32 = 3_000;
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings { agent: "ringBytes: 4096\n".to_owned(), ..Settings::default() })?;
    flood(&lab, FLOWS)?;
    let client = Pod::client(Node::A).addr(Family::V4);
    eventually(EXPORTED, || {
        let records = product.joined().records()?;
        let mut ports: Vec<u16> = records
            .iter()
            .filter(|record| record.source == client && record.destination_transport_port == DNS.target)
            .filter(|record| record.totals().iter().all(|count| count.packets == 1))
            .map(|record| record.source_transport_port)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ensure!(ports.len() as u32 == FLOWS, "{} of {FLOWS} flows are told of", ports.len());
        product.adds_up()
    })
    .map_err(|error| product.with_logs(error))
}

#[test]
fn a_full_spool_counts_what_it_loses_and_keeps_the_rest() -> Result<()> {
    let _together = FLOODS.read().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings { agent: "spoolRecords: 8\n".to_owned(), ..Settings::default() })?;
    product.kill_aggregator()?;
    let early = cases(&lab, &[Item::ShortHttp, Item::ShortHttp, Item::ShortHttp, Item::ShortHttp])?;
    eventually(EXPORTED, || {
        let export = product.facts(Node::A)?.export;
        ensure!(export.lost_flows > 0 && export.unsent <= 8, "{} ended flows: {export:?}", early.len());
        Ok(())
    })
    .map_err(|error| product.with_logs(error))?;
    product.start_aggregator()?;
    let late = cases(&lab, &[Item::ShortHttp])?;
    are_told(&lab, &product, &late)
}

#[test]
fn malformed_messages_disturb_nobody() -> Result<()> {
    let _together = FLOODS.read().unwrap_or_else(PoisonError::into_inner);
    for transport in [Transport::Tls, Transport::Tcp, Transport::Udp] {
        let lab = Lab::new()?;
        let product = Product::start(&lab, Settings { transport, ..Settings::default() })?;
        let mut done = cases(&lab, &[Item::ShortHttp, Item::Udp])?;
        let aggregator = SocketAddr::new(collector(Family::V4), 4739);
        for message in malformed() {
            lab.namespace(&Host::External)?.within(|| send(transport, aggregator, &message))??;
        }
        done.extend(cases(&lab, &[Item::KeptAliveHttp, Item::Ping])?);
        product.all_run()?;
        are_told(&lab, &product, &done).with_context(|| format!("{transport:?}"))?;
        let metrics = product.aggregator_metrics()?;
        let counted = metrics.iter().any(|(name, value)| *value > 0.0 && name.contains("malformed"))
            || metrics.iter().any(|(name, value)| *value > 0.0 && name.contains("refused"));
        ensure!(counted, "{transport:?}: nothing counts the malformed messages: {metrics:#?}");
    }
    Ok(())
}

/// The other end may close at the first message: that is its right.
fn send(transport: Transport, to: SocketAddr, message: &[u8]) -> std::io::Result<()> {
    if transport == Transport::Udp {
        UdpSocket::bind("0.0.0.0:0")?.send_to(message, to)?;
        return Ok(());
    }
    let mut stream = TcpStream::connect(to)?;
    let _ = stream.write_all(message);
    Ok(())
}

/// Faults of every sort: of the header, of sets, of templates, of lengths, and noise.
fn malformed() -> Vec<Vec<u8>> {
    let header = |length: u16| [&[0, 10][..], &length.to_be_bytes(), &[0; 12]].concat();
    let whole = |body: &[u8]| [header(16 + body.len() as u16), body.to_vec()].concat();
    vec![
        Vec::new(),
        vec![0],
        header(15),
        header(65_535),
        [&[0, 9][..], &[0, 16], &[0; 12]].concat(),
        whole(&[0, 2, 0, 3]),
        whole(&[0, 2, 0xff, 0xff]),
        whole(&[0, 2, 0, 12, 1, 0, 0xff, 0xff, 0, 8, 0, 4]),
        whole(&[0, 2, 0, 8, 0, 5, 0, 1]),
        whole(&[1, 0, 0, 8, 1, 2, 3, 4]),
        whole(&[0, 3, 0, 10, 1, 1, 0, 1, 0, 9]),
        whole(&[0, 2, 0, 12, 1, 0, 0, 1, 0, 8, 0xff, 0xfe]),
        (0..2_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
    ]
}
