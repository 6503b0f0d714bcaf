//! The lab's clients and servers: ordinary socket programs that say exactly what they did. `serve` listens on all of
//! the lab's ports; `ask` does one piece of traffic and prints a `Report` as a line of JSON.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod ask;
mod serve;
mod socket;

/// Clients and servers of the lab.
#[derive(Parser)]
#[command(name = "traffic")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Listen on every port of the lab's servers, say `ready` and serve until the end.
    Serve,
    /// Be a client once.
    Ask(ask::Options),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Serve => serve::run(),
        Command::Ask(options) => ask::run(&options),
    }
}
