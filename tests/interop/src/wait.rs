//! Waiting on conditions with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// Names a number: how many times longer everything may take on this machine. Emulated ones set it.
const PATIENCE: &str = "TEST_PATIENCE";

/// Tries until it succeeds; at the deadline its last error is the answer.
pub fn eventually<T>(deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let patience = patience();
    // To look costs time as well, which those need that are waited for.
    let (deadline, pause) = (deadline * patience, PAUSE * patience * patience);
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => return Err(error).context(format!("still so after {deadline:?}")),
            Err(_) => thread::sleep(pause),
        }
    }
}

/// How many times longer everything may take on this machine.
pub fn patience() -> u32 {
    std::env::var(PATIENCE).ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}
