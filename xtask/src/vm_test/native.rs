//! The same test programs on the kernel that runs here: one more row.

use super::console::Console;
use super::programs::{Program, Run};
use super::{Tested, tell};
use crate::shell;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

/// Runs them as root, one after the other.
pub(super) fn test(programs: &[Program], runs: &[Run]) -> Result<Tested> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let series = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let begun = Instant::now();
    let mut console = Console::default();
    // Some of the others want a machine of their own.
    for run in runs.iter().filter(|run| run.is_on("here")) {
        let program = programs
            .iter()
            .find(|program| program.is_test && program.name == run.name)
            .context("a run without its program")?;
        console.line(&format!("vm: begin {}", run.name), Instant::now());
        let mut command = shell::privileged("timeout")?;
        command.args(["-s", "KILL", &run.limit.as_secs().to_string()]).arg(&program.file).args(&run.arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        for line in BufReader::new(child.stdout.take().context("the tests' output")?).lines() {
            console.line(&line?, Instant::now());
        }
        let status = child.wait()?.code().map_or_else(|| "killed".to_owned(), |code| code.to_string());
        console.line(&format!("vm: status {status}"), Instant::now());
        if let Some(group) = console.line(&format!("vm: end {}", run.name), Instant::now()) {
            tell(release.trim(), group, false);
        }
    }
    Ok(Tested {
        name: release.trim().to_owned(),
        row: format!("{series}, where the table was written"),
        console,
        took: begun.elapsed(),
        failure: None,
    })
}
