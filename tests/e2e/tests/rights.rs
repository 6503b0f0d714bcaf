//! Agents with few capabilities: what each of them buys, and what the agent says where it is missing. Each test has a lab of its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::Lab;
use lab::cases::{self, Case, Item};
use lab::expect;
use lab::product::{Product, Settings, agent, default_capabilities};
use lab::topology::{Host, Node};
use lab::wait::eventually;

const EXPORTED: Duration = Duration::from_secs(60);

/// Runs the agents with these, and traffic that connection tracking sees to the packet; all of it must be told of exactly.
fn observed_with(capabilities: &'static [&'static str], check: impl FnOnce(&Product<'_>) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let product = Product::start(&lab, Settings { capabilities: Some(capabilities), ..Settings::default() })?;
    let items = [Item::ShortHttp, Item::KeptAliveHttp, Item::Udp, Item::Ping, Item::Refused];
    let done = cases::run(&lab, items.into_iter().flat_map(Case::of))?;
    let told = || expect::all_hold(&done, &lab.truth()?, &product.joined().records()?, product.missed_drops()?);
    eventually(EXPORTED, told).map_err(|error| product.with_logs(error))?;
    check(&product).map_err(|error| product.with_logs(error))
}

fn says(product: &Product<'_>, words: &[&str]) -> Result<()> {
    let screen = product.agent_cli(Node::A, &["doctor"])?;
    for words in words {
        ensure!(screen.contains(words), "no {words:?} in\n{screen}");
    }
    Ok(())
}

fn stands_on(product: &Product<'_>, feature: &str, rung: &str) -> Result<()> {
    let metrics = product.page(&Host::Node(Node::A), 10_359, "/metrics")?;
    let line = format!("flow_agent_feature{{feature=\"{feature}\",rung=\"{rung}\"}} 1");
    ensure!(metrics.contains(&line), "no {line} in\n{metrics}");
    Ok(())
}

#[test]
fn the_default_set_is_enough_for_everything() -> Result<()> {
    observed_with(default_capabilities()?, |product| {
        eventually(EXPORTED, || product.adds_up())?;
        let interfaces = product.facts(Node::A)?.interfaces;
        let rung = interfaces.iter().find_map(|it| it.attached.clone()).unwrap_or_default();
        stands_on(product, "tc", &rung)?;
        ensure!(product.log(&agent(Node::A))?.contains("drops are told of by"), "drops are not told of");
        Ok(())
    })
}

#[test]
fn without_bpf_connection_tracking_counts_and_says_why() -> Result<()> {
    observed_with(&["perfmon", "net_admin", "syslog"], |product| {
        stands_on(product, "tc", "none")?;
        says(product, &["packets counted by connection tracking", "not permitted to load kernel programs"])
    })
}

#[test]
fn without_perfmon_connection_tracking_counts_and_says_why() -> Result<()> {
    observed_with(&["bpf", "net_admin", "syslog"], |product| {
        stands_on(product, "tc", "none")?;
        says(product, &["packets counted by connection tracking"])
    })
}
