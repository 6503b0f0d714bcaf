//! The demo with ClickHouse as a user starts it: its rows are the joined flows of real packets, and nothing is left behind.
//! A program of its own, as it needs a server that the other tests of the lab do without.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

#[test]
fn rows_are_the_joined_flows() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.args(["--seconds", "5", "--json", "--clickhouse"]).env("TMPDIR", scratch.path()).stdin(Stdio::null());
    let output = demo.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| said.clone().into_owned())?;
    let stored = &report["clickhouse"];
    ensure!(output.status.success() && stored["different"] == serde_json::json!([]), "{said}\n{stored}");
    ensure!(stored["flows"].as_u64() > Some(80) && stored["rows"].as_u64() >= stored["flows"].as_u64(), "{stored}");
    let left: Vec<_> = std::fs::read_dir(scratch.path())?.collect();
    ensure!(left.is_empty(), "folders are left: {left:?}");
    Ok(())
}
