//! How the kernel's tick stands to its monotonic clock and to the time of day.
//!
//! The tick follows the monotonic clock exactly, so one measurement at the start holds: a tiny program reads both at one
//! moment, over some ticks. But the kernel counts a tick when its interrupt runs, and that may be late: on a virtual machine by
//! many. The coarse monotonic clock stands where that interrupt left it, so it never shows a tick that is not counted yet.

use super::{Clock, syscall};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};
use std::io;
use std::os::fd::BorrowedFd;

/// How long to watch: some ticks, of which one at least is seen as it begins.
const WATCH_NS: u64 = 50_000_000;
/// Clocks that are read within it are read at one moment.
const AT_ONCE_NS: u64 = 20_000;
const AT_ONCE_ATTEMPTS: u32 = 4;
const SECOND_NS: u64 = 1_000_000_000;

/// The tick's length, and when tick 0 of the present count began on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    pub(super) length_ns: u64,
    origin_ns: i64,
}

impl Tick {
    /// Runs the program `clock` over some ticks.
    pub(super) fn measure(program: &SchedClassifier, clocks: BorrowedFd<'_>) -> io::Result<Self> {
        let mut tick = Self { length_ns: length_ns(), origin_ns: i64::MAX };
        let begin = now(ClockId::Monotonic);
        loop {
            tick.note(read(program, clocks)?);
            if now(ClockId::Monotonic).saturating_sub(begin) >= WATCH_NS {
                return Ok(tick);
            }
        }
    }

    /// A reading lies within its tick or, where that is counted late, behind it: so the tick began at the latest then.
    fn note(&mut self, [tick, ns]: [u64; 2]) {
        let began_at_the_latest = ns.cast_signed().wrapping_sub(tick.wrapping_mul(self.length_ns).cast_signed());
        self.origin_ns = self.origin_ns.min(began_at_the_latest);
    }

    /// Ticks in so many milliseconds, at least one.
    pub(super) fn ticks(self, milliseconds: u32) -> u32 {
        let ticks = u64::from(milliseconds) * 1_000_000 / self.length_ns;
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
    }

    /// The tick that is so many milliseconds ahead.
    pub(super) fn ahead(self, milliseconds: u32) -> u64 {
        self.tick(now(ClockId::Monotonic)).cast_unsigned() + u64::from(self.ticks(milliseconds))
    }

    fn tick(self, monotonic_ns: u64) -> i64 {
        monotonic_ns.cast_signed().wrapping_sub(self.origin_ns).div_euclid(self.length_ns.cast_signed())
    }

    /// The clocks as they stand now: the tick is one that the kernel has counted.
    pub(super) fn clock(self) -> Clock {
        let tick = self.tick(now(ClockId::MonotonicCoarse));
        let (monotonic_ns, wall_ns) = monotonic_and_wall();
        let began_ns = self.origin_ns.wrapping_add(tick.wrapping_mul(self.length_ns.cast_signed()));
        let since_ns = monotonic_ns.saturating_sub(began_ns.cast_unsigned());
        let began_wall_ns = wall_ns.saturating_sub(since_ns);
        Clock::new(low_half(tick.cast_unsigned()), self.length_ns, began_ns.cast_unsigned(), began_wall_ns)
    }
}

/// A tick in nanoseconds: what the coarse clocks go on by, whatever the kernel was built with.
pub(crate) fn length_ns() -> u64 {
    nanos(clock_getres(ClockId::MonotonicCoarse)).max(1)
}

/// Values keep the low half of the tick.
pub(crate) fn low_half(tick: u64) -> u32 {
    u32::try_from(tick & u64::from(u32::MAX)).unwrap_or_default()
}

fn read(program: &SchedClassifier, clocks: BorrowedFd<'_>) -> io::Result<[u64; 2]> {
    // An Ethernet header and a byte: the least a test run takes.
    let options = TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() };
    program.test_run(options).map_err(io::Error::other)?;
    Ok(syscall::lookup(clocks, &0_u32)?.unwrap_or_default())
}

/// A clock's nanoseconds.
pub(crate) fn now(clock: ClockId) -> u64 {
    nanos(clock_gettime(clock))
}

/// The monotonic clock and the time of day at one moment: read again where much time passed between the two.
pub(crate) fn monotonic_and_wall() -> (u64, u64) {
    let read = || {
        let (before, wall, after) = (now(ClockId::Monotonic), now(ClockId::Realtime), now(ClockId::Monotonic));
        (after - before, (before, wall))
    };
    let mut best = read();
    for _ in 0..AT_ONCE_ATTEMPTS {
        if best.0 <= AT_ONCE_NS {
            break;
        }
        best = best.min(read());
    }
    best.1
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * SECOND_NS + u64::try_from(time.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK_NS: u64 = 4_000_000;
    const BEGAN_NS: u64 = 1_000_000;

    /// A reading so many nanoseconds after tick 4,294,967,290 (before the low half goes round) began, of a kernel that counts ticks late.
    fn reading(ns: u64, late_ns: u64) -> [u64; 2] {
        [4_294_967_290 + ns.saturating_sub(late_ns) / TICK_NS, BEGAN_NS + ns]
    }

    fn tick(readings: impl Iterator<Item = [u64; 2]>) -> Tick {
        let mut tick = Tick { length_ns: TICK_NS, origin_ns: i64::MAX };
        readings.for_each(|reading| tick.note(reading));
        tick
    }

    #[test]
    fn readings_give_the_origin() {
        let tick = tick((0..8_000).map(|n| reading(n * 7_001, 0)));
        let began = tick.origin_ns + (TICK_NS * 4_294_967_290).cast_signed();
        assert_eq!(began, BEGAN_NS.cast_signed());
        assert_eq!(tick.tick(BEGAN_NS + 5 * TICK_NS), 4_294_967_295);
        assert_eq!(u64::from(tick.ticks(2_000)), 500);
    }

    #[test]
    fn ticks_that_are_counted_late_are_not_shown_before() {
        let late = |ns: u64| if ns < 5 * TICK_NS { 6_000_000 } else { 100_000 };
        let tick = tick((2_000..8_000).map(|n| n * 7_001).map(|ns| reading(ns, late(ns))));
        let began = tick.origin_ns + (TICK_NS * 4_294_967_290).cast_signed();
        assert!((1_100_000..1_110_000).contains(&began), "{began}");
    }
}
