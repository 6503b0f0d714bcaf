//! `cargo xtask setup`.

use anyhow::Result;

/// What `setup` takes.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Runs it.
pub(crate) fn run(_options: &Options) -> Result<()> {
    Ok(())
}
