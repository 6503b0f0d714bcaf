//! The two flow maps: sweeps in slices, single look-ups, deletions that lose nothing.

use super::load::map_error;
use super::syscall::{self, Plain};
use super::{Deleted, MapError, Slice, SweepProgress};
use flow_common::abi::{Direction, Flow, Key4, Key6};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Entries a system call: more changes nothing, fewer costs.
const BATCH: u32 = 1_024;
/// A bucket never holds so many.
const BATCH_LIMIT: u32 = 1 << 20;
/// How often a batch is tried again where the kernel could not take a bucket's lock.
const ATTEMPTS: u32 = 8;

/// Where the sweep stands, and the fill it found.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    cursor: Option<u32>,
    /// IPv6 comes after IPv4.
    second: bool,
    batch: u32,
    counted: [u64; 2],
    /// Entries of both maps in the last whole round.
    pub(super) fill: [u64; 2],
}

impl Sweep {
    /// Reads up to about `max` more entries.
    pub(super) fn slice(
        &mut self,
        flows4: &OwnedFd,
        flows6: &OwnedFd,
        max: usize,
        slice: &mut Slice,
    ) -> Result<SweepProgress, MapError> {
        slice.clear();
        while slice.keys4.len() + slice.keys6.len() < max {
            let more = if self.second {
                self.batch(flows6.as_fd(), &mut slice.keys6, &mut slice.flows6).map_err(map_error("sweep", "flows6"))?
            } else {
                self.batch(flows4.as_fd(), &mut slice.keys4, &mut slice.flows4).map_err(map_error("sweep", "flows4"))?
            };
            if more {
                continue;
            }
            self.cursor = None;
            self.second = !self.second;
            if !self.second {
                self.fill = std::mem::take(&mut self.counted);
                return Ok(SweepProgress::RoundComplete);
            }
        }
        Ok(SweepProgress::More)
    }

    /// One system call, tried again with more room or after a busy lock.
    fn batch<K: Plain>(&mut self, map: BorrowedFd<'_>, keys: &mut Vec<K>, flows: &mut Vec<Flow>) -> io::Result<bool> {
        let before = keys.len();
        let mut attempts = 0;
        self.batch = self.batch.max(BATCH);
        loop {
            let mut cursor = self.cursor;
            match syscall::lookup_batch(map, &mut cursor, self.batch, keys, flows) {
                Ok(more) => {
                    self.cursor = cursor;
                    self.counted[usize::from(self.second)] += (keys.len() - before) as u64;
                    return Ok(more);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.batch < BATCH_LIMIT => self.batch *= 2,
                Err(_) if attempts < ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Slice {
    pub(super) fn clear(&mut self) {
        self.keys4.clear();
        self.flows4.clear();
        self.keys6.clear();
        self.flows6.clear();
    }
}

/// Deletes the quiet ones of some keys of one map. `jiffies` is now, `silence` how long quiet is.
pub(super) fn delete<K: Plain>(
    map: &OwnedFd,
    keys: &[K],
    (jiffies, silence): (u32, u32),
    deleted: &mut Deleted,
    mut kept: impl FnMut(&mut Slice, K, Flow),
) -> io::Result<()> {
    for key in keys {
        let Some(flow) = syscall::lookup::<K, Flow>(map.as_fd(), key)? else { continue };
        if !is_quiet(&flow, jiffies, silence) {
            kept(&mut deleted.kept, *key, flow);
            continue;
        }
        let last = take(map.as_fd(), key)?.unwrap_or(flow);
        for (now, before) in last.direction.iter().zip(&flow.direction) {
            deleted.late_packets += now.packets.wrapping_sub(before.packets);
            deleted.late_bytes += now.bytes.wrapping_sub(before.bytes);
        }
        deleted.removed += 1;
    }
    Ok(())
}

/// Removes an entry and gives its last counters where the kernel can do both at once (5.14).
fn take<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<Flow>> {
    /// The kernel's own number for "not supported", which libc does not have.
    const ENOTSUPP: i32 = 524;
    match syscall::take(map, key) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL)) => {
            syscall::delete(map, key).map(|_| None)
        }
        result => result,
    }
}

fn is_quiet(flow: &Flow, jiffies: u32, silence: u32) -> bool {
    let quiet = |direction: &Direction| direction.owner == 0 || jiffies.wrapping_sub(direction.last) >= silence;
    flow.direction.iter().all(quiet)
}

/// One flow of one map.
pub(super) fn lookup<K: Plain>(map: &OwnedFd, name: &'static str, key: &K) -> Result<Option<Flow>, MapError> {
    syscall::lookup(map.as_fd(), key).map_err(map_error("look-up", name))
}

/// Appends an IPv4 flow.
pub(super) fn keep4(slice: &mut Slice, key: Key4, flow: Flow) {
    slice.keys4.push(key);
    slice.flows4.push(flow);
}

/// Appends an IPv6 flow.
pub(super) fn keep6(slice: &mut Slice, key: Key6, flow: Flow) {
    slice.keys6.push(key);
    slice.flows6.push(flow);
}
