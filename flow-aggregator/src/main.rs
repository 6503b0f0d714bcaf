//! The aggregator's command line.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use flow_aggregator::{
    certs,
    config::{self, Config},
    pipeline::Pipeline,
};
use flow_common::{
    config::print,
    daemon::{Shutdown, log},
};
use std::{
    io::Write,
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
    /// Certificates for the agents' connections
    #[command(subcommand)]
    Certs(Certs),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
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

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
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
        Command::Certs(Certs::Init(options)) => {
            for made in certs::init(&options, SystemTime::now())? {
                let done = if made.new { "made" } else { "kept" };
                say(&format!("{done} {}", made.cert.display()))?;
            }
            Ok(())
        }
        Command::Config(ConfigCommand::Check(file)) => {
            let (_, warnings) = load(&file)?;
            warnings.iter().try_for_each(|warning| say(warning))?;
            say("the configuration is good")
        }
        Command::Config(ConfigCommand::Print(File { config: None })) => say(print(&Config::default()).trim_end()),
        Command::Config(ConfigCommand::Print(file)) => say(print(&load(&file)?.0).trim_end()),
    }
}

fn run(file: &File) -> Result<()> {
    let (config, warnings) = load(file)?;
    let level = log(&config.log_level)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads")?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("cannot wait for signals")?;
        let mut pipeline = Pipeline::bind(config).await?.log(level);
        if let Some(path) = &file.config {
            pipeline = pipeline.follow(path.clone());
        }
        pipeline.run(shutdown).await
    });
    runtime.shutdown_timeout(LAST_TASKS);
    ended
}

fn load(file: &File) -> Result<(Config, Vec<String>)> {
    let (name, text) = match &file.config {
        None => ("flow-aggregator.conf", String::new()),
        Some(path) => {
            (shown(path), std::fs::read_to_string(path).with_context(|| format!("cannot read {}", shown(path)))?)
        }
    };
    let loaded = config::read(name, &text)?;
    Ok((loaded.settings, loaded.warnings.iter().map(ToString::to_string).collect()))
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap_or("the configuration file")
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to the standard output")
}
