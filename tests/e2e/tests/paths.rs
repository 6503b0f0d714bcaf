//! Packets on unusual paths through a Node: past three hooks, in and out by the same interface, answers by another
//! way, another way in mid-life. One flow each, every packet counted once. Each test has a lab of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{Case, Done, Item, Way};
use lab::expect;
use lab::joined::{listed, sum_of_deltas};
use lab::product::{Product, Settings};
use lab::topology::{DNS, FAMILIES, Family, Host, Node, Pod, TALK, Uplink, cluster_ip};
use lab::traffic::{Kind, Report};
use lab::wait::eventually;

const EXPORTED: Duration = Duration::from_secs(40);

/// What every test here sends.
const ITEMS: [Item; 4] = [Item::KeptAliveHttp, Item::Bulk, Item::Udp, Item::Fragments];

fn run(lab: &Lab, ways: &[Way]) -> Result<Vec<Done>> {
    let cases = ways.iter().flat_map(|way| ITEMS.iter().map(|item| (*way, *item)));
    let both = cases.flat_map(|(way, item)| FAMILIES.map(|family| Case { item, way, family }));
    both.map(|case| case.run(lab)).collect()
}

fn are_told(lab: &Lab, product: &Product<'_>, done: &[Done]) -> Result<()> {
    let told = || expect::all_hold(done, &lab.truth()?, &product.joined().records()?, product.missed_drops()?);
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))
}

#[test]
fn past_three_hooks() -> Result<()> {
    let lab = Lab::new()?;
    let node = Host::Node(Node::A);
    // The Node's uplink becomes the port of a bridge that has its addresses, as some CNIs have it.
    let mut lines = vec!["link add br-ex type bridge".to_owned()];
    for family in FAMILIES {
        let (addr, prefix) = (Node::A.addr(family), if family == Family::V4 { 24 } else { 64 });
        lines.push(format!("address del {addr}/{prefix} dev eth0"));
        let no_dad = if family == Family::V6 { " nodad" } else { "" };
        lines.push(format!("address add {addr}/{prefix} dev br-ex{no_dad}"));
    }
    lines.push("link set eth0 master br-ex".to_owned());
    lines.push("link set br-ex up".to_owned());
    lines.extend(
        FAMILIES
            .map(|family| format!("route replace default via {} dev br-ex", Uplink::First.gateway(Node::A, family))),
    );
    lab.ip(&node, &lines)?;
    // Bridged frames shall not pass netfilter a second time; kernels without br_netfilter have no such switch.
    for family in ["ip", "ip6"] {
        let _ = lab.namespace(&node)?.set(&format!("bridge/bridge-nf-call-{family}tables"), "0");
    }
    let agent = "interfaces: {pods: [\"veth*\"], uplinks: [\"eth*\", \"br-*\"]}\n".to_owned();
    let product = Product::start(&lab, Settings { agent, ..Settings::default() })?;
    let done = run(&lab, &[Way::AcrossNodes, Way::ServiceRemote, Way::NodePortRemote])?;
    are_told(&lab, &product, &done)?;
    let seen = product.facts(Node::A)?.interfaces;
    for name in ["eth0", "br-ex"] {
        let interface = seen.iter().find(|interface| interface.name == name).with_context(|| format!("no {name}"))?;
        ensure!(interface.annotated.packets > 100, "{name} is not on the path: {interface:#?}");
    }
    Ok(())
}

#[test]
fn in_and_out_by_the_same_interface_and_back_by_another_way() -> Result<()> {
    let lab = Lab::new()?;
    // What comes from outside for node-b's Pods goes to node-a, which sends it back to the router; answers do not.
    for family in FAMILIES {
        let (pods, via) = (Node::B.pod_cidr(family), Node::A.addr(family));
        lab.ip(&Host::Router, &[format!("route add {pods} via {via} table 100")])?;
        let rule = ["rule", "add", "iif", "external", "lookup", "100"];
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        lab.namespace(&Host::Router)?.run("ip", &[&[flag], &rule[..]].concat())?;
    }
    let product = Product::start(&lab, Settings::default())?;
    let mut reports = Vec::new();
    for family in FAMILIES {
        for port in [TALK, DNS] {
            let from = lab.client(&Host::External, family, Node::B);
            let to = SocketAddr::new(Pod::server(Node::B).addr(family), port.target);
            let kind = Kind::Echo { protocol: port.protocol, exchanges: 20, bytes: 400 };
            reports.push(lab.ask(&Host::External, kind, from, to)?);
        }
    }
    reports.iter().try_for_each(|report| is_one_flow(&lab, &product, &Host::External, report))?;
    let through = product.facts(Node::A)?.interfaces.into_iter().find(|it| it.name == "eth0").context("no eth0")?;
    ensure!(through.seen_by_hook.iter().all(|packets| *packets > 80), "not past node-a: {through:#?}");
    Ok(())
}

#[test]
fn answers_by_another_interface() -> Result<()> {
    let lab = Lab::new()?;
    for family in FAMILIES {
        let via = Uplink::Second.addr(Node::A, family);
        lab.ip(&Host::Router, &[format!("route replace {} via {via}", Node::A.pod_cidr(family))])?;
    }
    let product = Product::start(&lab, Settings::default())?;
    let done = run(&lab, &[Way::AcrossNodes, Way::ServiceRemote])?;
    are_told(&lab, &product, &done)?;
    let second = product.facts(Node::A)?.interfaces.into_iter().find(|it| it.name == "eth1").context("no eth1")?;
    ensure!(second.seen_by_hook[0] > 100, "the answers did not come by eth1: {second:#?}");
    Ok(())
}

#[test]
fn another_way_in_mid_life() -> Result<()> {
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings::default())?;
    let client = Host::Pod(Pod::client(Node::A));
    let mut sessions = Vec::new();
    for family in FAMILIES {
        for port in [TALK, DNS] {
            let kind = Kind::Echo { protocol: port.protocol, exchanges: 10, bytes: 200 };
            // Directly and by the Service. What is masqueraded cannot move: the kernel drops it where the way changes.
            for to in [(Pod::server(Node::B).addr(family), port.target), (cluster_ip(family), port.port)] {
                let from = lab.client(&client, family, Node::B);
                sessions.push(lab.open(&client, kind, from, SocketAddr::from(to))?);
            }
        }
    }
    for family in FAMILIES {
        let gateway = Uplink::Second.gateway(Node::A, family);
        lab.ip(&Host::Node(Node::A), &[format!("route replace default via {gateway}")])?;
        let via = Uplink::Second.addr(Node::A, family);
        lab.ip(&Host::Router, &[format!("route replace {} via {via}", Node::A.pod_cidr(family))])?;
    }
    for session in &mut sessions {
        session.exchange(30)?;
    }
    for session in sessions {
        let report = session.close()?;
        is_one_flow(&lab, &product, &client, &report)?;
    }
    let second = product.facts(Node::A)?.interfaces.into_iter().find(|it| it.name == "eth1").context("no eth1")?;
    ensure!(second.seen_by_hook.iter().all(|packets| *packets > 200), "not by eth1: {second:#?}");
    Ok(())
}

/// One flow that counts what nft counted, no packet twice.
fn is_one_flow(lab: &Lab, product: &Product<'_>, host: &Host, report: &Report) -> Result<()> {
    eventually(EXPORTED, || {
        let expected = lab.truth()?.both_ways(host, report.direction())?;
        let records = product.joined().of_client(report.protocol, report.from)?;
        let last = records.last().with_context(|| format!("no joined flow of {report:?}"))?;
        ensure!(records.iter().all(|record| record.flow_id == last.flow_id), "several flows: {}", listed(&records));
        ensure!(last.totals() == expected, "{:?}, nft counted {expected:?}: {records:#?}", last.totals());
        ensure!(sum_of_deltas(&records) == expected, "deltas do not add up to {expected:?}: {}", listed(&records));
        Ok(())
    })
    .map_err(|error| product.with_logs(error))
}

#[test]
fn both_halves_in_either_order() -> Result<()> {
    for (late, blind) in Node::ALL.into_iter().flat_map(|node| [(node, false), (node, true)]) {
        let lab = Lab::new()?;
        let product = Product::start(&lab, Settings { late: Some(late), blind, ..Settings::default() })?;
        // Without objects only node-a itself tells that a masqueraded connection's source is its address.
        let tells = !(blind && late == Node::A);
        let datagrams = [Way::AcrossNodes, Way::ServiceRemote, Way::NodePortRemote]
            .into_iter()
            .filter(|way| tells || *way != Way::NodePortRemote)
            .flat_map(|way| FAMILIES.map(|family| Case { item: Item::Udp, way, family }));
        let done = datagrams.map(|case| case.run(&lab)).collect::<Result<Vec<_>>>()?;
        are_told(&lab, &product, &done).with_context(|| format!("{} comes second, blind: {blind}", late.name()))?;
    }
    Ok(())
}
