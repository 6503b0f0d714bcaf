//! `cargo xtask vm-test`: the tests of the kernel side and of the lab on Debian's kernels, each in a virtual machine. Takes series of
//! kernels, gives a line for each test program of each, a summary, and docs/kernels.md's table.

use crate::build_ebpf;
use crate::count::Count;
use crate::setup::{self, Need};
use crate::shell;
use anyhow::{Context, Result, bail};
use console::{Console, Group};
pub(crate) use kernels::Wanted;
use kernels::{Kernel, MATRIX};
use machine::Clock;
use programs::{Program, Run};
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

mod apt;
mod archive;
pub(crate) mod bench;
mod console;
mod docs;
mod image;
mod kernels;
mod machine;
mod native;
mod programs;

/// From the boot to the first run, and from the last to the end, of the slowest.
const OVERHEAD: Duration = Duration::from_secs(180);

/// Machines that run at one time.
const MACHINES: usize = 2;

/// How often a kernel is booted that the emulation halts: it stumbles over the code that a kernel patches while two processors run.
const ATTEMPTS: u32 = 4;

/// What `vm-test` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A series such as 6.12, or `newest`; none: 5.10, 6.1, 6.12, 6.18 and the newest there is.
    #[arg(value_name = "KERNEL")]
    kernels: Vec<Wanted>,
    /// Run only this test program (repeatable).
    #[arg(long, value_name = "TEST")]
    only: Vec<String>,
    /// Look for newer kernels than those that were fetched before.
    #[arg(long)]
    update: bool,
    /// Write what this run tells into the table of docs/kernels.md; without other arguments, the whole table, with a run on the kernel
    /// that runs here.
    #[arg(long)]
    write_docs: bool,
    /// Further arguments of the test programs, such as a part of a test's name.
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// What became of the tests on one kernel.
struct Tested {
    /// The kernel's release.
    name: String,
    /// What the table calls it.
    row: String,
    console: Console,
    took: Duration,
    failure: Option<String>,
}

impl Tested {
    fn count(&self) -> Count {
        let mut sum = Count::default();
        self.console.groups.iter().for_each(|group| sum += group.count());
        if let Some(failure) = &self.failure {
            sum += Count::one_failed(failure);
        }
        sum.of(&self.name)
    }
}

/// Runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let count = matrix(options)?;
    count.failures.iter().for_each(|failure| println!("failed: {failure}"));
    if count.failed > 0 {
        bail!("not every test passed");
    }
    Ok(())
}

/// Every test on every kernel, and the table against what they say.
pub(crate) fn all() -> Result<Count> {
    matrix(&Options { kernels: Vec::new(), only: Vec::new(), update: false, write_docs: false, arguments: Vec::new() })
}

fn matrix(options: &Options) -> Result<Count> {
    setup::ensure(&[Need::Build, Need::Lab, Need::Vm])?;
    let wanted = if options.kernels.is_empty() { &MATRIX[..] } else { &options.kernels };
    let kernels = kernels::find(wanted, options.update)?;
    build_ebpf::run(&build_ebpf::Options {})?;
    let (programs, runs) = programs::build(&options.only, &options.arguments)?;
    let mut tested = side_by_side(&kernels, |kernel| {
        let runs: Vec<Run> = runs.iter().filter(|run| run.is_on(&kernel.series())).cloned().collect();
        test(kernel, &programs, &runs, kernels.len() == 1 && runs.len() == 1)
    })?;
    let all_tests = options.only.is_empty() && options.arguments.is_empty();
    if options.write_docs && options.kernels.is_empty() && all_tests {
        tested.push(native::test(&programs, &runs)?);
    }
    let mut count = summary(&tested);
    let rows: Vec<docs::Row> = tested.iter().map(|it| (it.row.clone(), it.console.features.clone())).collect();
    if options.write_docs && count.failed == 0 {
        docs::write(&rows, all_tests && options.kernels.is_empty())?;
        println!("\nvm-test: wrote docs/kernels.md");
    }
    if all_tests && count.failed == 0 {
        count += differences(&rows)?;
    }
    Ok(count)
}

/// A folder for a machine's files. Two of one name at one time would take them from each other.
fn folder(name: &str) -> Result<(PathBuf, File)> {
    let folder = shell::root().join("target/machines").join(name);
    std::fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        bail!("another run has a machine in {}: wait for its end", folder.display());
    }
    Ok((folder, lock))
}

/// Counts where docs/kernels.md says something else.
fn differences(rows: &[docs::Row]) -> Result<Count> {
    let mut count = Count::default();
    for difference in docs::differences(rows)? {
        count += Count::one_failed(&format!("{difference}; if the run is right, `cargo xtask vm-test --write-docs`"));
    }
    Ok(count)
}

/// Does something for each kernel, for a few at one time: much of what the tests do is waiting. The results are in the kernels' order.
fn side_by_side(kernels: &[Kernel], test: impl Fn(&Kernel) -> Result<Tested> + Sync) -> Result<Vec<Tested>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(kernel) = kernels.get(number) else { break done };
            done.push((number, test(kernel)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..MACHINES.min(kernels.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a panic is a fault of ours")).collect::<Vec<_>>()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, tested)| tested).collect()
}

fn test(kernel: &Kernel, programs: &[Program], runs: &[Run], verbose: bool) -> Result<Tested> {
    let (folder, _lock) = folder(&kernel.series())?;
    let begun = Instant::now();
    image::write(&folder.join("image.cpio"), kernel, programs, runs)
        .with_context(|| format!("the image for {kernel}"))?;
    let limit = runs.iter().map(|run| run.limit).sum::<Duration>() + OVERHEAD;
    let name = kernel.to_string();
    let mut attempts = 0;
    let (console, end) = loop {
        let mut console = Console::default();
        let end = machine::boot(kernel, &folder, Clock::Real, limit, &mut |text| {
            if verbose {
                println!("{text}");
            }
            if let Some(group) = console.line(text, Instant::now()) {
                tell(&name, group, verbose);
            }
        })?;
        attempts += 1;
        if !end.is_chance() || attempts == ATTEMPTS {
            break (console, end);
        }
        println!("vm-test: the emulation halted {kernel}; trying once more");
    };
    let ended = machine::results(kernel, &folder, limit, end);
    let failure = ended.err().map(|error| format!("{error:#}"));
    if let Some(failure) = &failure {
        println!("{failure}");
    }
    Ok(Tested { name, row: kernel.series(), console, took: begun.elapsed(), failure })
}

/// A line a test program; all that it said if it failed and has not been shown.
fn tell(kernel: &str, group: &Group, shown: bool) {
    // At once, as other machines speak as well.
    let lines = group.lines.iter().filter(|_| !group.passed() && !shown);
    let lines: String = lines.map(|line| format!("    {line}\n")).collect();
    let Group { name, took, .. } = group;
    let Count { passed, failed, .. } = group.count();
    let broken = group.broken().map(|why| format!(", {why}")).unwrap_or_default();
    println!("{lines}{kernel:16} {name:18} {passed:>3} passed, {failed} failed, {:>3} s{broken}", took.as_secs());
}

/// A line a kernel, and its features; gives the sum.
fn summary(tested: &[Tested]) -> Count {
    let mut sum = Count::default();
    println!("\n{:16} {:>7} {:>7} {:>7}", "KERNEL", "PASSED", "FAILED", "TIME");
    for tested in tested {
        let count = tested.count();
        println!("{:16} {:>7} {:>7} {:>6}s", tested.name, count.passed, count.failed, tested.took.as_secs());
        sum += count;
        for (feature, rung) in &tested.console.features {
            println!("    {feature}: {rung}");
        }
    }
    sum
}
