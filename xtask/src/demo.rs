//! `cargo xtask demo`: sets up what is missing and builds as the user, then becomes the lab's demo program, which needs root.

use crate::setup::{self, Need};
use crate::{build_ebpf, shell};
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

/// What `demo` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long traffic goes on.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Print one JSON document at the end instead of the table and the report.
    #[arg(long)]
    json: bool,
    /// Deliver into a ClickHouse as well, and compare its rows with the joined flows.
    #[arg(long)]
    clickhouse: bool,
}

/// Returns only if the demo could not be started: it takes this process's place, so that Ctrl-C and every end reach it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut demo = shell::privileged(shell::root().join("target/release/demo"))?;
    let mut needs = vec![Need::Build, Need::Lab];
    needs.extend(options.clickhouse.then_some(Need::ClickHouse));
    setup::ensure(&needs)?;
    build_ebpf::run(&build_ebpf::Options {})?;
    let packages = ["flow-agent", "flow-aggregator", "e2e", "interop"].map(|package| ["--package", package]);
    shell::run(shell::cargo().args(["build", "--release"]).args(packages.as_flattened()))?;
    demo.arg("--seconds").arg(options.seconds.to_string());
    if options.json {
        demo.arg("--json");
    }
    if options.clickhouse {
        demo.arg("--clickhouse");
    }
    Err(demo.exec()).context("cannot start target/release/demo")
}
