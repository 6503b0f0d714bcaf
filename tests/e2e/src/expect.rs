//! What the joined records of a piece of traffic must say, held against the ground truth. Takes what was sent, the truth
//! and the records; gives every difference in words, for tests to fail on and for the demo to show.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, anyhow, ensure};

use crate::cases::{Done, Item, Way};
use crate::joined::{Record, listed, sum_of_deltas};
use crate::lab::Truth;
use crate::topology::{Family, Host, Node, Protocol, SERVICE, SERVICE_PORTS};
use crate::truth::Count;

/// What nft counted of both directions: what the client sent, and what the server sent back. The latter is counted where it is sent: the
/// reset by which a closed end answers a segment that came twice is nothing that conntrack leads back to the client.
pub fn counted(done: &Done, truth: &Truth) -> Result<[Count; 2]> {
    let direction = done.report.direction();
    let [sent, received] = truth.both_ways(&done.host, direction)?;
    match truth.connection(Node::A, direction) {
        Ok(connection) if direction.protocol == Protocol::Tcp => {
            Ok([sent, truth.both_ways(&done.case.way.server(), connection.reply)?[0]])
        }
        _ => Ok([sent, received]),
    }
}

/// The flow's records are one flow, say who spoke with whom, and count what nft counted. Of so many drops the kernel ran no program.
pub fn holds(done: &Done, truth: &Truth, records: &[Record], missed: u64) -> Result<()> {
    let of_flow: Vec<&Record> = records.iter().filter(|record| is_of(done, record)).collect();
    let last = *of_flow.last().ok_or_else(|| anyhow!("no joined flow"))?;
    ensure!(
        of_flow.iter().all(|record| record.flow_id == last.flow_id),
        "more than one flow:{}",
        listed(of_flow.iter().copied())
    );
    names(done, last)?;
    translation(done, truth, last)?;
    let expected = counted(done, truth)?;
    let all = || listed(of_flow.iter().copied());
    verdict(done, last, expected, missed).map_err(|error| anyhow!("{error}:{}", all()))?;
    ensure!(last.totals() == expected, "totals are {:?}, nft counted {expected:?}:{}", last.totals(), all());
    let deltas = sum_of_deltas(of_flow.iter().copied());
    ensure!(deltas == expected, "deltas add up to {deltas:?}, nft counted {expected:?}:{}", all());
    // 1 s: flows begin at the first packet, which the kernel times by a coarser clock than the program's.
    let began = done.report.started_ms.saturating_sub(1_000)..=done.report.ended_ms + 1_000;
    ensure!(began.contains(&last.flow_start_milliseconds), "began at {}, not {began:?}", last.flow_start_milliseconds);
    ensure!(last.flow_end_milliseconds >= last.flow_start_milliseconds, "ends before it begins: {last}");
    Ok(())
}

/// Whether a record tells of this traffic, on whatever side of a translation.
pub fn is_of(done: &Done, record: &Record) -> bool {
    let report = &done.report;
    record.is(report.protocol) && record.client() == report.from
}

fn names(done: &Done, record: &Record) -> Result<()> {
    let way = done.case.way;
    ensure!(record.server() == server(done), "went to {}, not {}", record.server(), server(done));
    let pod = |host: &Host| match host {
        Host::Pod(pod) => (pod.name.clone(), pod.namespace.to_owned(), pod.node.name().to_owned()),
        _ => (String::new(), String::new(), String::new()),
    };
    let source = (&record.source_pod_name, &record.source_pod_namespace, &record.source_node_name);
    let (name, namespace, node) = pod(&done.host);
    ensure!(source == (&name, &namespace, &node), "source is {source:?}, not {:?}", (name, namespace, node));
    let to = (&record.destination_pod_name, &record.destination_pod_namespace, &record.destination_node_name);
    // What never came to the other Node has one half, which names its own end alone.
    let one_half = done.case.item == Item::Dropped && way == Way::AcrossNodes && record.destination_pod_name.is_empty();
    let (name, namespace, node) = if one_half { Default::default() } else { pod(&way.server()) };
    ensure!(to == (&name, &namespace, &node), "destination is {to:?}, not {:?}", (name, namespace, node));
    let flow_type = match way {
        Way::SameNode | Way::ServiceLocal => 1,
        Way::AcrossNodes | Way::ServiceRemote => 2,
        Way::ToExternal => 3,
        Way::NodePortLocal | Way::NodePortRemote => 4,
    };
    ensure!(record.flow_type == flow_type, "flow type is {}, not {flow_type}", record.flow_type);
    let state_known = !record.tcp_state.is_empty();
    let is_denied = matches!(done.case.item, Item::Refused | Item::Dropped);
    let is_tcp = done.report.protocol == Protocol::Tcp && !is_denied;
    ensure!(state_known == is_tcp, "state is {:?}", record.tcp_state);
    Ok(())
}

/// `forwardingStatus`: rejected, dropped by a rule, or forwarded; what was denied is over, and every packet of what was dropped is
/// counted so, but for those that were missed.
fn verdict(done: &Done, record: &Record, [sent, _]: [Count; 2], missed: u64) -> Result<()> {
    let (status, dropped) = match done.case.item {
        Item::Refused => (129, Some(0)),
        Item::Dropped => (130, Some(sent.packets)),
        _ => (64, None),
    };
    ensure!(record.forwarding_status == status, "verdict is {}, not {status}", record.forwarding_status);
    ensure!(status == 64 || record.flow_end_reason == 3, "reason is {}", record.flow_end_reason);
    let counted = record.dropped_packet_total_count;
    let is_right = |dropped: u64| counted <= dropped && counted + missed >= dropped;
    ensure!(dropped.is_none_or(is_right), "dropped {counted}, not {dropped:?}; {missed} drops were missed");
    Ok(())
}

fn server(done: &Done) -> SocketAddr {
    if done.report.protocol != Protocol::Icmp {
        return done.server;
    }
    // Type and code of an echo request, for both directions.
    let port = if done.case.family == Family::V4 { 8 << 8 } else { 128 << 8 };
    SocketAddr::new(done.server.ip(), port)
}

fn translation(done: &Done, truth: &Truth, record: &Record) -> Result<()> {
    let nothing = match done.case.family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let asked = (record.destination_cluster_ip, record.destination_service_port);
    let service = record.destination_service_port_name.as_str();
    if done.case.way.is_service() {
        let (namespace, name) = SERVICE;
        let to = done.report.to;
        let port = SERVICE_PORTS.iter().find(|port| port.port == to.port() || port.node_port == to.port());
        let expected = format!("{namespace}/{name}:{}", port.map_or("", |port| port.name));
        ensure!(service == expected, "Service is {service:?}, not {expected:?}");
        ensure!(asked == (to.ip(), to.port()), "asked {asked:?}, not {to}");
    } else {
        ensure!(service.is_empty() && asked == (nothing, 0), "no Service was asked, but {service:?} {asked:?}");
    }
    let seen = (record.post_nat_source, record.post_napt_source_port);
    let expected = match truth.connection(Node::A, done.report.direction()) {
        Ok(connection) if connection.reply.dst != connection.original.src => {
            (connection.reply.dst.ip(), connection.reply.dst.port())
        }
        // Dropped before conntrack confirmed it: nothing was translated.
        _ => (nothing, 0),
    };
    ensure!(seen == expected, "the server saw {seen:?}, conntrack {expected:?}");
    Ok(())
}

/// All of them hold; if not, every one that does not is named with its difference.
pub fn all_hold(all: &[Done], truth: &Truth, records: &[Record], missed: u64) -> Result<()> {
    let differences: Vec<String> = all
        .iter()
        .filter_map(|done| holds(done, truth, records, missed).err().map(|error| format!("{}: {error:#}", done.case)))
        .collect();
    ensure!(differences.is_empty(), "{} of {} differ:\n{}", differences.len(), all.len(), differences.join("\n"));
    Ok(())
}
