//! `cargo xtask bench`.

use anyhow::Result;

/// What `bench` takes.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Runs it.
pub(crate) fn run(_options: &Options) -> Result<()> {
    Ok(())
}
