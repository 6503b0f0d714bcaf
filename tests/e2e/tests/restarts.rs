//! What a kill -9 costs: nothing in the totals. Each test has a lab of its own.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::cases::{Case, Item, Way};
use lab::expect;
use lab::joined::{Record, listed, sum_of_deltas};
use lab::product::{Product, Settings};
use lab::topology::{BULK, DNS, FAMILIES, Family, Host, Node, Pod, Protocol, ServicePort, TALK};
use lab::traffic::{Kind, Session};
use lab::wait::eventually;
use rustix::thread::{UnshareFlags, unshare_unsafe};

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

/// A bpffs of the calling thread's own and of what it starts.
fn bpffs(lab: &Lab) -> Result<std::path::PathBuf> {
    // SAFETY: gives this thread mounts of its own, and takes no memory from anyone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("mounts of one's own")?;
    let folder = lab.path("bpf");
    std::fs::create_dir(&folder)?;
    for args in [&["--make-rprivate", "/"][..], &["-t", "bpf", "bpf", folder.to_str().context("a path")?]] {
        ensure!(Command::new("mount").args(args).status()?.success(), "mount {}", args.join(" "));
    }
    Ok(folder)
}

#[test]
fn a_restart_with_kept_programs_misses_no_packet() -> Result<()> {
    const RESTARTS: usize = 6;
    let lab = Lab::new()?;
    let pins = bpffs(&lab)?;
    let product = Product::start(&lab, Settings { pins: Some(pins.join("agent")), ..Settings::default() })?;
    let client = Host::Pod(Pod::client(Node::A));
    let (mut talk, mut dns) = (session(&lab, Family::V4, TALK)?, session(&lab, Family::V6, DNS)?);
    // Traffic without a pause, each kind until all restarts are over.
    let restarting = AtomicBool::new(true);
    let (bulk, short) = std::thread::scope(|scope| {
        let bulk = scope.spawn(|| {
            let mut done = Vec::new();
            while restarting.load(Ordering::Relaxed) {
                let to = SocketAddr::new(Pod::server(Node::B).addr(Family::V4), BULK.target);
                done.push(lab.ask(
                    &client,
                    Kind::Bulk { bytes: 1 << 30 },
                    lab.client(&client, Family::V4, Node::B),
                    to,
                )?);
            }
            anyhow::Ok(done)
        });
        let short = scope.spawn(|| {
            let mut done = Vec::new();
            while restarting.load(Ordering::Relaxed) {
                done.push(Case { item: Item::ShortHttp, way: Way::ServiceRemote, family: Family::V4 }.run(&lab)?);
                // nft's sets take their counters from a small reserve of per-CPU memory, which is filled up now and then.
                std::thread::sleep(Duration::from_millis(20));
            }
            anyhow::Ok(done)
        });
        let restarts = (|| {
            for restart in 0..RESTARTS {
                let node = Node::ALL[restart % 2];
                if restart < RESTARTS / 2 {
                    product.kill_agent(node)?;
                } else {
                    product.stop_agent(node)?;
                }
                talk.exchange(50)?;
                dns.exchange(50)?;
                product.start_agent(node)?;
                product.wait_for_agent(node)?;
            }
            anyhow::Ok(())
        })();
        restarting.store(false, Ordering::Relaxed);
        restarts?;
        anyhow::Ok((bulk.join().expect("no panic")?, short.join().expect("no panic")?))
    })?;
    for session in [&talk, &dns] {
        let records = totals_are_right(&lab, &product, session)?;
        never_shrink(&records)?;
        let first = records.first().context("no joined flow")?;
        ensure!(records.iter().all(|record| record.flow_id == first.flow_id), "another flow: {}", listed(&records));
    }
    let told = || {
        let truth = lab.truth()?;
        for report in &bulk {
            let expected = truth.both_ways(&client, report.direction())?;
            let records = product.joined().of_client(report.protocol, report.from)?;
            let last = records.last().with_context(|| format!("no joined flow of {report:?}"))?;
            ensure!(last.totals() == expected, "{:?}, nft counted {expected:?}", last.totals());
            ensure!(sum_of_deltas(&records) == expected, "nft counted {expected:?}: {}", listed(&records));
        }
        expect::all_hold(&short, &truth, &product.joined().records()?, product.missed_drops()?)
    };
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))?;
    eventually(EXPORTED, || product.adds_up()).map_err(|error| product.with_logs(error))
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
    let told = || expect::all_hold(&before, &lab.truth()?, &product.joined().records()?, product.missed_drops()?);
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
        expect::all_hold(&ended, &lab.truth()?, records.get(known..).unwrap_or_default(), product.missed_drops()?)
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
