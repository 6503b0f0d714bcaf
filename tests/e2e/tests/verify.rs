//! `flow-agent verify` on all kinds of traffic and on 10,000 short connections, half of them through a Service, with the capabilities that
//! the agents are deployed with: what the kernel programs counted of each is what connection tracking counted, or there is a reason, and
//! the exported records say so.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{self, Case, Done, Item};
use lab::product::{Product, Settings, default_capabilities};
use lab::topology::{DNS, FAMILIES, Family, Host, Node, Pod, Protocol, ServicePort, TALK, cluster_ip};
use lab::traffic::Kind;
use lab::truth::{self, Count};
use lab::wait::eventually;
use serde_json::Value;

/// Long enough for ends to be told, sweeps to come by and entries to be deleted.
const SETTLED: Duration = Duration::from_secs(60);

/// Connections of each flood: two families, two protocols, direct and through the Service.
const FLOWS: u32 = 1_250;
const ALL: u64 = 10_000;

/// Of the floods' clients; beyond the ports that the lab gives to others.
const FIRST_PORT: u16 = 40_000;

fn flood(lab: &Lab) -> Result<()> {
    let client = Host::Pod(Pod::client(Node::A));
    for family in FAMILIES {
        for (port, first) in [(DNS, FIRST_PORT), (TALK, FIRST_PORT + 10_000)] {
            let server = SocketAddr::new(Pod::server(Node::B).addr(family), port.target);
            let service = SocketAddr::new(cluster_ip(family), port.port);
            for (to, first) in [(server, first), (service, first + 5_000)] {
                let from = SocketAddr::new(client.addr(family), first);
                let kind = if is_udp(port) { Kind::Flood { flows: FLOWS } } else { Kind::Connects { flows: FLOWS } };
                let report = lab.ask(&client, kind, from, to)?;
                ensure!(report.exchanges == FLOWS, "{report:?}");
            }
        }
    }
    Ok(())
}

fn is_udp(port: ServicePort) -> bool {
    port.port == DNS.port
}

/// A Node's report, which has nothing unexplained.
fn verified(product: &Product<'_>, node: Node) -> Result<Value> {
    let (status, text) = product.agent_says(node, &["verify", "-o", "json"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(report["failure"].is_null() && report["accounting"] == true, "{text}");
    for of in ["live", "ended"] {
        let unexplained = &report[of]["differences"]["unexplained"];
        ensure!(unexplained == &Value::Array(Vec::new()), "{} {of}: {unexplained:#}", node.name());
    }
    ensure!(status == Some(0), "exit status {status:?}: {text}");
    Ok(report)
}

/// Connections with this outcome, and this reason if one is named.
fn sum(report: &Value, of: &str, outcome: &str, reason: Option<&str>) -> u64 {
    let counts = report[of]["sums"].as_array().into_iter().flatten();
    let wanted = counts.filter(|count| count["outcome"] == outcome && reason.is_none_or(|it| count["reason"] == it));
    wanted.filter_map(|count| count["connections"].as_u64()).sum()
}

/// What connection tracking counted of the floods' connections, by protocol and client.
fn tracked(lab: &Lab) -> Result<HashMap<(u8, SocketAddr), [Count; 2]>> {
    let mut tracked = HashMap::new();
    for connection in truth::connections(&*lab.node(Node::A)?)? {
        let (from, protocol) = (connection.original.src, connection.original.protocol);
        let is_ours = FAMILIES.map(|family| Pod::client(Node::A).addr(family)).contains(&from.ip());
        if is_ours && from.port() >= FIRST_PORT && matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            let counts = [connection.sent, connection.answered];
            tracked.insert((protocol.number(Family::of(from.ip())), from), counts);
        }
    }
    Ok(tracked)
}

/// The last record of each of these connections has exactly that.
fn are_exported(product: &Product<'_>, tracked: &HashMap<(u8, SocketAddr), [Count; 2]>) -> Result<()> {
    let mut exported: HashMap<(u8, SocketAddr), [Count; 2]> = HashMap::new();
    for record in product.joined().records()? {
        exported.insert((record.protocol_identifier, record.client()), record.totals());
    }
    let wrong = tracked.iter().filter(|(flow, counts)| exported.get(*flow) != Some(*counts));
    let wrong: Vec<_> = wrong.map(|(flow, counts)| (flow, counts, exported.get(flow))).collect();
    ensure!(wrong.is_empty(), "{} records are not conntrack's: {:?}", wrong.len(), wrong.first());
    Ok(())
}

/// Ends a client's connections in a Node's connection tracking, as their time-outs would.
fn forget(lab: &Lab, node: Node, client: &Pod) -> Result<()> {
    for (family, name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        let addr = client.addr(family).to_string();
        lab.node(node)?.run("conntrack", &["-D", "-f", name, "-s", &addr])?;
    }
    Ok(())
}

/// Until they are told to, the Nodes forget no connection, however long it all takes.
fn remember(lab: &Lab) -> Result<()> {
    for node in Node::ALL {
        let of_tcp = ["fin_wait", "close_wait", "last_ack", "time_wait", "close"];
        let timeouts = of_tcp.map(|state| format!("tcp_timeout_{state}")).into_iter();
        for timeout in timeouts.chain(["udp_timeout", "udp_timeout_stream"].map(str::to_owned)) {
            lab.node(node)?.set(&format!("netfilter/nf_conntrack_{timeout}"), "3600")?;
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_connections_end_with_nothing_unexplained() -> Result<()> {
    let lab = Lab::new()?;
    remember(&lab)?;
    let capabilities = Some(default_capabilities()?);
    let product = Product::start(&lab, Settings { capabilities, ..Settings::default() })?;
    let items = Item::ALL.into_iter().filter(|item| item.skipped_because().is_none());
    let done = cases::run(&lab, items.flat_map(Case::of))?;
    // Connection tracking forgets what is refused at once, before its packets are read.
    let by_pods = |done: &&Done| done.case.item == Item::Refused && done.host != Host::External;
    let refused = done.iter().filter(by_pods).count() as u64;
    eventually(SETTLED, || {
        let equal = sum(&verified(&product, Node::A)?, "ended", "equal", None);
        ensure!(refused > 0 && equal >= refused, "{equal} of {refused} refused connections are equal");
        Ok(())
    })
    .map_err(|error| product.with_logs(error))?;
    flood(&lab)?;

    // The kernel still has them all; most flows have gone.
    let live = eventually(SETTLED, || {
        let report = verified(&product, Node::A)?;
        let equal = sum(&report, "live", "equal", None);
        ensure!(equal >= ALL, "{equal} of {ALL} are equal: {:#}", report["live"]["sums"]);
        Ok(report)
    })
    .map_err(|error| product.with_logs(error))?;
    ensure!(sum(&live, "live", "differs", Some("fragments")) > 0, "{:#}", live["live"]["sums"]);
    let dropped = ["live", "ended"].map(|of| sum(&live, of, "only_ebpf", Some("dropped")));
    ensure!(dropped.iter().sum::<u64>() > 0, "{:#} {:#}", live["live"]["sums"], live["ended"]["sums"]);

    let tracked = tracked(&lab)?;
    ensure!(tracked.len() == ALL as usize, "connection tracking has {} of {ALL}", tracked.len());
    eventually(SETTLED, || are_exported(&product, &tracked)).map_err(|error| product.with_logs(error))?;

    // Everything to node-b's server went there; of what the Service was asked, half.
    for (node, least) in [(Node::A, ALL), (Node::B, ALL * 3 / 4)] {
        forget(&lab, node, &Pod::client(Node::A))?;
        eventually(SETTLED, || {
            let report = verified(&product, node)?;
            let equal = sum(&report, "ended", "equal", None);
            ensure!(equal >= least, "{equal} of {least} ended equal on {}: {:#}", node.name(), report["ended"]["sums"]);
            Ok(())
        })
        .map_err(|error| product.with_logs(error))?;
    }
    let screen = product.agent_cli(Node::A, &["verify"])?;
    ensure!(screen.contains("ended connections compared") && screen.contains(" 0 unexplained"), "{screen}");
    Ok(())
}
