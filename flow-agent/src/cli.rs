//! The command line: `run`, `flows`, `top`, `drops`, `verify`, `doctor`, `detach`, `config`.
//!
//! Takes arguments; starts the agent, or asks the one that runs over its socket and prints what it says. Decides nothing about flows.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};

mod client;
pub mod doctor;
pub mod drops;
pub mod flows;
mod top;
pub mod verify;

use client::AskError;
use flow_common::cli::{filters, text};

use crate::api::Request;
use crate::config::{self, Config};

/// Observes the flows of this Node and exports them as IPFIX.
#[derive(Debug, Parser)]
#[command(name = "flow-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Observe and export until a signal ends it.
    Run(ConfigFile),
    /// Show live flows, or records as they are exported.
    Flows(flows::Options),
    /// Show the flows with the most traffic.
    Top(top::Options),
    /// Show what the kernel dropped and why, and the flows that did not come through.
    Drops(drops::Options),
    /// Compare what was counted of each connection with what connection tracking counted.
    Verify(verify::Options),
    /// Say whether the numbers can be believed, and what to do where they cannot.
    Doctor(doctor::Options),
    /// End the counting that goes on in the kernel without an agent. To be run in the agent's network namespace.
    Detach(ConfigFile),
    /// Check or print the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the file is good.
    Check(ConfigFile),
    /// Print every key with the value that the file, or its absence, gives it.
    Print(ConfigFile),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file; without it every key has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What `-o` takes where there is one thing to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: all that is known.
    Json,
}

/// Where the running agent is asked.
#[derive(Debug, Args)]
pub struct Socket {
    /// The agent's configuration file, for its apiSocket.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's socket.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(file) => run(&file),
        Command::Flows(options) => flows::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Drops(options) => drops::run(&options),
        Command::Verify(options) => verify::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Detach(file) => detach(&file),
        Command::Config(ConfigCommand::Check(file)) => check(&file),
        Command::Config(ConfigCommand::Print(file)) => print(&file),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do where even this cannot be written.
            let _ = writeln!(io::stderr(), "flow-agent: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(file: &ConfigFile) -> Result<ExitCode> {
    let config = load(file.config.as_deref())?;
    flow_common::daemon::log(&config.log_level)?;
    if !config.enabled() {
        tracing::info!("flowExporter.enable is false: nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(crate::pipeline::run(config))?;
    Ok(ExitCode::SUCCESS)
}

fn detach(file: &ConfigFile) -> Result<ExitCode> {
    let config = read_or_default(file)?;
    // Without a place to be kept in, nothing but its socket tells that the programs are an agent's.
    match client::ask(&config.api_socket, &Request::Doctor) {
        Err(AskError::Nobody(_)) => {}
        _ => bail!("an agent answers at {}: end it first", config.api_socket.display()),
    }
    let count = crate::kernel::detach(&config.pin_path)?;
    put(if count > 0 { "The programs are detached, and their maps are gone.\n" } else { "Nothing was kept.\n" })?;
    Ok(ExitCode::SUCCESS)
}

fn check(file: &ConfigFile) -> Result<ExitCode> {
    let config = load(file.config.as_deref())?;
    if let Some(files) = config.tls_files() {
        flow_common::net::TlsClient::load(&files)?;
    }
    put("The configuration is good.\n")?;
    Ok(ExitCode::SUCCESS)
}

fn print(file: &ConfigFile) -> Result<ExitCode> {
    put(&flow_common::config::print(&read_or_default(file)?))?;
    Ok(ExitCode::SUCCESS)
}

/// What a file says; without one the defaults, which alone would lack the files of TLS.
fn read_or_default(file: &ConfigFile) -> Result<Config> {
    match file.config.as_deref() {
        Some(path) => load(Some(path)),
        None => Ok(Config::default()),
    }
}

/// Reads the file, or takes the defaults; warnings go to standard error.
fn load(path: Option<&Path>) -> Result<Config> {
    let (name, text) = match path {
        None => ("defaults".to_owned(), String::new()),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let loaded = config::read(&name, &text).map_err(|problems| anyhow!("the configuration is refused:\n{problems}"))?;
    for warning in &loaded.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    Ok(loaded.settings)
}

impl Socket {
    /// The path: as given, as configured, or the default.
    fn path(&self) -> Result<PathBuf> {
        match (&self.socket, &self.config) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(_)) => Ok(load(self.config.as_deref())?.api_socket),
            (None, None) => Ok(Config::default().api_socket),
        }
    }
}

fn put(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// The error and its causes; most errors name their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
