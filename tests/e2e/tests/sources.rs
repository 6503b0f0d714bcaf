//! The product on connection tracking alone (`source: conntrack`): every kind of traffic that it knows of makes the records that the
//! kernel programs make, but for what docs/sources.md says only they can know; no connection is too short. One lab for all tests.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{self, Case, Done, Item, Way};
use lab::expect;
use lab::joined::{Record, listed};
use lab::product::{Product, Settings, agent};
use lab::topology::{CLOSED, Family, Host, Node, Pod, Protocol};
use lab::truth::Count;
use lab::wait::eventually;

static LAB: LazyLock<Lab> = LazyLock::new(|| Lab::new().unwrap_or_else(|error| panic!("no lab: {error:#}")));
static PRODUCT: LazyLock<Product<'static>> = LazyLock::new(|| start(&LAB, "conntrack"));

/// Beyond the agents' idle time-out, the time for which connection tracking keeps UDP, and the aggregator's wait for another half.
const EXPORTED: Duration = Duration::from_secs(60);

/// What connection tracking sees to the packet. It counts a fragmented datagram once, and knows nothing of what a rule dropped.
const ITEMS: [Item; 6] = [Item::ShortHttp, Item::KeptAliveHttp, Item::Bulk, Item::Udp, Item::Ping, Item::Refused];

fn start<'lab>(lab: &'lab Lab, source: &str) -> Product<'lab> {
    let settings = Settings { agent: format!("source: {source}\n"), ..Settings::default() };
    Product::start(lab, settings).unwrap_or_else(|error| panic!("{error:#}"))
}

fn is_told_exactly(lab: &Lab, product: &Product<'_>, items: &[Item]) -> Result<Vec<Done>> {
    let done = cases::run(lab, items.iter().copied().flat_map(Case::of))?;
    let told = || expect::all_hold(&done, &lab.truth()?, &product.joined().records()?, product.missed_drops()?);
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))?;
    Ok(done)
}

#[test]
fn every_kind_of_traffic_is_told_of_as_the_programs_would() -> Result<()> {
    is_told_exactly(&LAB, &PRODUCT, &ITEMS).map(drop)
}

#[test]
fn a_fragmented_datagram_counts_once() -> Result<()> {
    let product = &*PRODUCT;
    let case = Case { item: Item::Fragments, way: Way::AcrossNodes, family: Family::V4 };
    let done = case.run(&LAB)?;
    eventually(EXPORTED, || {
        let truth = LAB.truth()?;
        let connection = truth.connection(Node::A, done.report.direction())?;
        let [sent, _] = expect::counted(&done, &truth)?;
        let records = product.joined().of_client(done.report.protocol, done.report.from)?;
        let last = records.last().context("no joined flow")?;
        ensure!(last.totals() == [connection.sent, connection.answered], "{last}, conntrack {connection:?}");
        ensure!(last.packet_total_count < sent.packets, "{last}, nft counted {sent:?}");
        Ok(())
    })
    .map_err(|error| product.with_logs(error))
}

/// Each is a SYN and a RST, after which connection tracking forgets it at once.
#[test]
fn a_thousand_connections_that_end_at_once_are_a_thousand_records() -> Result<()> {
    const CONNECTIONS: usize = 1_000;
    let product = &*PRODUCT;
    let client = Host::Pod(Pod::third(Node::A));
    let source = client.addr(Family::V4);
    let to = std::net::SocketAddr::new(Pod::server(Node::B).addr(Family::V4), CLOSED.target);
    let attempts = || {
        (0..CONNECTIONS).filter(|_| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_err()).count()
    };
    let refused = LAB.namespace(&client)?.within(attempts)?;
    ensure!(refused == CONNECTIONS, "{refused} were refused");
    let is_one = |record: &Record| {
        let one = Count { packets: 1, bytes: record.octet_total_count };
        record.is(Protocol::Tcp) && record.source == source && record.server() == to && record.totals()[0] == one
    };
    eventually(EXPORTED, || {
        let records = product.joined().records()?;
        let of_them: Vec<&Record> = records.iter().filter(|record| is_one(record)).collect();
        let mut ports: Vec<u16> = of_them.iter().map(|record| record.source_transport_port).collect();
        ports.sort_unstable();
        ports.dedup();
        ensure!(ports.len() == CONNECTIONS, "{} connections have a record", ports.len());
        let wrong: Vec<&Record> = of_them
            .into_iter()
            .filter(|record| {
                record.flow_end_reason != 3 || record.forwarding_status != 129 || record.totals()[1].packets != 1
            })
            .collect();
        ensure!(wrong.is_empty(), "{}", listed(wrong));
        Ok(())
    })
    .map_err(|error| product.with_logs(error))
}

#[test]
fn doctor_log_and_metrics_say_who_counts() -> Result<()> {
    let product = &*PRODUCT;
    let diagnosis = product.diagnosis(Node::A)?;
    ensure!(diagnosis.facts.interfaces.is_empty(), "{:?}", diagnosis.facts.interfaces);
    let of_no_interface = diagnosis.findings.iter().find(|finding| finding.what.contains("interface"));
    ensure!(of_no_interface.is_none(), "{of_no_interface:?}");
    let screen = product.agent_cli(Node::A, &["doctor"])?;
    ensure!(screen.contains("packets counted by connection tracking") && screen.contains("tc by none"), "{screen}");
    let log = product.log(&agent(Node::A))?;
    ensure!(log.contains("connection tracking counts the packets, as configured"), "{log}");
    let metrics = product.page(&Host::Node(Node::A), 10_359, "/metrics")?;
    ensure!(metrics.contains("flow_agent_source{source=\"conntrack\"} 1"), "{metrics}");
    ensure!(metrics.contains("flow_agent_feature{feature=\"tc\",rung=\"none\"} 1"), "{metrics}");
    Ok(())
}

/// What both tell of a flow. Its packets are held against the truth of its own lab: how many acknowledgements there are is TCP's matter.
#[derive(Debug, PartialEq)]
struct Told {
    case: String,
    server: std::net::SocketAddr,
    pods: [String; 3],
    service: (std::net::IpAddr, u16, String),
    post_nat: std::net::IpAddr,
    state: String,
    flow_type: u8,
    /// Of what has no end of its own 0: connection tracking keeps it for minutes.
    end_reason: u8,
    status: u8,
}

impl Told {
    fn of(case: Case, record: &Record) -> Self {
        let record = record.clone();
        let ends = matches!(case.item, Item::ShortHttp | Item::Refused);
        Self {
            case: case.to_string(),
            server: record.server(),
            pods: [record.source_pod_name, record.destination_pod_name, record.source_node_name],
            service: (
                record.destination_cluster_ip,
                record.destination_service_port,
                record.destination_service_port_name,
            ),
            post_nat: record.post_nat_source,
            state: record.tcp_state,
            flow_type: record.flow_type,
            end_reason: if ends { record.flow_end_reason } else { 0 },
            status: record.forwarding_status,
        }
    }
}

/// The same cases in two labs, in one by the programs and in the other by connection tracking.
#[test]
fn both_sources_make_the_same_records() -> Result<()> {
    const ITEMS: [Item; 4] = [Item::ShortHttp, Item::Udp, Item::Ping, Item::Refused];
    let by_programs = Lab::new()?;
    let programs = start(&by_programs, "ebpf");
    let by_programs = told(&by_programs, &programs, &ITEMS)?;
    let by_tracking = told(&LAB, &PRODUCT, &ITEMS)?;
    ensure!(by_programs.len() == by_tracking.len(), "{} and {}", by_programs.len(), by_tracking.len());
    for (programs, tracking) in by_programs.iter().zip(&by_tracking) {
        ensure!(programs == tracking, "by the programs {programs:?}\nby tracking {tracking:?}");
    }
    Ok(())
}

fn told(lab: &Lab, product: &Product<'_>, items: &[Item]) -> Result<Vec<Told>> {
    let mut told = Vec::new();
    for done in is_told_exactly(lab, product, items)? {
        let records = product.joined().of_client(done.report.protocol, done.report.from)?;
        told.push(Told::of(done.case, records.last().context("no joined flow")?));
    }
    told.sort_by(|one, other| one.case.cmp(&other.case));
    Ok(told)
}
