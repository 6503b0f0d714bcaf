//! Executables that cargo built, by its own messages: their names, files and packages.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An executable.
pub(crate) struct Executable {
    /// The name of its target: a program's, a test's file, or the crate's.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) file: PathBuf,
    /// The folder of its package, where cargo runs tests.
    pub(crate) folder: PathBuf,
    /// Whether it is a test program rather than one of the product's.
    pub(crate) is_test: bool,
}

/// Runs a cargo command that builds, and names the executables there are then.
pub(crate) fn executables(cargo: &mut Command) -> Result<Vec<Executable>> {
    cargo.arg("--message-format=json-render-diagnostics");
    let mut child = cargo.stdout(Stdio::piped()).spawn()?;
    let mut executables = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo's output")?).lines() {
        executables.extend(executable(&line?));
    }
    if !child.wait()?.success() {
        bail!("{} failed", shell::line(cargo));
    }
    Ok(executables)
}

/// One line of cargo's messages.
fn executable(line: &str) -> Option<Executable> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(Executable {
        name: message["target"]["name"].as_str()?.to_owned(),
        file: message["executable"].as_str()?.into(),
        folder: Path::new(message["manifest_path"].as_str()?).parent()?.into(),
        is_test: message["profile"]["test"] == true,
    })
}
