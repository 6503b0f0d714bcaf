//! What a kill -9 costs: nothing in the totals. Each test has a lab of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{Case, Item, Way};
use lab::expect;
use lab::joined::{Record, listed};
use lab::product::{Product, Settings};
use lab::topology::{DNS, FAMILIES, Family, Host, Node, Pod, Protocol, ServicePort, TALK};
use lab::traffic::{Kind, Session};
use lab::wait::eventually;

const EXPORTED: Duration = Duration::from_secs(40);

/// A session from node-a's client to node-b's server.
fn session(lab: &Lab, family: Family, port: ServicePort) -> Result<Session> {
    let host = Host::Pod(Pod::client(Node::A));
    let to = SocketAddr::new(Pod::server(Node::B).addr(family), port.target);
    let from = lab.client(&host, family, Node::B);
    lab.open(&host, Kind::Echo { protocol: port.protocol, exchanges: 5, bytes: 120 }, from, to)
}

/// The latest totals of a session's flow are nft's.
fn totals_are_right(lab: &Lab, product: &Product<'_>, session: &Session) -> Result<Vec<Record>> {
    let report = session.report();
    eventually(EXPORTED, || {
        let expected = lab.truth()?.both_ways(&Host::Pod(Pod::client(Node::A)), report.direction())?;
        let records = product.joined().of_client(report.protocol, report.from)?;
        let last = records.last().context("no joined flow")?;
        ensure!(last.totals() == expected, "{:?}, nft counted {expected:?}", last.totals());
        Ok(records)
    })
    .map_err(|error| product.with_logs(error))
}

fn never_shrink(records: &[Record]) -> Result<()> {
    for pair in records.windows(2) {
        let [before, after] = [&pair[0], &pair[1]].map(Record::totals);
        let grows = before.iter().zip(&after).all(|(old, new)| new.packets >= old.packets && new.bytes >= old.bytes);
        ensure!(grows, "totals shrink from {before:?} to {after:?}");
    }
    Ok(())
}

#[test]
fn a_killed_agent_goes_on_where_conntrack_is() -> Result<()> {
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings::default())?;
    let mut sessions = Vec::new();
    for family in FAMILIES {
        for port in [TALK, DNS] {
            sessions.push(session(&lab, family, port)?);
        }
    }
    for session in &sessions {
        totals_are_right(&lab, &product, session)?;
    }
    for node in Node::ALL {
        product.kill_agent(node)?;
        sessions.iter_mut().try_for_each(|session| session.exchange(3).map(drop))?;
        product.start_agent(node)?;
        product.wait_for_agent(node)?;
        sessions.iter_mut().try_for_each(|session| session.exchange(4).map(drop))?;
        for session in &sessions {
            let records = totals_are_right(&lab, &product, session)?;
            never_shrink(&records)?;
            let first = records.first().context("no joined flow")?;
            ensure!(records.iter().all(|record| record.flow_id == first.flow_id), "another flow: {}", listed(&records));
        }
    }
    Ok(())
}

#[test]
fn ended_flows_wait_in_the_spool_for_a_killed_aggregator() -> Result<()> {
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings::default())?;
    let ways = [Way::AcrossNodes, Way::ServiceRemote, Way::SameNode];
    let run = || -> Result<Vec<_>> {
        let cases = ways.into_iter().flat_map(|way| FAMILIES.map(|family| (way, family)));
        cases.map(|(way, family)| Case { item: Item::ShortHttp, way, family }.run(&lab)).collect()
    };
    let before = run()?;
    let told = || expect::all_hold(&before, &lab.truth()?, &product.joined().records()?);
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))?;

    product.kill_aggregator()?;
    for node in Node::ALL {
        let gone = || {
            let export = product.facts(node)?.export;
            ensure!(export.peer.is_none(), "{} still has its collector", node.name());
            Ok(())
        };
        eventually(EXPORTED, gone)?;
    }
    let meanwhile = run()?;
    let known = product.joined().records()?.len();
    product.start_aggregator()?;
    // The first ones were sent and told of before: within 90 s they come once more, as nobody knows who used them.
    let ended = [before, meanwhile].concat();
    let told_again = || {
        let records = product.joined().records()?;
        expect::all_hold(&ended, &lab.truth()?, records.get(known..).unwrap_or_default())
    };
    eventually(EXPORTED, told_again).map_err(|error| product.with_logs(error))
}

#[test]
fn live_totals_survive_a_killed_aggregator() -> Result<()> {
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings::default())?;
    let mut session = session(&lab, Family::V4, TALK)?;
    totals_are_right(&lab, &product, &session)?;
    product.kill_aggregator()?;
    session.exchange(6)?;
    product.start_aggregator()?;
    session.exchange(2)?;
    let records = totals_are_right(&lab, &product, &session)?;
    never_shrink(&records)
}

#[test]
fn an_agent_that_is_asked_to_end_tells_its_last_records() -> Result<()> {
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings::default())?;
    let mut session = session(&lab, Family::V6, ServicePort { protocol: Protocol::Udp, ..DNS })?;
    session.exchange(9)?;
    for node in Node::ALL {
        product.stop_agent(node)?;
    }
    let records = totals_are_right(&lab, &product, &session)?;
    never_shrink(&records)
}
