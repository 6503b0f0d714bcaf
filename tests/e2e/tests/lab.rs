//! The lab is held against itself before the product is held against it: what nft counted at both ends of a flow,
//! what conntrack counted and what the programs say must agree, and nothing may stay behind.

#![expect(clippy::print_stdout, reason = "a test says why it skips a case")]

use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cases::{self, Case, Done, Item};
use lab::topology::{Family, Host, Node, Pod, Protocol, TALK};
use lab::traffic::{Kind, Outcome};
use lab::truth::Count;
use lab::wait::eventually;
use lab::{Lab, Truth};

static LAB: LazyLock<Lab> = LazyLock::new(|| Lab::new().unwrap_or_else(|error| panic!("no lab: {error:#}")));

/// How long packets may still be on their way after a program has ended.
const SETTLING: Duration = Duration::from_secs(3);

#[test]
fn nft_conntrack_and_the_programs_agree_on_every_kind_of_traffic() -> Result<()> {
    let sent = cases::run(&LAB, Item::ALL.into_iter().filter(|item| is_possible(*item)).flat_map(Case::of))?;
    eventually(SETTLING, || {
        let truth = LAB.truth()?;
        sent.iter().try_for_each(|done| agree(done, &truth).with_context(|| done.case.to_string()))
    })
}

fn is_possible(item: Item) -> bool {
    item.skipped_because().inspect(|reason| println!("skipped: {item:?}: {reason}")).is_none()
}

fn agree(done: &Done, truth: &Truth) -> Result<()> {
    let direction = done.report.direction();
    let [sent, received] = truth.both_ways(&done.host, direction)?;
    as_the_program_says(done, sent, received)?;
    if done.case.item == Item::Dropped {
        ensure!(sent.packets >= 2 && received == Count::default(), "dropped, but {sent:?} {received:?}");
        return Ok(());
    }
    let connection = truth.connection(Node::A, direction)?;
    if done.case.item != Item::Fragments {
        ensure!(
            connection.sent == sent && is_but_for_resets(done, received, connection.answered),
            "nft {sent:?} {received:?}, conntrack {connection:?}"
        );
    }
    let at_server = connection.reply;
    let server = LAB.host_of(at_server.src.ip()).context("whose address is the server's?")?;
    let from_server = truth.both_ways(&server, at_server)?;
    ensure!(
        from_server[1] == sent && is_but_for_resets(done, from_server[0], received),
        "client {sent:?} {received:?}, server {from_server:?}"
    );
    ensure!(at_server.src == done.server, "answered by {}, not {}", at_server.src, done.server);
    Ok(())
}

/// The same, or more by resets: a closed end answers so a segment that came twice, and conntrack neither counts nor translates that.
fn is_but_for_resets(done: &Done, more: Count, fewer: Count) -> bool {
    let reset = ip_header(done) + 20;
    let resets = more.packets.checked_sub(fewer.packets);
    resets.is_some_and(|resets| more.bytes == fewer.bytes + resets * reset)
        && (more == fewer || done.report.protocol == Protocol::Tcp)
}

fn ip_header(done: &Done) -> u64 {
    if done.case.family == Family::V4 { 20 } else { 40 }
}

fn as_the_program_says(done: &Done, sent: Count, received: Count) -> Result<()> {
    let ip = ip_header(done);
    let exchanges = u64::from(done.report.exchanges);
    if matches!(done.case.item, Item::Udp | Item::Ping) {
        // ping's payload already has its 8 bytes of header.
        let header = if done.case.item == Item::Udp { 8 } else { 0 };
        let expected = Count { packets: exchanges, bytes: done.report.sent + exchanges * (ip + header) };
        ensure!([sent, received] == [expected; 2], "{expected:?} expected, nft {sent:?} {received:?}");
    }
    if done.case.item == Item::Fragments {
        ensure!(sent.packets == exchanges * 3 && received.packets == exchanges * 3, "nft {sent:?} {received:?}");
    }
    if done.case.item == Item::Bulk {
        let segments = done.report.sent / 1_500;
        // On a slow machine the windows are small, and so are the packets that fill them.
        ensure!(sent.packets < segments * 3 / 4, "{} packets for {segments} segments: no GSO", sent.packets);
        ensure!(sent.bytes > done.report.sent, "{sent:?}");
    }
    Ok(())
}

#[test]
fn a_session_stays_open_between_exchanges() -> Result<()> {
    let host = Host::Pod(Pod::third(Node::A));
    let from = LAB.client(&host, Family::V4, Node::B);
    let server = std::net::SocketAddr::new(Pod::server(Node::B).addr(Family::V4), TALK.target);
    let mut session = LAB.open(&host, Kind::Echo { protocol: Protocol::Tcp, exchanges: 2, bytes: 10 }, from, server)?;
    session.exchange(3)?;
    let report = session.close()?;
    ensure!(report.exchanges == 5 && report.outcome == Outcome::Answered, "{report:?}");
    Ok(())
}

#[test]
fn a_pod_comes_and_goes() -> Result<()> {
    let pod = Pod::late(Node::B, 20);
    LAB.add_pod(&pod)?;
    let host = Host::Pod(Pod::third(Node::A));
    let (from, to) = (LAB.client(&host, Family::V6, Node::A), pod.addr(Family::V6));
    let to = std::net::SocketAddr::new(to, TALK.target);
    let report = LAB.ask(&host, Kind::Connect { patience_ms: 5_000 }, from, to)?;
    ensure!(report.outcome == Outcome::Answered, "{report:?}");
    LAB.remove_pod(&pod)?;
    let links = LAB.interfaces(Node::B)?;
    ensure!(!links.contains_key(&pod.veth()), "{links:?}");
    Ok(())
}

#[test]
fn two_labs_stand_side_by_side_and_leave_nothing() -> Result<()> {
    let machine_before = machine()?;
    let (one, other) = (Lab::new()?, Lab::new()?);
    let scratch = [one.path("objects"), other.path("objects")];
    ensure!(scratch.iter().all(|folder| folder.join("pods.yaml").exists()), "{scratch:?}");
    ensure!(machine()? == machine_before, "the machine's own namespace has changed");
    let pid = one.cage().keeper();
    drop(one);
    drop(other);
    ensure!(!scratch.iter().any(|folder| folder.exists()), "left behind: {scratch:?}");
    ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the keeper {pid} still runs");
    ensure!(machine()? == machine_before, "the machine's own namespace has changed");
    Ok(())
}

/// What of the machine's own namespace a lab could touch by mistake.
fn machine() -> Result<String> {
    let mut seen = String::new();
    for words in [
        &["ip", "-o", "link"][..],
        &["ip", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["ip", "netns"],
        &["nft", "list", "ruleset"],
        &["cat", "/proc/self/mounts", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"],
    ] {
        seen += &String::from_utf8_lossy(&Command::new(words[0]).args(&words[1..]).output()?.stdout);
    }
    Ok(seen)
}
