//! The demo as a user starts it: every figure right, and nothing left behind however it ends.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};

/// What comes after a kill comes at once, but the machine may be busy.
const SOON: Duration = Duration::from_secs(10);
/// Until the product runs in the demo's lab.
const STARTED: Duration = Duration::from_secs(60);

/// The demo, with scratch folders in a folder of this test's own.
fn demo(scratch: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(args).env("TMPDIR", scratch).stdin(Stdio::null());
    command
}

/// The command lines of processes that have to do with the folder.
fn processes(scratch: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&*scratch.to_string_lossy()) {
            found.push(line);
        }
    }
    Ok(found)
}

fn nothing_is_left(scratch: &Path) -> Result<()> {
    eventually(SOON, || {
        let left: Vec<_> = std::fs::read_dir(scratch)?.collect();
        ensure!(left.is_empty(), "folders are left: {left:?}");
        let running = processes(scratch)?;
        ensure!(running.is_empty(), "processes are left: {running:#?}");
        Ok(())
    })
}

#[test]
fn every_figure_is_right_in_one_json_document() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let output = demo(scratch.path(), &["--seconds", "5", "--json"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| said.clone().into_owned())?;
    let wrong: Vec<_> = report["flows"].as_array().into_iter().flatten().filter(|flow| flow["right"] != true).collect();
    ensure!(output.status.success() && report["right"] == true, "{said}\n{wrong:#?}\n{:#}", report["interfaces"]);
    ensure!(report["flows"].as_array().is_some_and(|flows| flows.len() > 80), "{report}");
    nothing_is_left(scratch.path())
}

#[test]
fn a_killed_demo_leaves_nothing() -> Result<()> {
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        let scratch = tempfile::tempdir()?;
        let mut child = demo(scratch.path(), &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        runs(scratch.path())?;
        kill_process(Pid::from_child(&child), signal)?;
        ensure!(!child.wait()?.success(), "{signal:?} is no success");
        nothing_is_left(scratch.path()).with_context(|| format!("after {signal:?}"))?;
    }
    Ok(())
}

#[test]
fn a_part_that_dies_ends_the_demo_with_a_failure() -> Result<()> {
    // While it starts, and amid the traffic.
    for reached in [runs, has_records] {
        let scratch = tempfile::tempdir()?;
        let child = demo(scratch.path(), &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        reached(scratch.path())?;
        kill_agent(scratch.path())?;
        let said = ended_soon(child)?;
        ensure!(said.contains("flow-agent-node-a ended with"), "{said}");
        nothing_is_left(scratch.path())?;
    }
    Ok(())
}

/// Waits until both agents and the aggregator run.
fn runs(scratch: &Path) -> Result<()> {
    eventually(STARTED, || {
        let parts = processes(scratch)?.iter().filter(|line| line.contains(" run --config ")).count();
        ensure!(parts == 3, "{parts} parts of 3 run");
        Ok(())
    })
}

/// Waits until records of the traffic were delivered.
fn has_records(scratch: &Path) -> Result<()> {
    eventually(STARTED, || {
        let labs = std::fs::read_dir(scratch)?.collect::<Result<Vec<_>, _>>()?;
        let has_some =
            |lab: &std::fs::DirEntry| lab.path().join("joined.json").metadata().is_ok_and(|file| file.len() > 0);
        ensure!(labs.iter().any(has_some), "no record is in {labs:?}");
        Ok(())
    })
}

fn kill_agent(scratch: &Path) -> Result<()> {
    let conf = format!("{}/", scratch.display());
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let line =
            String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).unwrap_or_default()).into_owned();
        if line.contains(&conf) && line.contains("flow-agent-node-a.conf") {
            let pid = entry.file_name().to_string_lossy().parse().context("a process id")?;
            return Ok(kill_process(Pid::from_raw(pid).context("a process id")?, Signal::KILL)?);
        }
    }
    anyhow::bail!("node-a's agent does not run")
}

/// What it said, once it has ended: with a failure, and long before all would have been sent.
fn ended_soon(mut child: Child) -> Result<String> {
    eventually(2 * SOON, || {
        let status = child.try_wait()?.context("the demo goes on without its agent")?;
        ensure!(!status.success(), "the demo calls it a success");
        Ok(())
    })?;
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stderr).into_owned())
}
