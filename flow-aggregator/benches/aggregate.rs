//! What a record costs the aggregator, in CPU time and memory: as shipped over real sockets, and its table in memory.
//!
//! Two Nodes' agents send both halves of flows, in an order that is shuffled anew each round, of thousands of Pods, with
//! extended elements. Each case has a process of its own, so that none finds the memory of another.
//! Arguments: `flows=200000 rounds=5 pods=5000 case=tcp|tls|churn|foreign|memory|memory-churn` (all cases without one).

#[expect(dead_code, reason = "the codec's tests need more of it")]
#[path = "../../flow-common/tests/ipfix/build.rs"]
mod build;
#[path = "aggregate/foreign.rs"]
mod foreign;
#[path = "aggregate/load.rs"]
mod load;
#[path = "aggregate/memory.rs"]
mod memory;
#[expect(dead_code, reason = "the tests need more of it")]
#[path = "../tests/aggregator/process.rs"]
mod process;
#[path = "aggregate/shipped.rs"]
mod shipped;
#[path = "aggregate/usage.rs"]
mod usage;

use anyhow::{Result, ensure};
use flow_common::net::Protocol;
use load::Load;
use shipped::Senders;
use std::{io::Write, process::Command};

/// Bounds of the number of flows, by which the cost of a record must not grow.
const SIZES: [u32; 3] = [10_000, 200_000, 1_000_000];

fn main() -> Result<()> {
    let argument =
        |name: &str| std::env::args().find_map(|text| text.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    let number = |name: &str, default: u32| argument(name).map_or(Ok(default), |value| value.parse());
    let load = Load { flows: number("flows", 200_000)?, pods: number("pods", 5_000)?, ended: false };
    let rounds = number("rounds", 5)?;
    let Some(case) = argument("case") else { return all(&load, rounds) };
    let churn = Load { ended: true, ..load };
    let line = match case.as_str() {
        "tcp" => over_sockets(&load, rounds, Senders::Agents(Protocol::Tcp), Some(2.5))?,
        "tls" => over_sockets(&load, rounds, Senders::Agents(Protocol::Tls), Some(2.0))?,
        "churn" => over_sockets(&churn, rounds, Senders::Agents(Protocol::Tcp), Some(1.0))?,
        "foreign" => over_sockets(&load, rounds, Senders::Others, None)?,
        "memory" => in_memory(&load, rounds),
        "memory-churn" => in_memory(&churn, rounds),
        other => anyhow::bail!("no case {other}"),
    };
    Ok(writeln!(std::io::stdout(), "{case:<14}{line}")?)
}

/// Every case, each in a process of its own.
fn all(load: &Load, rounds: u32) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{} Pods, both halves, {rounds} rounds", load.pods * 2)?;
    let [small, middle, large] = SIZES;
    let cases = [
        ("tcp", load.flows),
        ("tls", load.flows),
        ("churn", load.flows),
        ("foreign", load.flows),
        ("tcp", large),
        ("memory", small),
        ("memory", middle),
        ("memory", large),
        ("memory-churn", middle),
    ];
    for (case, flows) in cases {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            format!("case={case}"),
            format!("flows={flows}"),
            format!("pods={}", load.pods),
            format!("rounds={rounds}"),
        ]);
        ensure!(command.status()?.success(), "{case} failed");
    }
    Ok(())
}

/// `target` in million records a CPU second, if there is one.
fn over_sockets(load: &Load, rounds: u32, senders: Senders, target: Option<f64>) -> Result<String> {
    let target = target.map_or_else(String::new, |target| format!(" (target {target})"));
    let figures = shipped::measure(load, rounds, senders)?;
    let [before, after, most] = figures.resident;
    let grown = after.saturating_sub(before) / u64::from(load.flows);
    Ok(format!(
        "{} flows: {:.2} M records a CPU second{target}, {:.0} ns each; {} in, {} joined out; \
         {grown} B a flow after the first round, {} tombstones, {} MiB resident at most",
        load.flows,
        figures.records as f64 / figures.cpu_seconds / 1e6,
        figures.cpu_seconds * 1e9 / figures.records as f64,
        figures.records,
        figures.joined,
        figures.tombstones,
        most >> 20,
    ))
}

fn in_memory(load: &Load, rounds: u32) -> String {
    let figures = memory::measure(load, rounds);
    let bytes = match load.ended {
        // The first round has made room for the flows that live at one time.
        true => format!("{} B a tombstone", figures.grown[1] / (load.flows * (rounds - 1)) as usize),
        false => format!("{} B a flow", figures.grown[0] / load.flows as usize),
    };
    format!(
        "{} flows: {:.0} ns a record in the first round, {:.0} later = {:.2} M a CPU second; {} in, {} out; {bytes}",
        load.flows,
        figures.first_ns,
        figures.later_ns,
        1000.0 / figures.later_ns,
        figures.received,
        figures.sent,
    )
}
