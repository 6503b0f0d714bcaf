//! One benchmark on another kernel, in a machine whose clock counts instructions: for what the kernel here cannot do.

use super::console::Console;
use super::kernels::{self, Wanted};
use super::machine::{self, Clock};
use super::{OVERHEAD, image, programs};
use crate::setup::{self, Need};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(1_200);

/// Builds a benchmark of flow-agent, runs it as root and shows what it prints; an error if it fails.
pub(crate) fn run(name: &str, kernel: Wanted) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Lab, Need::Vm])?;
    let kernels = kernels::find(&[kernel], false)?;
    let kernel = kernels.first().context("no such kernel")?;
    let (program, run) = programs::bench(name, LIMIT)?;
    let (folder, _lock) = super::folder(&format!("bench-{}", kernel.series()))?;
    image::write(&folder.join("image.cpio"), kernel, &[program], &[run])?;
    let mut console = Console::default();
    let mut passed = false;
    let limit = LIMIT + OVERHEAD;
    println!("on {kernel}, an instruction taking 2 ns:");
    let end = machine::boot(kernel, &folder, Clock::Instructions, limit, &mut |text| {
        if !text.starts_with("vm: ") && !console.groups.is_empty() {
            println!("{text}");
        }
        if let Some(group) = console.line(text, Instant::now()) {
            passed = group.exited_well();
        }
    })?;
    machine::results(kernel, &folder, limit, end)?;
    if !passed {
        bail!("the benchmark {name} failed on {kernel}");
    }
    Ok(())
}
