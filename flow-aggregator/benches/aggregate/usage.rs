//! What a process has used so far, as the kernel tells of it, and waiting for what it does.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(300);
/// A look costs the process the writing of all its metrics.
const STEP: Duration = Duration::from_millis(100);

/// CPU seconds of a process, of all its threads, also of those that have ended.
pub(crate) fn cpu(process: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // utime and stime are the 12th and 13th behind the name.
    let (_, fields) = text.rsplit_once(')').context("no name")?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Bytes of its memory by this line of /proc/PID/status: `VmRSS` is resident now, `VmHWM` was at most.
pub(crate) fn memory(process: u32, line: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).context("no such line")?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(STEP);
    }
    Ok(())
}
