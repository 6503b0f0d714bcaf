//! Test programs: built as the user, run as the user or as root, their results counted.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What test programs said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) passed: u32,
    pub(super) failed: u32,
}

/// Whose rights a test program gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    User,
    Root,
}

/// A test program.
pub(super) struct Binary {
    name: String,
    file: PathBuf,
    /// Cargo runs tests in the folder of their package.
    folder: PathBuf,
}

/// Builds what `cargo test` with these arguments would run, and names it.
pub(super) fn build(args: &[&str]) -> Result<Vec<Binary>> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]).args(args);
    let mut child = cargo.stdout(Stdio::piped()).spawn()?;
    let mut binaries = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo's output")?).lines() {
        binaries.extend(binary(&line?));
    }
    if !child.wait()?.success() {
        bail!("{} failed", shell::line(&cargo));
    }
    Ok(binaries)
}

/// One line of cargo's messages.
fn binary(line: &str) -> Option<Binary> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let file = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    Some(Binary { name: message["target"]["name"].as_str()?.to_owned(), file: file.into(), folder: folder.into() })
}

impl Binary {
    /// The name of the test's file, or of the crate.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs it; its failures are counted, and an error only if it did not come to its summary.
    pub(super) fn run(&self, rights: As) -> Result<Count> {
        let mut command = match rights {
            As::User => Command::new(&self.file),
            As::Root => shell::privileged(&self.file)?,
        };
        println!("   {}", self.name);
        count(command.current_dir(&self.folder)).with_context(|| format!("the tests of {}", self.name))
    }
}

/// Runs a command that prints libtest's summaries, shows what it prints and adds them up.
pub(super) fn count(command: &mut Command) -> Result<Count> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut count = Count::default();
    let mut summaries = 0;
    for line in BufReader::new(child.stdout.take().context("the tests' output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some((passed, failed)) = summary(&line) {
            summaries += 1;
            count.passed += passed;
            count.failed += failed;
        }
    }
    let status = child.wait()?;
    if summaries == 0 || (!status.success() && count.failed == 0) {
        bail!("{} ended with {status}", shell::line(command));
    }
    Ok(count)
}

/// `test result: ok. 12 passed; 0 failed; ...`
fn summary(line: &str) -> Option<(u32, u32)> {
    let mut words = line.strip_prefix("test result: ")?.split_whitespace();
    let mut number = |unit: &str| {
        let mut last = None;
        words.by_ref().find(|word| {
            let found = word.trim_end_matches(';') == unit;
            if !found {
                last = word.parse().ok();
            }
            found
        })?;
        last
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn libtest_s_summary_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.98s";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test result_of_a_test ... ok"), None);
    }
}
