//! `cargo xtask tidy`.

use anyhow::Result;

/// Runs it.
pub(crate) fn run() -> Result<()> {
    Ok(())
}
