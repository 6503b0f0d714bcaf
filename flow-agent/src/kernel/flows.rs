//! The two flow maps: sweeps in slices, single look-ups, deletions that lose nothing.

use super::load::map_error;
use super::syscall::{self, Plain};
use super::{Deleted, MapError, Slice, SweepProgress};
use flow_common::abi::{self, Direction, Flow, Key4, Key6};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Entries a system call: more changes nothing, fewer costs.
const BATCH: u32 = 1_024;
/// A bucket never holds so many.
const BATCH_LIMIT: u32 = 1 << 20;
/// How often a batch is tried again where the kernel could not take a bucket's lock.
const ATTEMPTS: u32 = 8;

/// Every so many rounds all entries are looked at, however long ago their last packet came.
const WHOLE_EVERY: u32 = 8;

/// Where the sweep stands, and the fill it found.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    cursor: Option<u32>,
    /// IPv6 comes after IPv4.
    second: bool,
    batch: u32,
    counted: [u64; 2],
    round: u32,
    /// Ticks at which this round and the two before began.
    began: [u32; 3],
    /// Entries of both maps in the last whole round.
    pub(super) fill: [u64; 2],
}

impl Sweep {
    /// Reads up to about `max` more entries.
    pub(super) fn slice(
        &mut self,
        flows4: &OwnedFd,
        flows6: &OwnedFd,
        jiffies: u32,
        max: usize,
        slice: &mut Slice,
    ) -> Result<SweepProgress, MapError> {
        slice.clear();
        if self.cursor.is_none() && !self.second {
            self.round = self.round.wrapping_add(1);
            self.began = [jiffies, self.began[0], self.began[1]];
        }
        while slice.read < max {
            let (read, more) = if self.second {
                self.batch(flows6.as_fd(), &mut slice.keys6, &mut slice.flows6).map_err(map_error("sweep", "flows6"))?
            } else {
                self.batch(flows4.as_fd(), &mut slice.keys4, &mut slice.flows4).map_err(map_error("sweep", "flows4"))?
            };
            slice.read += read;
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

    /// What was counted before this tick was given as it is by the round before the last, and by the last one: so an entry is looked at
    /// again once it has fallen silent. None in a round that gives all.
    fn given_before(&self) -> Option<u32> {
        let [.., before_last] = self.began;
        (self.round > 3 && !self.round.is_multiple_of(WHOLE_EVERY)).then_some(before_last)
    }

    /// One system call, tried again with more room or after a busy lock. Gives how many entries it read, and whether there are more.
    fn batch<K: Plain>(
        &mut self,
        map: BorrowedFd<'_>,
        keys: &mut Vec<K>,
        flows: &mut Vec<Flow>,
    ) -> io::Result<(usize, bool)> {
        let before = keys.len();
        let mut attempts = 0;
        self.batch = self.batch.max(BATCH);
        loop {
            let mut cursor = self.cursor;
            match syscall::lookup_batch(map, &mut cursor, self.batch, keys, flows) {
                Ok(more) => {
                    self.cursor = cursor;
                    let read = keys.len() - before;
                    self.counted[usize::from(self.second)] += read as u64;
                    if let Some(tick) = self.given_before() {
                        keep(keys, flows, before, |flow| !is_older(flow, tick));
                    }
                    return Ok((read, more));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.batch < BATCH_LIMIT => self.batch *= 2,
                Err(_) if attempts < ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Keeps of the entries from `first` on those that are wanted, in their order.
fn keep<K: Copy>(keys: &mut Vec<K>, flows: &mut Vec<Flow>, first: usize, wanted: impl Fn(&Flow) -> bool) {
    let mut kept = first;
    for at in first..keys.len() {
        if wanted(&flows[at]) {
            if kept < at {
                (keys[kept], flows[kept]) = (keys[at], flows[at]);
            }
            kept += 1;
        }
    }
    keys.truncate(kept);
    flows.truncate(kept);
}

/// Whether all that was counted is from before this tick.
fn is_older(flow: &Flow, tick: u32) -> bool {
    let is_older = |direction: &Direction| direction.owner == 0 || direction.last.wrapping_sub(tick).cast_signed() < 0;
    flow.direction.iter().all(is_older)
}

impl Slice {
    /// Empties it.
    pub fn clear(&mut self) {
        self.keys4.clear();
        self.flows4.clear();
        self.keys6.clear();
        self.flows6.clear();
        self.read = 0;
    }

    /// Appends an IPv4 flow.
    pub fn push4(&mut self, key: Key4, flow: Flow) {
        self.keys4.push(key);
        self.flows4.push(flow);
    }

    /// Appends an IPv6 flow.
    pub fn push6(&mut self, key: Key6, flow: Flow) {
        self.keys6.push(key);
        self.flows6.push(flow);
    }
}

/// Deletes the quiet ones of some keys of one map, if they hold no more than was `seen`. `jiffies` is now, `silence` how long quiet is.
pub(super) fn delete<K: Plain>(
    map: &OwnedFd,
    (keys, seen): (&[K], &[[u64; 4]]),
    (jiffies, silence): (u32, u32),
    deleted: &mut Deleted,
    mut kept: impl FnMut(&mut Slice, K, Flow),
) -> io::Result<()> {
    for (key, seen) in keys.iter().zip(seen) {
        let Some(flow) = syscall::lookup::<K, Flow>(map.as_fd(), key)? else { continue };
        // What fell silent since the last sweep may have counted before.
        if !is_quiet(&flow, jiffies, silence) || holds_more(&flow, seen) {
            kept(&mut deleted.kept, *key, flow);
            continue;
        }
        let last = take(map.as_fd(), key)?.unwrap_or(flow);
        for (now, before) in last.direction.iter().zip(&flow.direction) {
            deleted.late_packets += now.packets.wrapping_sub(before.packets);
        }
        deleted.removed += 1;
    }
    Ok(())
}

/// Removes an entry and gives its last counters where the kernel can do both at once (5.14).
pub(super) fn take<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    /// The kernel's own number for "not supported", which libc does not have.
    const ENOTSUPP: i32 = 524;
    match syscall::take(map, key) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL)) => {
            syscall::delete(map, key).map(|_| None)
        }
        result => result,
    }
}

fn holds_more(flow: &Flow, seen: &[u64; 4]) -> bool {
    flow.counters().iter().zip(seen).any(|(now, seen)| now > seen)
}

/// Packets may have come since `jiffies` was read.
fn is_quiet(flow: &Flow, jiffies: u32, silence: u32) -> bool {
    let quiet =
        |direction: &Direction| direction.owner == 0 || abi::ticks_since(direction.last, jiffies) >= i64::from(silence);
    flow.direction.iter().all(quiet)
}

/// One flow of one map.
pub(super) fn lookup<K: Plain>(map: &OwnedFd, name: &'static str, key: &K) -> Result<Option<Flow>, MapError> {
    syscall::lookup(map.as_fd(), key).map_err(map_error("look-up", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: u32 = 500;

    /// Whether an entry is quiet whose last packets came so many ticks before the clock was read.
    fn quiet_after(ticks: [i64; 2], jiffies: u32) -> bool {
        let direction = |ticks: i64| {
            let last = (i64::from(jiffies) - ticks).rem_euclid(1 << 32);
            Direction { owner: 1, last: u32::try_from(last).expect("a low half"), ..Direction::default() }
        };
        is_quiet(&Flow { direction: ticks.map(direction), ..Flow::default() }, jiffies, SILENCE)
    }

    #[test]
    fn an_entry_whose_packets_came_after_the_clock_was_read_is_not_quiet() {
        // The low half goes round between some of these.
        for jiffies in [0, 3, SILENCE, 1 << 31, u32::MAX] {
            for ahead in [1, 250, 1_000_000] {
                assert!(!quiet_after([-ahead, 1_000], jiffies), "{ahead} ticks ahead of {jiffies}");
            }
            assert!(!quiet_after([0, 1_000], jiffies) && !quiet_after([499, 500], jiffies));
            assert!(quiet_after([500, 1 << 20], jiffies));
            // Of a thousand ticks a second: 40 days.
            assert!(quiet_after([500, 3_456_000_000], jiffies));
        }
    }
}
