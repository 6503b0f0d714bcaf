//! Test programs: built as the user, run as the user or as root, their results counted.

use crate::artifacts::{self, Executable};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// What test programs said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

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
        count(command.current_dir(&self.0.folder)).with_context(|| format!("the tests of {}", self.0.name))
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
        if let Some(of_program) = summary(&line) {
            summaries += 1;
            count += of_program;
        }
    }
    let status = child.wait()?;
    if summaries == 0 || (!status.success() && count.failed == 0) {
        bail!("{} ended with {status}", shell::line(command));
    }
    Ok(count)
}

/// libtest's last line: `test result: ok. 12 passed; 0 failed; ...`
pub(crate) fn summary(line: &str) -> Option<Count> {
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
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::{Count, summary};

    #[test]
    fn libtest_s_summary_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.98s";
        assert_eq!(summary(line), Some(Count { passed: 12, failed: 3 }));
        assert_eq!(summary("test result_of_a_test ... ok"), None);
    }
}
