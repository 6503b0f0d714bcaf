//! Servers killed, connections cut, servers away: which rows are there then, and how often.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use interop::{Age, Certificates, ClickHouse, Cut, Relay};

use crate::aggregator::{Agent, Aggregator, record, until_stored};
use crate::tables::documented;

/// Every flow from 0 on has its row, and (unless the server cannot tell) one alone; the views have what the rows have.
fn whole(server: &ClickHouse, flows: u64, once: bool) -> Result<()> {
    rows(server, flows, once)?;
    if once { sums(server, flows) } else { Ok(()) }
}

/// Every flow from 0 on has its row, and one alone if it must.
pub(crate) fn rows(server: &ClickHouse, flows: u64, once: bool) -> Result<()> {
    let distinct = server.number("SELECT toString(uniqExact(flowId)) FROM flows")?;
    let count = server.number("SELECT toString(count()) FROM flows")?;
    // Of a cluster each may be another server's answer, one of which is behind.
    ensure!(distinct == flows, "{distinct} of {flows} flows are there");
    ensure!(!once || count == flows, "{count} rows of {flows} flows");
    Ok(())
}

/// The views have what the rows have.
pub(crate) fn sums(server: &ClickHouse, flows: u64) -> Result<()> {
    let sent: u64 = (0..flows).map(|flow| (flow + 1) * 100).sum();
    for table in ["flows", "flows_pod_view", "flows_node_view", "flows_policy_view"] {
        let sum = server.number(&format!("SELECT toString(sum(octetDeltaCount)) FROM {table}"))?;
        ensure!(sum == sent, "{sum} octets in {table}, not {sent}");
    }
    Ok(())
}

/// A small generator, so that what failed can be repeated.
pub(crate) fn draw(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_amid_a_commit_has_every_row_once() -> Result<()> {
    const FLOWS: u64 = 6_000;
    let certificates = Certificates::new()?;
    let mut server = ClickHouse::start(Age::Modern, &certificates)?;
    let relay = Relay::start(server.addr("tcp"), None).await?;
    let aggregator = Aggregator::start(&format!("databaseURL: \"tcp://{}\"", relay.addr), "").await?;
    let mut agent = aggregator.agent().await?;
    let (mut seed, mut amid) = (88_172_645_463_325_252, 0);
    for round in 1..=20 {
        let before = relay.sent();
        let flows = (round - 1) * FLOWS..round * FLOWS;
        agent.send(flows.map(|flow| record(flow as u32))).await?;
        // Until the commit is on its way; then somewhere in it, or just behind it.
        relay.until_sent(before + 20_000).await.context("no commit is begun")?;
        tokio::time::sleep(Duration::from_micros(draw(&mut seed, 250_000))).await;
        amid += u64::from(aggregator.sink("delivered_total")? < round * FLOWS);
        server.kill();
        server.start_again()?;
        aggregator.until("delivered_total", round * FLOWS)?;
        whole(&server, round * FLOWS, true).with_context(|| format!("round {round}"))?;
    }
    ensure!(amid >= 5, "only {amid} of 20 met a commit");
    aggregator.stop().await?;
    whole(&server, 20 * FLOWS, true)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_killed_under_load_leaves_every_ended_flow_and_repeats_that_can_be_removed() -> Result<()> {
    const FLOWS: u32 = 400;
    let mut server = ClickHouse::start(Age::Modern, &Certificates::new()?)?;
    let settings =
        format!("clickHouse: {{enable: true, commitInterval: 1s, databaseURL: \"tcp://{}\"}}\n", server.addr("tcp"));
    let mut seed = 521_288_629;
    let mut sent = 0;
    for round in 1..=20 {
        let aggregator = interop::Aggregator::start(&settings, &[])?;
        let mut agent = Agent::connect(aggregator.addr).await?;
        // As an agent's spool does it: what ended lately comes again with each new connection.
        agent.send((0..sent).map(record)).await?;
        for _ in 0..4 {
            agent.send((sent..sent + FLOWS / 4).map(record)).await?;
            sent += FLOWS / 4;
            tokio::time::sleep(Duration::from_millis(draw(&mut seed, 500))).await;
        }
        if round < 20 {
            // kill -9.
            drop(aggregator);
            server.revive()?;
            continue;
        }
        until_stored(&mut server, "flows", u64::from(sent)).with_context(|| aggregator.log())?;
        aggregator.end()?;
    }
    let rows = server.number("SELECT toString(count()) FROM flows")?;
    ensure!(rows > u64::from(sent), "nothing is there twice, so nothing was tried");
    let [find, remove] = documented()?;
    ensure!(!server.ask(&find)?.is_empty(), "the documented query finds the repeats");
    server.ask(&format!("{remove} SETTINGS mutations_sync = 1"))?;
    ensure!(server.ask(&find)?.is_empty(), "{}", server.ask(&find)?);
    let octets: u64 = (0..u64::from(sent)).map(|flow| (flow + 1) * 100).sum();
    let left =
        server.ask("SELECT count(), uniqExact(flowId), sum(octetTotalCount), sum(octetDeltaCount) FROM flows")?;
    ensure!(left == format!("{sent}\t{sent}\t{octets}\t{octets}"), "{left}");
    Ok(())
}

/// Twenty commits whose connection is cut amid them, or instead of the answer.
async fn cuts(age: Age, scheme: &str) -> Result<()> {
    const FLOWS: u64 = 1_000;
    let certificates = Certificates::new()?;
    let server = ClickHouse::start(age, &certificates)?;
    let relay = Relay::start(server.addr(scheme), None).await?;
    let aggregator = Aggregator::start(&format!("databaseURL: \"{scheme}://{}\"", relay.addr), "").await?;
    let mut agent = aggregator.agent().await?;
    let mut seed = 362_436_069;
    for round in 1..=20 {
        // A commit of so many rows has some 100 kB.
        let cut = match round % 2 {
            0 => Cut::Amid(5_000 + draw(&mut seed, 60_000)),
            _ => Cut::Answer(20_000),
        };
        relay.cut(cut);
        let flows = (round - 1) * FLOWS..round * FLOWS;
        agent.send(flows.map(|flow| record(flow as u32))).await?;
        aggregator.until("delivered_total", round * FLOWS)?;
        ensure!(relay.cuts() == round as usize, "round {round} was not cut");
    }
    ensure!(aggregator.sink("failures_total")? == 20, "each cut is one failure");
    aggregator.stop().await?;
    whole(&server, 20 * FLOWS, age == Age::Modern)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_amid_a_commit_costs_and_doubles_no_row() -> Result<()> {
    cuts(Age::Modern, "tcp").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_amid_a_request_costs_and_doubles_no_row() -> Result<()> {
    cuts(Age::Modern, "http").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_server_has_every_row_at_least_once() -> Result<()> {
    cuts(Age::Old, "tcp").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_away_costs_what_the_queue_does_not_hold_and_nothing_else() -> Result<()> {
    let certificates = Certificates::new()?;
    let mut server = ClickHouse::start(Age::Modern, &certificates)?;
    server.kill();
    let settings = format!("queue: 3000, databaseURL: \"tcp://{}\"", server.addr("tcp"));
    let aggregator = Aggregator::start(&settings, "").await?;
    let mut agent = aggregator.agent().await?;
    for begin in (0..5_000).step_by(100) {
        agent.send((begin..begin + 100).map(record)).await?;
    }
    aggregator.until("failures_total", 2)?;
    aggregator.until("dropped_total", 2_000)?;
    server.start_again()?;
    let dropped = aggregator.sink("dropped_total")?;
    aggregator.until("delivered_total", 5_000 - dropped)?;
    aggregator.stop().await?;
    let [count, newest] =
        ["count()", "max(packetTotalCount)"].map(|what| server.number(&format!("SELECT toString({what}) FROM flows")));
    // Whole batches go, so that it may be some more.
    ensure!(count? == 5_000 - dropped && (2_000..5_000).contains(&dropped), "{dropped} dropped");
    ensure!(newest? == 5_000, "the newest flow stays");
    Ok(())
}
