//! `cargo xtask build-ebpf`.

use anyhow::Result;

/// What `build-ebpf` takes.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Runs it.
pub(crate) fn run(_options: &Options) -> Result<()> {
    Ok(())
}

/// Builds everything.
pub(crate) fn build(_options: &Options) -> Result<()> {
    Ok(())
}
