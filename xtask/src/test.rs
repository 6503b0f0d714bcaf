//! `cargo xtask test`: every check there is, cheapest first. A step that fails does not keep the later ones from running; a summary says
//! what became of each, and the exit status is success only if none failed.

use crate::count::Count;
use crate::setup::{self, Need};
use crate::{build_ebpf, shell, tidy, vm_test};
use anyhow::{Result, bail};
use binaries::As;
use std::time::{Duration, Instant};

mod binaries;

/// What `test` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only this step (repeatable).
    #[arg(long, value_name = "STEP")]
    only: Vec<Step>,
}

/// The steps in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// rustfmt on every file.
    Format,
    /// The architecture's invariants.
    Tidy,
    /// The kernel programs build.
    Ebpf,
    /// Every lint, as errors.
    Clippy,
    /// Unit tests, laws and documentation examples.
    Host,
    /// The kernel programs on real packets; needs root.
    Kernel,
    /// The product in the lab; needs root.
    Lab,
    /// Foreign collectors and exporters.
    Interop,
    /// ClickHouse servers, old and modern.
    Clickhouse,
    /// The kernel programs and the lab on other kernels.
    Vm,
}

const STEPS: [Step; 10] = [
    Step::Format,
    Step::Tidy,
    Step::Ebpf,
    Step::Clippy,
    Step::Host,
    Step::Kernel,
    Step::Lab,
    Step::Interop,
    Step::Clickhouse,
    Step::Vm,
];

/// The test programs of flow-agent that load kernel programs begin with this.
const KERNEL: &str = "kernel_";

/// The test programs of interop and e2e that run ClickHouse servers.
const CLICKHOUSE: &str = "clickhouse";

/// What became of a step.
struct Outcome {
    step: Step,
    took: Duration,
    count: Count,
}

/// Runs the steps and ends with the summary.
pub(crate) fn run(options: &Options) -> Result<()> {
    let chosen = |step: &Step| options.only.is_empty() || options.only.contains(step);
    let steps: Vec<Step> = STEPS.into_iter().filter(chosen).collect();
    let needed = |need: &Need| steps.iter().any(|step| step.needs().contains(need));
    let needs: Vec<Need> = Need::ALL.into_iter().filter(needed).collect();
    setup::ensure(&needs)?;
    if needs.contains(&Need::Build) && !steps.contains(&Step::Ebpf) {
        // Chosen steps find the kernel programs of this tree, not of an earlier one.
        build_ebpf::run(&build_ebpf::Options {})?;
    }
    let outcomes: Vec<Outcome> = steps.into_iter().map(outcome).collect();
    summary(&outcomes)
}

fn outcome(step: Step) -> Outcome {
    println!("\n== {step:?}");
    let begun = Instant::now();
    let count = step.run().unwrap_or_else(|error| failed(&error));
    Outcome { step, took: begun.elapsed(), count }
}

/// A check that came to no result.
fn failed(error: &anyhow::Error) -> Count {
    let said = format!("{error:#}");
    println!("{said}");
    Count::one_failed(&said)
}

impl Step {
    fn needs(self) -> &'static [Need] {
        match self {
            Step::Format | Step::Tidy => &[],
            Step::Clippy | Step::Ebpf | Step::Host | Step::Kernel => &[Need::Build],
            Step::Lab => &[Need::Build, Need::Lab],
            Step::Interop => &[Need::Build, Need::Lab, Need::Interop],
            // Its servers are fetched by the step itself: without a registry of npm the others run all the same.
            Step::Clickhouse => &[Need::Build, Need::Lab],
            Step::Vm => &[Need::Build, Need::Lab, Need::Vm],
        }
    }

    fn run(self) -> Result<Count> {
        match self {
            Step::Format => one(shell::run(shell::cargo().args(["fmt", "--all", "--check"]))),
            Step::Tidy => one(tidy::run()),
            Step::Ebpf => one(build_ebpf::run(&build_ebpf::Options {})),
            Step::Clippy => one(shell::run(shell::cargo().args([
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))),
            Step::Host => host(),
            Step::Kernel => tests(&["--package", "flow-agent"], |name| name.starts_with(KERNEL), As::Root),
            Step::Lab => {
                // The lab runs the programs as they are built.
                shell::run(shell::cargo().args(["build", "--quiet", "--workspace"]))?;
                tests(&["--package", "e2e"], |name| name != CLICKHOUSE, As::Root)
            }
            Step::Interop => {
                shell::run(shell::cargo().args(["build", "--quiet", "--workspace"]))?;
                tests(&["--package", "interop"], |name| name != CLICKHOUSE, As::Root)
            }
            Step::Clickhouse => {
                setup::ensure(&[Need::ClickHouse])?;
                shell::run(shell::cargo().args(["build", "--quiet", "--workspace"]))?;
                let mut count = tests(&["--package", "interop", "--test", CLICKHOUSE], |_| true, As::User)?;
                count += tests(&["--package", "e2e", "--test", CLICKHOUSE], |_| true, As::Root)?;
                Ok(count)
            }
            Step::Vm => vm_test::all(),
        }
    }
}

/// A step that is a single check.
fn one(result: Result<()>) -> Result<Count> {
    result.map(|()| Count::one_passed())
}

fn host() -> Result<Count> {
    let others = ["--workspace", "--exclude", "e2e", "--exclude", "interop"];
    let mut count = tests(&others, |name| !name.starts_with(KERNEL), As::User)?;
    count += binaries::count(shell::cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
    Ok(count)
}

/// Builds tests as the user and runs those that are chosen by name.
fn tests(package: &[&str], chosen: impl Fn(&str) -> bool, rights: As) -> Result<Count> {
    let mut count = Count::default();
    for binary in binaries::build(package)?.iter().filter(|binary| chosen(binary.name())) {
        // One that is broken does not keep the others from running.
        count += binary.run(rights).unwrap_or_else(|error| failed(&error));
    }
    Ok(count)
}

/// A line a step, one each that failed, and the closing line.
fn summary(outcomes: &[Outcome]) -> Result<()> {
    println!("\n{:10} {:>7} {:>7} {:>7}", "STEP", "PASSED", "FAILED", "TIME");
    let mut sum = Count::default();
    for Outcome { step, took, count } in outcomes {
        let name = format!("{step:?}");
        println!("{name:10} {:>7} {:>7} {:>6}s", count.passed, count.failed, took.as_secs());
        sum += count.clone().of(&name);
    }
    println!();
    sum.failures.iter().for_each(|failure| println!("failed: {failure}"));
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed > 0 {
        bail!("not every check passed");
    }
    Ok(())
}
