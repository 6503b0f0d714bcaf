//! The product on every kind of traffic, over every way, in both families: the joined record's packets and bytes are
//! nft's to the packet, its deltas add up to its totals, and it says who spoke with whom. One lab for all tests.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::Lab;
use lab::cases::{self, Case, Item};
use lab::expect;
use lab::joined::{Record, listed, sum_of_deltas};
use lab::product::{Product, Settings};
use lab::topology::{FAMILIES, Family, Host, Node, Pod, Protocol, TALK};
use lab::traffic::{Kind, now_ms};
use lab::wait::eventually;

static LAB: LazyLock<Lab> = LazyLock::new(|| Lab::new().unwrap_or_else(|error| panic!("no lab: {error:#}")));
static PRODUCT: LazyLock<Product<'static>> =
    LazyLock::new(|| Product::start(&LAB, Settings::default()).unwrap_or_else(|error| panic!("{error:#}")));

/// Beyond the agents' idle time-out and the aggregator's wait for another half, with room for a busy machine.
const EXPORTED: Duration = Duration::from_secs(30);

/// The item over every way, then its records against the truth.
fn is_told_exactly(item: Item) -> Result<()> {
    let product = &*PRODUCT;
    let done = cases::run(&LAB, Case::of(item))?;
    let told = || expect::all_hold(&done, &LAB.truth()?, &product.joined().records()?, product.missed_drops()?);
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))
}

#[test]
fn short_http() -> Result<()> {
    is_told_exactly(Item::ShortHttp)
}

#[test]
fn kept_alive_http() -> Result<()> {
    is_told_exactly(Item::KeptAliveHttp)
}

#[test]
fn bulk_transfer_in_segments_larger_than_packets() -> Result<()> {
    is_told_exactly(Item::Bulk)
}

#[test]
fn udp_questions_and_answers() -> Result<()> {
    is_told_exactly(Item::Udp)
}

#[test]
fn ping() -> Result<()> {
    is_told_exactly(Item::Ping)
}

#[test]
fn fragments() -> Result<()> {
    is_told_exactly(Item::Fragments)
}

#[test]
fn sctp() -> Result<()> {
    match Item::Sctp.skipped_because() {
        Some(reason) => skip("SCTP", reason),
        None => is_told_exactly(Item::Sctp),
    }
}

#[expect(clippy::print_stdout, clippy::unnecessary_wraps, reason = "a test that is skipped says so")]
fn skip(what: &str, reason: &str) -> Result<()> {
    println!("skipped: {what}: {reason}");
    Ok(())
}

#[test]
fn refused_connections() -> Result<()> {
    is_told_exactly(Item::Refused)
}

#[test]
fn connections_that_rules_drop() -> Result<()> {
    is_told_exactly(Item::Dropped)
}

#[test]
fn a_connection_silent_for_40_seconds_is_the_same_flow() -> Result<()> {
    let product = &*PRODUCT;
    let host = Host::Pod(Pod::third(Node::A));
    let mut sessions = Vec::new();
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let from = LAB.client(&host, family, Node::B);
            let port = if protocol == Protocol::Tcp { TALK } else { lab::topology::DNS };
            let to = std::net::SocketAddr::new(Pod::server(Node::B).addr(family), port.target);
            sessions.push(LAB.open(&host, Kind::Echo { protocol, exchanges: 3, bytes: 50 }, from, to)?);
        }
    }
    let began = now_ms();
    // Conntrack keeps UDP for 30 s; 120 s if it still goes on 2 s after its beginning.
    std::thread::sleep(Duration::from_millis(2_500));
    for session in &mut sessions {
        session.exchange(1)?;
    }
    // The pause itself is the claim; the other tests run meanwhile.
    std::thread::sleep(Duration::from_secs(40));
    for session in &mut sessions {
        session.exchange(4)?;
    }
    for session in sessions {
        let report = session.close()?;
        eventually(EXPORTED, || {
            let records = product.joined().of_client(report.protocol, report.from)?;
            let expected = LAB.truth()?.both_ways(&host, report.direction())?;
            let last = records.last().ok_or_else(|| anyhow::anyhow!("no joined flow of {report:?}"))?;
            ensure!(last.totals() == expected, "{:?}, nft counted {expected:?}", last.totals());
            ensure!(sum_of_deltas(&records) == expected, "deltas {:?}, {expected:?}", sum_of_deltas(&records));
            ensure!(records.iter().all(|record| record.flow_id == last.flow_id), "several flows: {}", listed(&records));
            ensure!(last.flow_start_milliseconds <= began, "began at {}", last.flow_start_milliseconds);
            ensure!(last.flow_end_milliseconds >= began + 39_000, "ended at {}", last.flow_end_milliseconds);
            Ok(())
        })
        .map_err(|error| product.with_logs(error))?;
    }
    Ok(())
}

#[test]
fn per_node_counters_of_both_halves_stand_beside_the_common_ones() -> Result<()> {
    let product = &*PRODUCT;
    let case = Case { item: Item::KeptAliveHttp, way: cases::Way::AcrossNodes, family: Family::V4 };
    let done = case.run(&LAB)?;
    eventually(EXPORTED, || {
        let [expected, _] = expect::counted(&done, &LAB.truth()?)?;
        let records = product.joined().of_client(done.report.protocol, done.report.from)?;
        let last = records.last().ok_or_else(|| anyhow::anyhow!("no joined flow"))?;
        let both = [last.packet_total_count_from_source_node, last.packet_total_count_from_destination_node];
        ensure!(both == [expected.packets; 2], "{both:?}, nft counted {expected:?}");
        ensure!(last.tcp_state == "TIME-WAIT" || last.tcp_state == "CLOSED", "state {}", last.tcp_state);
        ensure!(last.flow_end_reason == 3, "reason {}", last.flow_end_reason);
        ensure!(records.iter().any(has_throughput), "{}", listed(&records));
        Ok(())
    })
    .map_err(|error| product.with_logs(error))
}

/// A throughput is of a Node's last record before the joined one, which may hold one direction's last packet alone: of
/// either direction there may be none, never of both.
fn has_throughput(record: &Record) -> bool {
    record.throughput > 0 || record.reverse_throughput > 0
}

#[test]
fn every_packet_of_every_interface_is_told_of() -> Result<()> {
    let product = &*PRODUCT;
    eventually(EXPORTED * 3, || product.adds_up()).map_err(|error| product.with_logs(error))
}
