//! A point of wall-clock time as flows carry it.
//!
//! Takes and gives nanoseconds since 1970. Reads no clock: only the outermost layer of a program does, and passes the
//! value in.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970-01-01T00:00:00Z; until the year 2554.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Before every flow: what is said to have been so always is so from here on.
    pub const ZERO: Self = Self(0);

    /// From nanoseconds since 1970.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// From milliseconds since 1970.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// From whole seconds since 1970.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since 1970.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since 1970, rounded down.
    pub const fn millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Whole seconds since 1970, rounded down, as the wire's `dateTimeSeconds` (until 2106, then its greatest value).
    pub const fn seconds(self) -> u32 {
        let seconds = self.0 / 1_000_000_000;
        if seconds > u32::MAX as u64 { u32::MAX } else { seconds as u32 }
    }

    /// What passed since `earlier`; zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whether `span` has passed since `earlier`. A clock that was set back has made that the future: no one knows what passed, so it
    /// is enough.
    pub fn is_past(self, earlier: Self, span: Duration) -> bool {
        self < earlier || self.since(earlier) >= span
    }

    /// This much later.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos_of(duration)))
    }

    /// This much earlier; never before 1970.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos_of(duration)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, nanos_of))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_nanos(time.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let one = Timestamp::from_seconds(1);
        assert_eq!(one.minus(Duration::from_secs(2)), Timestamp::ZERO);
        assert_eq!(one.plus(Duration::MAX).nanos(), u64::MAX);
        assert_eq!(Timestamp::ZERO.since(one), Duration::ZERO);
        assert_eq!(Timestamp::from_nanos(u64::MAX).seconds(), u32::MAX);
        assert_eq!(Timestamp::from(SystemTime::from(one)), one);
    }

    #[test]
    fn a_span_is_past_at_its_end_and_where_the_clock_was_set_back() {
        let (then, span) = (Timestamp::from_seconds(100), Duration::from_secs(5));
        let is_past = |seconds| Timestamp::from_seconds(seconds).is_past(then, span);
        assert_eq!([99, 100, 104, 105].map(is_past), [true, false, false, true]);
    }
}
