//! The command line: `run`, `get`, `log-level`, `certs`, `config`.
//!
//! Takes arguments; starts the aggregator, or asks the one that runs over its API and prints what it says. Decides
//! nothing about flows.

mod client;
mod flows;
mod level;
mod numbers;

use crate::{
    certs,
    config::{self, Config},
    pipeline::Pipeline,
};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use flow_common::{
    config::print,
    daemon::{Shutdown, log},
};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// A sink that hangs in a system call cannot hold up the end of the process for longer.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Collects the agents' flow records, joins both Nodes' halves and delivers the result.
#[derive(Parser)]
#[command(name = "flow-aggregator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Collect, join and deliver until SIGINT or SIGTERM
    Run(File),
    /// Ask the aggregator that runs
    #[command(subcommand)]
    Get(Get),
    /// Show from which level on the running aggregator logs, or change it
    LogLevel(level::Options),
    /// Certificates for the agents' connections
    #[command(subcommand)]
    Certs(Certs),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum Get {
    /// Flows in the table, or records as they are exported
    #[command(visible_alias = "flowrecord")]
    Flowrecords(Box<flows::Options>),
    /// Numbers of records, flows and sinks
    #[command(visible_alias = "recordmetric")]
    Recordmetrics(numbers::Options),
    /// Packets and bytes that the agents account for
    Accounting(numbers::Options),
}

#[derive(Subcommand)]
enum Certs {
    /// Make a CA, a server pair and a client pair; what is there already is kept
    Init(certs::Options),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether the file is good
    Check(File),
    /// Show every value
    Print(File),
}

#[derive(clap::Args)]
struct File {
    /// The configuration file; without it every key has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever closed our standard error does not want to know.
            let _ = writeln!(std::io::stderr(), "flow-aggregator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(file) => run(&file),
        Command::Get(Get::Flowrecords(options)) => flows::run(&options),
        Command::Get(Get::Recordmetrics(options)) => numbers::record_metrics(&options),
        Command::Get(Get::Accounting(options)) => numbers::accounting(&options),
        Command::LogLevel(options) => level::run(&options),
        Command::Certs(Certs::Init(options)) => {
            for made in certs::init(&options, SystemTime::now())? {
                let done = if made.new { "made" } else { "kept" };
                say(&format!("{done} {}", made.cert.display()))?;
            }
            Ok(())
        }
        Command::Config(ConfigCommand::Check(file)) => {
            let (_, warnings) = load(file.config.as_deref())?;
            warnings.iter().try_for_each(|warning| say(warning))?;
            say("the configuration is good")
        }
        Command::Config(ConfigCommand::Print(File { config: None })) => say(print(&Config::default()).trim_end()),
        Command::Config(ConfigCommand::Print(file)) => say(print(&load(file.config.as_deref())?.0).trim_end()),
    }
}

fn run(file: &File) -> Result<()> {
    let (config, warnings) = load(file.config.as_deref())?;
    let level = log(&config.log_level)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads")?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("cannot wait for signals")?;
        let mut pipeline = Pipeline::bind(config, level).await?;
        if let Some(path) = &file.config {
            pipeline = pipeline.follow(path.clone());
        }
        pipeline.run(shutdown).await
    });
    runtime.shutdown_timeout(LAST_TASKS);
    ended
}

/// The configuration of the file, or of none, and what should be said about it.
fn load(file: Option<&Path>) -> Result<(Config, Vec<String>)> {
    let (name, text) = match file {
        None => ("flow-aggregator.conf".to_owned(), String::new()),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let loaded = config::read(&name, &text)?;
    Ok((loaded.settings, loaded.warnings.iter().map(ToString::to_string).collect()))
}

/// Whoever reads our output has had enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn put(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

fn say(line: &str) -> Result<()> {
    Ok(put(&format!("{line}\n"))?)
}
