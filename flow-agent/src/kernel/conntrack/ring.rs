//! A ring of events, and until when all that happened has been read from it.
//!
//! A program takes a place on its ring, then looks at the clock, then writes; the reader gets no further than to the first place that is
//! still being written. That may last: the processor of a virtual machine stands still for as long as its host wants. So an event may
//! hide behind one that is not ready while younger ones, of another ring, are read. How long to wait for it no clock tells, but the ring
//! does: all that happened before a moment stands before the place that was the next one to take then.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, MapError, RingBuf};
use flow_common::abi::ConntrackEvent;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::ClockId;

use crate::kernel::clock::now;

/// What one CPU stored all others see by then; it takes them nanoseconds.
const STORED: Duration = Duration::from_micros(10);
/// How long a read waits for places that are not ready: whoever reads next judges flows by what was told up to now.
const PATIENCE: Duration = Duration::from_millis(50);
/// A program is done sooner, unless its processor stands still. It wakes nobody: that would cost every connection.
const PAUSE: Duration = Duration::from_micros(200);

/// Appends what can be read from some rings, after a wait for what is not ready but will be soon. Gives the time, by the monotonic clock,
/// until when that and what was read before is all there is: the time of the call, unless the wait was in vain.
pub(super) fn read<const N: usize>(mut rings: [&mut Ring; N], events: &mut Vec<ConntrackEvent>) -> u64 {
    let (at_ns, called) = (now(ClockId::Monotonic), Instant::now());
    while called.elapsed() < STORED {
        std::hint::spin_loop();
    }
    loop {
        let complete = rings.each_mut().map(|ring| ring.read(at_ns, events));
        let complete_ns = complete.into_iter().fold(at_ns, u64::min);
        if complete_ns == at_ns || called.elapsed() > PATIENCE {
            return complete_ns;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A ring and its reader.
pub(super) struct Ring {
    records: RingBuf<MapData>,
    positions: Positions,
    progress: Progress,
}

impl Ring {
    /// Reads the map.
    pub(super) fn new(map: OwnedFd) -> Result<Self, MapError> {
        let positions = Positions::of(&map).map_err(MapError::IoError)?;
        let records = RingBuf::try_from(Map::RingBuf(MapData::from_fd(map)?))?;
        Ok(Self { records, positions, progress: Progress::default() })
    }

    /// Appends what can be read. Gives the time until when that and what was read before is all there is: `at_ns`, which is now or a
    /// moment ago, or an earlier one while a place is not ready.
    fn read(&mut self, at_ns: u64, events: &mut Vec<ConntrackEvent>) -> u64 {
        self.progress.begin(at_ns, self.positions.taken());
        self.drain(events);
        self.progress.end(self.positions.read())
    }

    fn drain(&mut self, events: &mut Vec<ConntrackEvent>) {
        while let Some(item) = self.records.next() {
            if item.len() == size_of::<ConntrackEvent>() {
                // SAFETY: the length is an event's, and any bytes are one: integers only, no padding.
                events.push(unsafe { item.as_ptr().cast::<ConntrackEvent>().read_unaligned() });
            }
        }
    }
}

/// Until when all has been read.
#[derive(Debug, Default)]
struct Progress {
    /// A time, and the next place to take at that time, which the reader has yet to reach.
    ahead: Option<(u64, usize)>,
    complete_ns: u64,
}

impl Progress {
    /// Before reading. A place that the reader did not reach the last time stays the aim: where many write, some place is always not
    /// ready, but never the same for long.
    fn begin(&mut self, at_ns: u64, taken: usize) {
        self.ahead.get_or_insert((at_ns, taken));
    }

    /// After reading, with the reader's place. Positions go round.
    fn end(&mut self, read: usize) -> u64 {
        if let Some((at_ns, _)) = self.ahead.take_if(|(_, taken)| read.wrapping_sub(*taken).cast_signed() >= 0) {
            self.complete_ns = at_ns;
        }
        self.complete_ns
    }
}

/// The two pages that stand before a ring's records: how far it is read, and how far its places are taken.
struct Positions {
    pages: NonNull<u8>,
    page_bytes: usize,
}

// SAFETY: the pages belong to the process, and are read as atomics.
unsafe impl Send for Positions {}

impl Positions {
    fn of(map: &OwnedFd) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        // SAFETY: the kernel chooses the place.
        let pages = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), 2 * page_bytes, ProtFlags::READ, MapFlags::SHARED, map.as_fd(), 0)?
        };
        let pages = NonNull::new(pages.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { pages, page_bytes })
    }

    fn read(&self) -> usize {
        self.load(0)
    }

    fn taken(&self) -> usize {
        self.load(self.page_bytes)
    }

    fn load(&self, offset: usize) -> usize {
        // SAFETY: both pages are mapped as long as this lives, and each begins with a word that others only change atomically.
        unsafe { self.pages.add(offset).cast::<AtomicUsize>().as_ref().load(Ordering::Acquire) }
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`, and nothing refers to them any more.
        let _ = unsafe { rustix::mm::munmap(self.pages.as_ptr().cast(), 2 * self.page_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn complete(progress: &mut Progress, at_ns: u64, taken: usize, read: usize) -> u64 {
        progress.begin(at_ns, taken);
        progress.end(read)
    }

    #[test]
    fn what_is_read_to_its_end_is_complete() {
        let mut progress = Progress::default();
        assert_eq!(complete(&mut progress, SECOND, 0, 0), SECOND);
        assert_eq!(complete(&mut progress, 2 * SECOND, 800, 800), 2 * SECOND);
        // More came while it was read.
        assert_eq!(complete(&mut progress, 3 * SECOND, 1_600, 2_400), 3 * SECOND);
    }

    #[test]
    fn what_hides_behind_a_place_that_is_not_ready_is_waited_for() {
        let mut progress = Progress::default();
        assert_eq!(complete(&mut progress, SECOND, 800, 800), SECOND);
        // The place at 800 is being written: however long that lasts.
        for seconds in [2, 3, 100] {
            assert_eq!(complete(&mut progress, seconds * SECOND, 4_000, 800), SECOND);
        }
        // Of the places that were taken at the second look all are read now, of those since then not.
        assert_eq!(complete(&mut progress, 101 * SECOND, 8_000, 6_400), 2 * SECOND);
        assert_eq!(complete(&mut progress, 102 * SECOND, 8_000, 8_000), 102 * SECOND);
    }

    #[test]
    fn positions_go_round() {
        let mut progress = Progress::default();
        assert_eq!(complete(&mut progress, SECOND, 8, usize::MAX - 7), 0);
        assert_eq!(complete(&mut progress, 2 * SECOND, 16, 8), SECOND);
    }
}
