//! The agent as shipped, measured from outside: CPU a record from map to socket, CPU of new and of quiet flows, resident memory, and
//! whether every packet that was sent is in the records.
//!
//! Makes two network namespaces joined by a veth, runs the real binary in one of them with the default configuration against a TLS
//! collector, and sends UDP from the other. Needs root. Takes the namespaces away again.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark tells its figures")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

#[path = "agent/lab.rs"]
mod lab;
#[path = "agent/sender.rs"]
mod sender;
#[path = "agent/sink.rs"]
mod sink;

use lab::{Agent, Lab, Sink, finish};

/// How often the agent looks over all its flows.
const ROUND: u64 = 5;

#[derive(Parser)]
struct Options {
    /// Live flows.
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
    /// Seconds of the phase in which all of them are active.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Flows a second in the phase of new flows.
    #[arg(long, default_value_t = 5_000)]
    new: u32,
    /// Let the kernel track connections, as on a Node.
    #[arg(long)]
    conntrack: bool,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The processes beside the agent: this program again.
#[derive(Subcommand)]
enum Part {
    /// Sends UDP packets.
    Send(sender::Plan),
    /// Collects records by TLS and tells the sums every second.
    Sink(sink::Place),
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    match &options.part {
        Some(Part::Send(plan)) => sender::run(plan)?,
        Some(Part::Sink(place)) => sink::run(place)?,
        None => return measure(&options),
    }
    Ok(ExitCode::SUCCESS)
}

/// A figure, and what is wanted of it.
struct Figure {
    name: &'static str,
    measured: f64,
    unit: &'static str,
    at_most: f64,
}

fn measure(options: &Options) -> Result<ExitCode> {
    let lab = Lab::set_up(options.conntrack)?;
    let mut sink = Sink::start(&lab)?;
    let mut agent = Agent::start(&lab)?;
    let mut figures = Vec::new();
    let flows = f64::from(options.flows);

    eprintln!("no flows");
    std::thread::sleep(Duration::from_secs(2));
    let cpu = agent.cpu_ns()?;
    std::thread::sleep(Duration::from_secs(ROUND));
    let idle = agent.cpu_ns()? - cpu;

    eprintln!("all flows active");
    let warm_up = 2 * ROUND;
    let plan = sender::Plan::rounds(options.flows, ROUND, warm_up + options.seconds + 2);
    let sending = lab.send(&plan)?;
    std::thread::sleep(Duration::from_secs(warm_up));
    let (cpu, heard) = (agent.cpu_ns()?, sink.heard()?);
    std::thread::sleep(Duration::from_secs(options.seconds));
    let (cpu, records) = (agent.cpu_ns()? - cpu, sink.heard()?.records - heard.records);
    let mut sent = finish(sending)?;
    let peak = agent.peak_mib()?;
    figures.push(Figure { name: "peak resident memory, maps apart", measured: peak, unit: "MiB", at_most: 64.0 });
    ensure!(records > 0, "no record arrived within {} s", options.seconds);
    figures.push(Figure {
        name: "CPU a record, from map to socket",
        measured: cpu / records as f64,
        unit: "ns",
        at_most: 1_000.0,
    });

    eprintln!("all flows quiet");
    // Each flow is exported once more as idle, 15 s after its last packet; unanswered UDP is forgotten after 30 s.
    std::thread::sleep(Duration::from_secs(19));
    let (cpu, heard) = (agent.cpu_ns()?, sink.heard()?);
    std::thread::sleep(Duration::from_secs(ROUND));
    let (cpu, records) = (agent.cpu_ns()? - cpu, sink.heard()?.records - heard.records);
    let share = 100_000.0 / flows;
    figures.push(Figure {
        name: "CPU of looking over 100,000 quiet flows",
        measured: (cpu - idle) * share / 1e6,
        unit: "ms",
        at_most: 40.0,
    });
    ensure!(records < u64::from(options.flows) / 10, "{records} records of flows that should be quiet");

    eprintln!("new flows");
    std::thread::sleep(Duration::from_secs(15));
    let plan = sender::Plan::new_flows(options.new, options.seconds + ROUND);
    let sending = lab.send(&plan)?;
    std::thread::sleep(Duration::from_secs(ROUND));
    let cpu = agent.cpu_ns()?;
    std::thread::sleep(Duration::from_secs(options.seconds));
    let cpu = agent.cpu_ns()? - cpu;
    sent += finish(sending)?;
    let seconds = options.seconds as f64;
    figures.push(Figure {
        name: "CPU of new flows, part of a core",
        measured: cpu / seconds / 1e7,
        unit: "%",
        at_most: 2.0,
    });
    let peak = agent.peak_mib()?;
    let lost = Agent::lost(&lab)?;
    agent.stop()?;
    let heard = sink.last()?;
    report(&figures);
    println!("CPU without a flow, in {ROUND} s {:>34.1} ms, taken off the quiet flows'", idle / 1e6);
    println!(
        "packets in records {} of {sent} sent, in {} records; {lost} counted as lost",
        heard.packets, heard.records
    );
    println!("peak resident memory with the new flows beside them {peak:.1} MiB");
    ensure!(heard.packets + lost == sent, "{} packets are missing", sent.abs_diff(heard.packets + lost));
    let met = figures.iter().all(|figure| figure.measured <= figure.at_most);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(figures: &[Figure]) {
    for Figure { name, measured, unit, at_most } in figures {
        let verdict = if measured <= at_most { "met" } else { "MISSED" };
        println!("{name:<42} {measured:>8.1} {unit:<4} at most {at_most:>6.0}  {verdict}");
    }
}
