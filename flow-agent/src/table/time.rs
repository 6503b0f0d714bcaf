//! How the table reckons with time: by a clock that may be set back, and with packets that come while it looks.

use flow_common::abi;

/// How long after the end packets still are strays of the connection that ended.
pub(super) const STRAYS_NS: u64 = abi::SILENCE_MS as u64 * 1_000_000;

/// What passed since then. A packet may have come a moment after the time was read: nothing passed. A clock that was set back has made
/// `then` the future: no one knows what passed, so it is long enough.
#[inline]
pub(super) fn since(now_ns: u64, then_ns: u64) -> u64 {
    match now_ns.checked_sub(then_ns) {
        Some(passed_ns) => passed_ns,
        None if then_ns - now_ns < STRAYS_NS => 0,
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_moment_ahead_has_just_been_and_what_is_far_ahead_was_long_ago() {
        assert_eq!([7, 0].map(|then| since(7, then)), [0, 7]);
        assert_eq!([1, STRAYS_NS - 1].map(|ahead| since(7, 7 + ahead)), [0, 0]);
        assert_eq!([STRAYS_NS, 3 * STRAYS_NS].map(|ahead| since(7, 7 + ahead)), [u64::MAX; 2]);
    }
}
