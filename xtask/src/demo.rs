//! `cargo xtask demo`.

use anyhow::Result;

/// What `demo` takes.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Runs it.
pub(crate) fn run(_options: &Options) -> Result<()> {
    Ok(())
}
