//! Test programs: built as the user, run as the user or as root, their results counted.

use crate::artifacts::{self, Executable};
use crate::count::{Count, Reader};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Whose rights a test program gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    User,
    Root,
}

/// A test program.
pub(super) struct Binary(Executable);

/// Builds what `cargo test` with these arguments would run, and names it.
pub(super) fn build(args: &[&str]) -> Result<Vec<Binary>> {
    let built = artifacts::executables(shell::cargo().args(["test", "--no-run"]).args(args))?;
    Ok(built.into_iter().filter(|executable| executable.is_test).map(Binary).collect())
}

impl Binary {
    /// The name of the test's file, or of the crate.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs it; its failures are counted, and an error only if it did not come to its summary.
    pub(super) fn run(&self, rights: As) -> Result<Count> {
        let mut command = match rights {
            As::User => Command::new(&self.0.file),
            As::Root => shell::privileged(&self.0.file)?,
        };
        println!("   {}", self.0.name);
        let count = count(command.current_dir(&self.0.folder));
        Ok(count.with_context(|| format!("the tests of {}", self.0.name))?.of(&self.0.name))
    }
}

/// Runs a command that prints libtest's summaries, shows what it prints and adds them up.
pub(super) fn count(command: &mut Command) -> Result<Count> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut reader = Reader::default();
    for line in BufReader::new(child.stdout.take().context("the tests' output")?).lines() {
        let line = line?;
        println!("{line}");
        reader.line(&line);
    }
    let status = child.wait()?;
    if reader.summaries == 0 || (!status.success() && reader.count.failed == 0) {
        bail!("{} ended with {status}", shell::line(command));
    }
    Ok(reader.count)
}
