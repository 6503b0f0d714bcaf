//! What runs in the virtual machines: the product and its own tests, linked statically so that they need nothing there, in folders that are
//! to each other as cargo's are, so that the tests find the programs.

use crate::artifacts;
use crate::shell;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::time::Duration;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS_OF_TARGET: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
const STATIC: &str = "-C target-feature=+crt-static";
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
    on: On,
}

const LAB: [LabTest; 4] = [
    // How labs come and go is no matter of kernels, and takes long.
    LabTest { name: "lab", arguments: &["--skip", "two_labs"], limit: Duration::from_secs(600), on: TWO },
    LabTest {
        name: "traffic",
        // Its forty seconds are conntrack's, which no kernel has otherwise.
        arguments: &["--skip", "silent_for_40_seconds"],
        limit: Duration::from_secs(1_200),
        on: ALL,
    },
    LabTest {
        name: "overload",
        // The machine is the test's own.
        arguments: &["--ignored", "full_table"],
        limit: Duration::from_secs(600),
        on: ONE,
    },
    LabTest { name: "verify", arguments: &[], limit: Duration::from_secs(1_200), on: ONE },
];

/// What the programs do with single packets is the same wherever they load, which other tests see to.
const PACKETS: &str = "kernel_programs";

/// A part of one of flow-agent's programs that takes so long that it is ignored otherwise.
const LONG: (&str, &[&str]) = ("kernel_conntrack", &["--ignored", "ten_thousand"]);

/// The series that something runs on if nothing is chosen; none: all.
type On = &'static [&'static str];

const ALL: On = &[];
/// Between these two every rung of the conntrack hooks stands.
const TWO: On = &["5.10", "6.12"];
/// Here the default capabilities have hooks for beginnings and for ends.
const ONE: On = &["6.12"];

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
    /// By name, for whatever kernel.
    is_chosen: bool,
}

impl Run {
    /// Whether it is made on every kernel, the one that runs here among them.
    pub(super) fn is_everywhere(&self) -> bool {
        self.on.is_empty()
    }

    /// Whether it is made on the kernels of a series.
    pub(super) fn is_on(&self, series: &str) -> bool {
        self.is_chosen || self.is_everywhere() || self.on.contains(&series)
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
    Ok((program, Run { name: name.to_owned(), arguments: vec!["--bench".to_owned()], limit, on: ALL, is_chosen: true }))
}

/// Builds the chosen test programs (none: all) and what they need; `further` are arguments for each.
pub(super) fn build(only: &[String], further: &[String]) -> Result<(Vec<Program>, Vec<Run>)> {
    let chosen = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let lab: Vec<&LabTest> = LAB.iter().filter(|test| chosen(test.name)).collect();
    let mut cargo = shell::cargo();
    cargo.args(["build", "--quiet", "--profile", "vm", "--target", TARGET]);
    cargo.env(FLAGS_OF_TARGET, STATIC);
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
            let run = |on: On, arguments: &[&str]| Run {
                name: built.name.clone(),
                // What a test says, its features among it, is of interest where it passes too.
                arguments: std::iter::once("--show-output".to_owned())
                    .chain(arguments.iter().map(|word| (*word).to_owned()))
                    .chain(further.iter().cloned())
                    .collect(),
                is_chosen: !only.is_empty(),
                limit: test.map_or(KERNEL_LIMIT, |test| test.limit),
                on,
            };
            let of_kernel = if built.name == PACKETS { TWO } else { ALL };
            runs.push(run(test.map_or(of_kernel, |test| test.on), test.map_or(&[], |test| test.arguments)));
            let (name, arguments) = LONG;
            if built.name == name && further.is_empty() {
                runs.push(run(TWO, arguments));
            }
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
