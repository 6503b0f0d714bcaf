//! When the next part of a sweep is due. Takes the time and what was read, gives how much to read; a whole round takes one period, in
//! slices large enough that the caches stay warm and small enough that nothing else waits.

use std::time::Duration;

use flow_common::time::Timestamp;

/// Where the present round stands.
#[derive(Debug)]
pub(super) struct Pace {
    period: Duration,
    began: Timestamp,
    done: usize,
    complete: bool,
    /// Entries of the last whole round.
    expected: usize,
    /// The tick that was given a slice already.
    given: Timestamp,
}

impl Pace {
    /// Entries of a slice: smaller ones find cold caches after each pause.
    pub(super) const SLICE: usize = 8_192;

    /// Rounds of one period each.
    pub(super) fn new(period: Duration) -> Self {
        Self { period, began: Timestamp::ZERO, done: 0, complete: true, expected: 0, given: Timestamp::ZERO }
    }

    /// How many entries to read now, where `known` are known of; none if nothing is due. A round that is behind its time gets
    /// slices until it is done.
    pub(super) fn next(&mut self, now: Timestamp, known: usize) -> Option<usize> {
        if now < self.began {
            // The clock was set back: no one knows when the round began, so it did so now.
            self.began = now;
        }
        let elapsed = now.since(self.began);
        if self.complete {
            if elapsed < self.period {
                return None;
            }
            let on_time = self.began.plus(self.period);
            self.began = if now.since(on_time) < self.period { on_time } else { now };
            self.done = 0;
            self.complete = false;
        } else if elapsed < self.period && (self.done > self.due(elapsed, known) || self.given == now) {
            return None;
        }
        self.given = now;
        Some(Self::SLICE)
    }

    /// So many entries were read; `complete` if that ended the round.
    pub(super) fn read(&mut self, count: usize, complete: bool) {
        self.done += count;
        self.complete = complete;
        if complete {
            self.expected = self.done;
            self.done = 0;
        }
    }

    /// Whether a round just ended.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// How many round ends must be met until every entry was read from now on.
    pub(super) fn rounds_left(&self) -> usize {
        if self.complete { 1 } else { 2 }
    }

    /// Entries that should have been read by then; all of them a little before the period ends, so that two rounds do not meet.
    fn due(&self, elapsed: Duration, known: usize) -> usize {
        let part = elapsed.as_nanos().saturating_mul(self.expected.max(known) as u128)
            / (self.period * 9 / 10).as_nanos().max(1);
        usize::try_from(part).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(5);
    const TICK: Duration = Duration::from_millis(100);

    /// Reads a map of `entries` for `ticks`; gives the slices of each tick and the ticks at which rounds ended.
    fn drive(pace: &mut Pace, entries: usize, ticks: usize) -> (Vec<usize>, Vec<usize>) {
        let mut now = Timestamp::from_seconds(1_000);
        let (mut left, mut slices, mut ends) = (entries, Vec::new(), Vec::new());
        for tick in 0..ticks {
            let mut given = 0;
            while let Some(count) = pace.next(now, 0) {
                given += 1;
                let read = count.min(left);
                left -= read;
                pace.read(read, left == 0);
                if left == 0 {
                    left = entries;
                    ends.push(tick);
                }
            }
            slices.push(given);
            now = now.plus(TICK);
        }
        (slices, ends)
    }

    #[test]
    fn a_small_map_is_read_once_a_period() {
        let (slices, ends) = drive(&mut Pace::new(PERIOD), 1_000, 151);
        assert_eq!(ends, [0, 50, 100, 150]);
        assert_eq!(slices.iter().sum::<usize>(), 4);
    }

    #[test]
    fn a_large_map_is_spread_over_the_period() {
        let mut pace = Pace::new(PERIOD);
        let (slices, ends) = drive(&mut pace, 100_000, 200);
        assert!(slices.iter().skip(51).all(|slices| *slices <= 1), "{slices:?}");
        assert_eq!(ends.len(), 4);
    }

    #[test]
    fn entries_that_are_known_of_are_spread_in_the_first_round() {
        let mut pace = Pace::new(PERIOD);
        let mut now = Timestamp::from_seconds(1_000);
        let mut read = 0;
        while read < 100_000 {
            assert!(pace.next(now, 100_000).is_none_or(|count| {
                read += count;
                pace.read(count, read >= 100_000);
                true
            }));
            assert_eq!(pace.next(now, 100_000), None, "one slice a tick");
            now = now.plus(TICK);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_stops_no_round() {
        for entries in [1_000, 100_000] {
            let mut pace = Pace::new(PERIOD);
            let mut now = Timestamp::from_seconds(100_000);
            let (mut left, mut ends) = (entries, 0);
            for tick in 0..300 {
                if tick == 125 {
                    now = now.minus(Duration::from_secs(3_600));
                }
                while let Some(count) = pace.next(now, 0) {
                    let read = count.min(left);
                    left -= read;
                    pace.read(read, left == 0);
                    if left == 0 {
                        (left, ends) = (entries, ends + 1);
                    }
                }
                now = now.plus(TICK);
            }
            assert!((5..=7).contains(&ends), "{ends} rounds in six periods");
        }
    }

    proptest! {
        /// Whatever the size, a period sees a whole round, and never two more than that.
        #[test]
        fn a_round_a_period(entries in 1usize..3_000_000) {
            let mut pace = Pace::new(PERIOD);
            let (_, ends) = drive(&mut pace, entries, 500);
            prop_assert!((9..=10).contains(&ends.len()), "{} rounds in ten periods", ends.len());
        }
    }
}
