//! What runs in the virtual machines: the product and its own tests, linked statically so that they need nothing there, in folders that are
//! to each other as cargo's are, so that the tests find the programs.

use crate::artifacts;
use crate::shell;
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::time::Duration;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Always the same, so that a choice of tests builds no crate anew.
const PACKAGES: [&str; 3] = ["flow-agent", "flow-aggregator", "e2e"];
/// The test programs of flow-agent that need no other program.
const KERNEL: &str = "kernel_";
/// How long one of those may take.
const KERNEL_LIMIT: Duration = Duration::from_secs(600);

/// A test program of the lab, and what of it runs under emulation.
struct LabTest {
    name: &'static str,
    /// Arguments of libtest.
    arguments: &'static [&'static str],
    limit: Duration,
}

const LAB: [LabTest; 2] = [
    // How labs come and go is no matter of kernels, and takes long.
    LabTest { name: "lab", arguments: &["--skip", "two_labs"], limit: Duration::from_secs(600) },
    LabTest {
        name: "traffic",
        // Its forty seconds are conntrack's, which no kernel has otherwise.
        arguments: &["--skip", "silent_for_40_seconds"],
        limit: Duration::from_secs(1_200),
    },
];

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
}

impl Run {
    /// As the machine's first process reads it.
    pub(super) fn line(&self) -> String {
        format!("{} {} {}", self.limit.as_secs(), self.name, self.arguments.join(" "))
    }
}

/// Builds the chosen test programs (none: all) and what they need; `further` are arguments for each.
pub(super) fn build(only: &[String], further: &[String]) -> Result<(Vec<Program>, Vec<Run>)> {
    let chosen = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let lab: Vec<&LabTest> = LAB.iter().filter(|test| chosen(test.name)).collect();
    let mut cargo = shell::cargo();
    cargo.args(["build", "--quiet", "--profile", "vm", "--target", TARGET]);
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    let all = [format!("{KERNEL}*")];
    let kernel_tests = if only.is_empty() { &all[..] } else { only };
    for name in kernel_tests.iter().filter(|name| name.starts_with(KERNEL)) {
        cargo.args(["--test", name]);
    }
    for test in &lab {
        cargo.args(["--test", test.name]);
    }
    if !lab.is_empty() {
        cargo.arg("--bins");
    }
    let mut programs = Vec::new();
    let mut runs = Vec::new();
    for built in artifacts::executables(&mut cargo)? {
        if built.is_test {
            let test = lab.iter().find(|test| test.name == built.name);
            let arguments = test.map_or(&[][..], |test| test.arguments).iter().map(|word| (*word).to_owned());
            runs.push(Run {
                name: built.name.clone(),
                // What a test says, its features among it, is of interest where it passes too.
                arguments: std::iter::once("--show-output".to_owned())
                    .chain(arguments)
                    .chain(further.iter().cloned())
                    .collect(),
                limit: test.map_or(KERNEL_LIMIT, |test| test.limit),
            });
        }
        programs.push(Program { name: built.name, file: built.file, is_test: built.is_test });
    }
    for name in only {
        ensure!(runs.iter().any(|run| run.name == *name), "there is no test program {name}");
    }
    // The quick ones first.
    runs.sort_by_key(|run| (run.limit, run.name.clone()));
    Ok((programs, runs))
}
