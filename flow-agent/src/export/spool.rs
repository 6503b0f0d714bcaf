//! Ended flows between their end and the time when the collector has surely used them.
//!
//! Takes records, gives those that the present connection has not carried yet. Bounded; keeps what was sent for a
//! while, because an acknowledgement by TCP does not mean that the collector used a record, and gives it once more on the
//! next connection. Sends nothing itself and reads no clock.

use std::collections::VecDeque;
use std::time::Duration;

use flow_common::time::Timestamp;

/// Records there is room for without growing.
const RESERVED: usize = 1 << 16;

/// A queue in order of arrival. What was sent at any time is always a part at its front, and what the present
/// connection carried a part at the front of that.
#[derive(Debug)]
pub(super) struct Spool<T> {
    records: VecDeque<Entry<T>>,
    capacity: usize,
    hold: Duration,
    /// Records at the front that some connection carried.
    sent: usize,
    /// Records at the front that the present connection carried.
    carried: usize,
}

#[derive(Debug)]
struct Entry<T> {
    record: T,
    /// When the last connection that carried it did.
    at: Timestamp,
}

impl<T> Spool<T> {
    /// For `capacity` records, each kept for `hold` after it was sent.
    pub(super) fn new(capacity: usize, hold: Duration) -> Self {
        // Memory comes with the records; growing by doubling would need it one and a half times over.
        let records = VecDeque::with_capacity(capacity.min(RESERVED));
        Self { records, capacity: capacity.max(1), hold, sent: 0, carried: 0 }
    }

    /// Takes a record. Gives the one that is lost by it: the oldest, if it was never sent.
    pub(super) fn push(&mut self, record: T) -> Option<T> {
        let lost = if self.records.len() < self.capacity { None } else { self.drop_oldest() };
        self.records.push_back(Entry { record, at: Timestamp::ZERO });
        lost
    }

    /// A new connection: everything is to be sent, what was sent on earlier ones again.
    pub(super) fn reconnected(&mut self) {
        self.carried = 0;
    }

    /// The next records that the present connection has not carried, oldest first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &T> {
        self.records.range(self.carried..).map(|entry| &entry.record)
    }

    /// The first `count` of [`Spool::waiting`] went out.
    pub(super) fn mark_sent(&mut self, count: usize, now: Timestamp) {
        let end = (self.carried + count).min(self.records.len());
        for entry in self.records.range_mut(self.carried..end) {
            entry.at = now;
        }
        self.carried = end;
        self.sent = self.sent.max(end);
    }

    /// Forgets what the present connection carried long enough ago. Not to be called without a connection: what a
    /// collector had when it went away may be needed when it is back.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while self.carried > 0 && self.records.front().is_some_and(|entry| now.since(entry.at) >= self.hold) {
            self.drop_oldest();
        }
    }

    /// Records in it.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Records that no connection carried yet.
    pub(super) fn unsent(&self) -> usize {
        self.records.len() - self.sent
    }

    fn drop_oldest(&mut self) -> Option<T> {
        let entry = self.records.pop_front()?;
        self.carried = self.carried.saturating_sub(1);
        if self.sent == 0 {
            return Some(entry.record);
        }
        self.sent -= 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_secs(90);

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        Reconnect,
        Send(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Push),
            1 => Just(Step::Reconnect),
            3 => (0usize..6).prop_map(Step::Send),
            1 => (0u64..120).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..200)
    }

    fn take(spool: &mut Spool<u32>, count: usize, now: Timestamp) -> Vec<u32> {
        let out: Vec<u32> = spool.waiting().take(count).copied().collect();
        spool.mark_sent(out.len(), now);
        out
    }

    proptest! {
        /// What leaves is what came, once a connection and in order; nothing is lost that was sent; the bound holds.
        #[test]
        fn nothing_is_lost_unsaid_or_sent_twice_on_a_connection(capacity in 1usize..12, steps in steps()) {
            let mut spool = Spool::new(capacity, HOLD);
            let (mut now, mut next) = (Timestamp::from_seconds(1_000), 0u32);
            let (mut ever, mut lost) = (HashSet::new(), HashSet::new());
            let mut this: Vec<u32> = Vec::new();
            for step in steps {
                match step {
                    Step::Push => {
                        if let Some(record) = spool.push(next) {
                            prop_assert!(!ever.contains(&record), "{record} was sent and is called lost");
                            lost.insert(record);
                        }
                        next += 1;
                    }
                    Step::Reconnect => {
                        spool.reconnected();
                        this.clear();
                    }
                    Step::Send(count) => this.extend(take(&mut spool, count, now)),
                    Step::Wait(seconds) => {
                        now = now.plus(Duration::from_secs(seconds));
                        spool.expire(now);
                    }
                }
                ever.extend(this.iter().copied());
                prop_assert!(this.is_sorted_by(|a, b| a < b));
                prop_assert!(spool.len() <= capacity);
                prop_assert_eq!(spool.unsent(), usize::try_from(next).unwrap() - ever.len() - lost.len());
            }
            prop_assert!(ever.is_disjoint(&lost));
            take(&mut spool, usize::MAX, now).into_iter().for_each(|record| { ever.insert(record); });
            prop_assert_eq!(ever.len() + lost.len(), usize::try_from(next).unwrap());
        }

        /// A record is there again on a new connection exactly if less than the hold passed while connected.
        #[test]
        fn sent_records_come_again_for_as_long_as_they_are_held(ages in proptest::collection::vec(0u64..200, 1..20)) {
            let mut spool = Spool::new(1_000, HOLD);
            let begin = Timestamp::from_seconds(1_000);
            let mut ages = ages;
            ages.sort_unstable_by(|a, b| b.cmp(a));
            let end = begin.plus(Duration::from_secs(200));
            let mut sent: HashMap<u32, u64> = HashMap::new();
            for (record, age) in (0u32..).zip(&ages) {
                spool.push(record);
                take(&mut spool, 1, end.minus(Duration::from_secs(*age)));
                sent.insert(record, *age);
            }
            spool.expire(end);
            spool.reconnected();
            let again: HashSet<u32> = take(&mut spool, usize::MAX, end).into_iter().collect();
            let young: HashSet<u32> = sent.iter().filter(|(_, age)| **age < 90).map(|(record, _)| *record).collect();
            prop_assert_eq!(again, young);
        }
    }

    #[test]
    fn sent_records_make_room_before_unsent_ones() {
        let now = Timestamp::from_seconds(1);
        let mut spool = Spool::new(3, HOLD);
        for record in 0..3 {
            assert_eq!(spool.push(record), None);
        }
        assert_eq!(take(&mut spool, 2, now), [0, 1]);
        assert_eq!([spool.push(3), spool.push(4)], [None, None], "0 and 1 were sent");
        assert_eq!(spool.push(5), Some(2), "2 never was");
        assert_eq!((spool.len(), spool.unsent()), (3, 3));
    }

    #[test]
    fn time_without_a_connection_does_not_count() {
        let now = Timestamp::from_seconds(1_000);
        let mut spool = Spool::new(3, HOLD);
        spool.push(7);
        take(&mut spool, 1, now);
        let later = now.plus(Duration::from_secs(3_600));
        spool.reconnected();
        spool.expire(later);
        assert_eq!(take(&mut spool, 1, later), [7], "the collector was away for an hour");
        spool.expire(later.plus(HOLD));
        assert_eq!(spool.len(), 0);
    }
}
