//! How the kernel's tick stands to its monotonic clock and to the time of day.
//!
//! The tick follows the monotonic clock exactly, so one measurement at the start holds: a tiny program reads both at one
//! moment, over some ticks. But the kernel counts a tick when its interrupt runs, and that may be late: on a virtual machine by
//! many. The coarse monotonic clock stands where that interrupt left it, so it never shows a tick that is not counted yet.

use super::{Clock, syscall};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::BorrowedFd;

/// Ticks a second that kernels are built with.
const RATES: [u64; 4] = [100, 250, 300, 1_000];
/// How long to watch: so long that no two rates can be taken for each other, whatever part of a tick is cut off at both ends.
const WATCH_NS: u64 = 50_000_000;
/// How often to watch so long before giving up.
const ATTEMPTS: u64 = 60;
const SECOND_NS: u64 = 1_000_000_000;

/// The tick's length, and when tick 0 of the present count began on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    pub(super) length_ns: u64,
    origin_ns: i64,
}

impl Tick {
    /// Runs the program `clock` until the tick is known.
    pub(super) fn measure(program: &SchedClassifier, clocks: BorrowedFd<'_>) -> io::Result<Self> {
        let mut readings = vec![read(program, clocks)?];
        // A machine that was held up may show a tick that stands still and then runs: watch until it goes evenly.
        let begin = readings.first().map_or(0, |[_, ns]| *ns);
        for attempt in 1..=ATTEMPTS {
            while let Some([_, last]) = readings.last()
                && last.saturating_sub(begin) < WATCH_NS * attempt
            {
                readings.push(read(program, clocks)?);
            }
            if let Some(tick) = Self::of(&readings) {
                return Ok(tick);
            }
        }
        Err(io::Error::other("the kernel's tick does not advance evenly; is this machine out of CPU?"))
    }

    /// From pairs of tick and nanoseconds, in order.
    fn of(readings: &[[u64; 2]]) -> Option<Self> {
        let ([first_tick, first_ns], [last_tick, last_ns]) = (*readings.first()?, *readings.last()?);
        let length = last_ns.checked_sub(first_ns)?.checked_div(last_tick.checked_sub(first_tick)?)?;
        let length_ns = RATES.map(|rate| SECOND_NS / rate).into_iter().min_by_key(|tick| tick.abs_diff(length))?;
        if length.abs_diff(length_ns) > length_ns / 4 {
            return None;
        }
        // A reading lies within its tick, so the tick began at the latest then.
        let origins =
            readings.iter().map(|[tick, ns]| ns.cast_signed().wrapping_sub(tick.wrapping_mul(length_ns).cast_signed()));
        Some(Self { length_ns, origin_ns: origins.min()? })
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
        let (monotonic_ns, wall_ns) = (now(ClockId::Monotonic), now(ClockId::Realtime));
        let began_ns = self.origin_ns.wrapping_add(tick.wrapping_mul(self.length_ns.cast_signed()));
        let since_ns = monotonic_ns.saturating_sub(began_ns.cast_unsigned());
        let began_wall_ns = wall_ns.saturating_sub(since_ns);
        Clock::new(low_half(tick.cast_unsigned()), self.length_ns, began_ns.cast_unsigned(), began_wall_ns)
    }
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
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * SECOND_NS + u64::try_from(time.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of a kernel with this rate whose tick 4,294,967,290 (before the low half wraps) began at 1,000,000 ns.
    fn reading(rate: u64, ns: u64) -> [u64; 2] {
        [4_294_967_290 + (ns - 1_000_000) / (SECOND_NS / rate), ns]
    }

    #[test]
    fn readings_give_tick_and_origin() {
        for rate in RATES {
            let readings: Vec<_> = (0..=8_000).map(|n| reading(rate, 2_000_000 + n * 7_001)).collect();
            let tick = Tick::of(&readings).expect("it advances");
            assert_eq!(tick.length_ns, SECOND_NS / rate);
            let began = tick.origin_ns + (tick.length_ns * 4_294_967_290).cast_signed();
            assert!((1_000_000..1_010_000).contains(&began), "{began}");
            assert_eq!(u64::from(tick.ticks(2_000)), 2 * rate);
        }
    }

    #[test]
    fn two_readings_are_enough_for_the_rate() {
        for rate in RATES {
            for first in (2_000_000..15_000_000).step_by(100_000) {
                let tick = Tick::of(&[reading(rate, first), reading(rate, first + WATCH_NS)]);
                assert_eq!(tick.map(|tick| tick.length_ns), Some(SECOND_NS / rate));
            }
        }
    }

    #[test]
    fn a_tick_that_stands_still_is_none() {
        assert!(Tick::of(&[[5, 1], [5, 2], [5, 3]]).is_none());
    }

    #[test]
    fn a_tick_that_stood_still_for_a_while_is_none() {
        // 250 a second, but only three of twelve were made up for yet.
        assert!(Tick::of(&[[100, 0], [103, WATCH_NS]]).is_none());
    }
}
