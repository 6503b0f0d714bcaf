//! `flow-aggregator log-level`: from which level on the running aggregator logs.

use super::{
    client::{Server, block_on},
    say,
};
use anyhow::Result;
use serde::Deserialize;

/// What `log-level` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// error, warn, info, debug or trace, or by module: info,flow_aggregator::sinks=debug. It holds until the next
    /// restart, or until the configuration file's logLevel changes
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Deserialize)]
struct Level {
    level: String,
}

/// Asks and prints the level that holds.
pub(super) fn run(options: &Options) -> Result<()> {
    let client = options.server.client()?;
    let Level { level } = block_on(async {
        match &options.level {
            None => client.get("/loglevel").await,
            Some(level) => client.put("/loglevel", level).await,
        }
    })?;
    say(&level)
}
