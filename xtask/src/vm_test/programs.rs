//! What runs in the virtual machines: the product and its own tests, linked statically so that they need nothing there, in folders that are
//! to each other as cargo's are, so that the tests find the programs.

use crate::artifacts;
use crate::shell;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS_OF_TARGET: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
const STATIC: &str = "-C target-feature=+crt-static";
/// Always the same, so that a choice of tests builds no crate anew.
const PACKAGES: [&str; 3] = ["flow-agent", "flow-aggregator", "e2e"];
/// A run of a test program, or of a part of it.
struct Planned {
    name: &'static str,
    /// Arguments of libtest: which of its tests.
    arguments: &'static [&'static str],
    on: On,
    limit: Duration,
}

/// The kernels that something runs on if it is not chosen by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    All,
    Only(&'static [&'static str]),
    /// On all others.
    Except(&'static [&'static str]),
}

/// Between these two every rung of the conntrack hooks stands, and every way to attach.
const TWO: &[&str] = &["5.10", "6.12"];

/// The quick ones first. Those of flow-agent that need no other program begin with [`KERNEL`].
const PLAN: [Planned; 12] = [
    planned("kernel_rights", &[], On::All, 600),
    planned("kernel_attach", &[], On::Only(TWO), 900),
    // Loading takes most of the time: all programs, all hooks, a restart.
    planned("kernel_attach", &["every_packet", "interfaces_are_attached", "what_is_kept"], On::Except(TWO), 600),
    planned("kernel_maps", &[], On::Only(TWO), 600),
    planned("kernel_conntrack", &[], On::All, 900),
    // They take so long that they are ignored otherwise.
    planned("kernel_conntrack", &["--ignored", "ten_thousand"], On::Only(TWO), 600),
    planned("kernel_drops", &[], On::All, 600),
    // What the programs do with single packets is the same wherever they load.
    planned("kernel_programs", &[], On::Only(TWO), 900),
    // How labs come and go is no matter of kernels.
    planned("lab", &["--skip", "two_labs"], On::Only(&["5.10"]), 600),
    // The forty seconds are conntrack's, which no kernel has otherwise.
    planned("traffic", &["--skip", "silent_for_40_seconds"], On::All, 1_200),
    // The machine is the test's own.
    planned("overload", &["--ignored", "full_table"], On::Only(&["6.12"]), 600),
    // Here the agent's default capabilities have hooks for beginnings and for ends.
    planned("verify", &[], On::Only(&["6.12"]), 1_200),
];

const KERNEL: &str = "kernel_";

const fn planned(name: &'static str, arguments: &'static [&'static str], on: On, seconds: u64) -> Planned {
    Planned { name, arguments, on, limit: Duration::from_secs(seconds) }
}

/// A program for the machine.
pub(super) struct Program {
    pub(super) name: String,
    pub(super) file: PathBuf,
    pub(super) is_test: bool,
}

/// A test program to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    pub(super) limit: Duration,
    on: On,
}

impl Run {
    /// Whether it is made on the kernels of a series; a name that no series has is the kernel that runs here.
    pub(super) fn is_on(&self, series: &str) -> bool {
        match self.on {
            On::All => true,
            On::Only(named) => named.contains(&series),
            On::Except(named) => !named.contains(&series),
        }
    }

    /// As the machine's first process reads it.
    pub(super) fn line(&self) -> String {
        format!("{} {} {}", self.limit.as_secs(), self.name, self.arguments.join(" "))
    }
}

/// Builds one of flow-agent's benchmarks, as it ships but for its libraries.
pub(super) fn bench(name: &str, limit: Duration) -> Result<(Program, Run)> {
    let mut cargo = shell::cargo();
    cargo.args(["bench", "--quiet", "--no-run", "--target", TARGET, "--package", "flow-agent", "--bench", name]);
    cargo.env(FLAGS_OF_TARGET, STATIC);
    let built = artifacts::executables(&mut cargo)?.into_iter().find(|built| built.name == name);
    let file = built.with_context(|| format!("cargo built no benchmark {name}"))?.file;
    let program = Program { name: name.to_owned(), file, is_test: true };
    Ok((program, Run { name: name.to_owned(), arguments: vec!["--bench".to_owned()], limit, on: On::All }))
}

/// Builds the chosen test programs (none: all) and what they need; `further` are arguments for each.
pub(super) fn build(only: &[String], further: &[String]) -> Result<(Vec<Program>, Vec<Run>)> {
    for name in only {
        ensure!(PLAN.iter().any(|planned| planned.name == name), "there is no test program {name}");
    }
    let plan = || PLAN.iter().filter(|planned| only.is_empty() || only.iter().any(|name| name == planned.name));
    let mut cargo = shell::cargo();
    cargo.args(["build", "--quiet", "--profile", "vm", "--target", TARGET]);
    cargo.env(FLAGS_OF_TARGET, STATIC);
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    for name in plan().map(|planned| planned.name).collect::<BTreeSet<_>>() {
        cargo.args(["--test", name]);
    }
    if plan().any(|planned| !planned.name.starts_with(KERNEL)) {
        cargo.arg("--bins");
    }
    let built = artifacts::executables(&mut cargo)?;
    let programs =
        built.into_iter().map(|built| Program { name: built.name, file: built.file, is_test: built.is_test });
    Ok((
        programs.collect(),
        plan().filter(|planned| is_made(planned, only)).map(|planned| run(planned, only, further)).collect(),
    ))
}

/// Of a program that is chosen by name the whole is run, on whatever kernel, or the part that there is.
fn is_made(planned: &Planned, only: &[String]) -> bool {
    let has_whole = PLAN.iter().any(|other| other.name == planned.name && other.arguments.is_empty());
    only.is_empty() || !has_whole || planned.arguments.is_empty()
}

fn run(planned: &Planned, only: &[String], further: &[String]) -> Run {
    // What a test says, its features among it, is of interest where it passes too.
    let arguments = std::iter::once("--show-output").chain(planned.arguments.iter().copied());
    Run {
        name: planned.name.to_owned(),
        arguments: arguments.map(ToOwned::to_owned).chain(further.iter().cloned()).collect(),
        limit: planned.limit,
        on: if only.is_empty() { planned.on } else { On::All },
    }
}
