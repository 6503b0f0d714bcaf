//! Where the built programs are: in the folder of the running one, as cargo puts them.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The path of a program that is built into the same folder as this one.
pub(crate) fn beside(program: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("the path of the running program")?;
    let mut folder = me.parent().context("the folder of the running program")?;
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(program);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace{}` first",
        path.display(),
        if folder.ends_with("release") { " --release" } else { "" }
    );
    Ok(path)
}
