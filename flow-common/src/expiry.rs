//! Deadlines of many slots, in a ring of one-second buckets.
//!
//! Takes slot numbers (of whatever slab the caller has) and the second at which each is to be looked at again; gives
//! the slots whose second has come. A slot has one deadline at a time. Deadlines move lazily: a record of a flow
//! touches nothing here, the slot fires at the time that was right when it was scheduled, and the caller, which knows
//! the flow's times, either acts or schedules it again. So a slot may fire early, never late. Knows nothing of what
//! expires and reads no clock.

/// The value of `due` for a slot that has no deadline.
const NONE: u32 = u32::MAX;

/// A bucket that has held more than this gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 1024;

/// The ring. Seconds are those of any clock; one that is set back delays nothing, one that jumps ahead fires early.
#[derive(Debug)]
pub struct Expiry {
    /// Power of two in number. An entry whose `due` is another second than its bucket's is stale.
    buckets: Vec<Vec<u32>>,
    /// By slot: the ring's second in whose bucket its entry lies.
    due: Vec<u32>,
    /// The ring's second whose bucket is to be emptied next, from 1; all before are empty.
    next: u32,
    /// The caller's second at the ring's second 0.
    origin: i64,
    scheduled: usize,
}

impl Expiry {
    /// A ring that begins at `now` and holds deadlines up to `horizon` seconds ahead; later ones fire at the horizon.
    pub fn new(now: u32, horizon: u32) -> Self {
        let buckets = (horizon.clamp(1, 1 << 20) as usize + 1).next_power_of_two();
        Self {
            buckets: (0..buckets).map(|_| Vec::new()).collect(),
            due: Vec::new(),
            next: 1,
            origin: i64::from(now) - 1,
            scheduled: 0,
        }
    }

    /// Makes `slot` fire at second `at` at the latest (at the next call of [`Self::fire`] if that has passed). A
    /// deadline that it has already and that comes sooner stays: it fires then and can be moved.
    pub fn schedule(&mut self, slot: u32, at: u32) {
        let horizon = i64::from(self.next) + self.buckets.len() as i64 - 1;
        // Within [next, horizon], both of which fit.
        let at = (i64::from(at) - self.origin).clamp(i64::from(self.next), horizon) as u32;
        let index = slot as usize;
        if self.due.len() <= index {
            self.due.resize(index + 1, NONE);
        }
        let due = self.due[index];
        if due <= at {
            return;
        }
        self.scheduled += usize::from(due == NONE);
        self.due[index] = at;
        let bucket = self.bucket(at);
        self.buckets[bucket].push(slot);
    }

    /// Takes `slot`'s deadline away, as must be done before a slab gives the slot to something else that is scheduled
    /// later.
    pub fn cancel(&mut self, slot: u32) {
        if let Some(due) = self.due.get_mut(slot as usize)
            && *due != NONE
        {
            *due = NONE;
            self.scheduled -= 1;
        }
    }

    /// Moves up to `max` slots whose second is `now` or earlier to the end of `fired`; they have no deadline any
    /// more. True if there are more of them: call again when other work has had its turn.
    pub fn fire(&mut self, now: u32, max: usize, fired: &mut Vec<u32>) -> bool {
        let now = self.elapsed(now);
        let mut left = max;
        while self.next <= now {
            if self.scheduled == 0 {
                self.skip_to(now);
                return false;
            }
            let bucket = self.bucket(self.next);
            while let Some(&slot) = self.buckets[bucket].last() {
                let live = self.due[slot as usize] == self.next;
                if live && left == 0 {
                    return true;
                }
                self.buckets[bucket].pop();
                if live {
                    self.due[slot as usize] = NONE;
                    self.scheduled -= 1;
                    left -= 1;
                    fired.push(slot);
                }
            }
            self.buckets[bucket].shrink_to(KEPT_CAPACITY);
            self.next += 1;
        }
        false
    }

    /// How many slots have a deadline.
    pub fn len(&self) -> usize {
        self.scheduled
    }

    /// Whether no slot has a deadline.
    pub fn is_empty(&self) -> bool {
        self.scheduled == 0
    }

    /// The ring's second for the caller's `now`. Where the caller's clock went back, the origin goes with it.
    fn elapsed(&mut self, now: u32) -> u32 {
        let elapsed = i64::from(now) - self.origin;
        let latest = i64::from(self.next) - 1;
        if elapsed < latest {
            self.origin -= latest - elapsed;
        }
        // Below NONE even if the clock jumps over its whole range; a ring that old fires at once.
        elapsed.clamp(latest, i64::from(NONE - 1) - self.buckets.len() as i64) as u32
    }

    /// Passes the seconds up to `now` by moving the origin, so that the ring's seconds stay small however the clock
    /// jumps. Nothing is scheduled, so only stale entries can be there.
    fn skip_to(&mut self, now: u32) {
        for bucket in &mut self.buckets {
            bucket.clear();
            bucket.shrink_to(KEPT_CAPACITY);
        }
        self.origin += i64::from(now - self.next) + 1;
    }

    fn bucket(&self, second: u32) -> usize {
        second as usize & (self.buckets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOTHING: [u32; 0] = [];

    fn fire(ring: &mut Expiry, now: u32) -> Vec<u32> {
        let mut fired = Vec::new();
        assert!(!ring.fire(now, usize::MAX, &mut fired));
        fired.sort_unstable();
        fired
    }

    #[test]
    fn a_slot_fires_once_in_its_second() {
        let mut ring = Expiry::new(100, 60);
        ring.schedule(7, 105);
        assert_eq!(fire(&mut ring, 104), NOTHING);
        assert_eq!(fire(&mut ring, 105), [7]);
        assert_eq!(fire(&mut ring, 400), NOTHING);
        assert!(ring.is_empty());
    }

    #[test]
    fn the_sooner_deadline_counts_and_leaves_no_second_one() {
        let mut ring = Expiry::new(100, 60);
        ring.schedule(1, 150);
        ring.schedule(1, 110);
        ring.schedule(1, 130);
        assert_eq!(fire(&mut ring, 110), [1]);
        assert_eq!(fire(&mut ring, 200), NOTHING);
    }

    #[test]
    fn a_cancelled_slot_may_be_scheduled_later() {
        let mut ring = Expiry::new(100, 60);
        ring.schedule(1, 110);
        ring.cancel(1);
        ring.schedule(1, 120);
        assert_eq!(ring.len(), 1);
        assert_eq!(fire(&mut ring, 119), NOTHING);
        assert_eq!(fire(&mut ring, 120), [1]);
    }

    #[test]
    fn a_burst_comes_in_turns() {
        let mut ring = Expiry::new(0, 60);
        for slot in 0..10 {
            ring.schedule(slot, 5);
        }
        let mut fired = Vec::new();
        assert!(ring.fire(6, 4, &mut fired));
        assert!(ring.fire(6, 4, &mut fired));
        assert!(!ring.fire(6, 4, &mut fired));
        fired.sort_unstable();
        assert_eq!(fired, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn beyond_the_horizon_fires_early() {
        let mut ring = Expiry::new(0, 60);
        ring.schedule(1, 10_000);
        let early = (1..10_000).find(|&now| !fire(&mut ring, now).is_empty());
        assert!(early.is_some_and(|at| at >= 60), "{early:?}");
    }

    #[test]
    fn a_clock_set_back_delays_nothing() {
        let mut ring = Expiry::new(1_000_000, 60);
        assert_eq!(fire(&mut ring, 1_000_010), NOTHING);
        ring.schedule(1, 1_000_015);
        assert_eq!(fire(&mut ring, 5_000), NOTHING);
        assert_eq!(fire(&mut ring, 5_004), NOTHING);
        assert_eq!(fire(&mut ring, 5_005), [1]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Schedule(u32, u32),
        Cancel(u32),
        Pass(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..20u32, 0..70u32).prop_map(|(slot, wait)| Step::Schedule(slot, wait)),
            1 => (0..20u32).prop_map(Step::Cancel),
            3 => (0..100u32).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Up to the horizon the ring is a map of slot to second.
        #[test]
        fn equals_a_map(steps in prop::collection::vec(step(), 0..200), start in 0..u32::MAX / 2) {
            let (mut ring, mut model, mut now) = (Expiry::new(start, 120), BTreeMap::new(), start);
            fire(&mut ring, now);
            for step in steps {
                match step {
                    Step::Schedule(slot, wait) => {
                        ring.schedule(slot, now + wait);
                        // What is due already fires with the next second that passes.
                        let due = (now + wait).max(now + 1);
                        model.entry(slot).and_modify(|old: &mut u32| *old = due.min(*old)).or_insert(due);
                    }
                    Step::Cancel(slot) => {
                        ring.cancel(slot);
                        model.remove(&slot);
                    }
                    Step::Pass(seconds) => {
                        now += seconds;
                        let expected: Vec<u32> = model.iter().filter(|(_, at)| **at <= now).map(|(slot, _)| *slot).collect();
                        model.retain(|_, at| *at > now);
                        prop_assert_eq!(fire(&mut ring, now), expected);
                    }
                }
                prop_assert_eq!(ring.len(), model.len());
            }
        }

        /// Wherever the clock jumps, what is scheduled afterwards fires in its second.
        #[test]
        fn any_clock(clock in prop::collection::vec(0..u32::MAX / 2, 1..50)) {
            let mut ring = Expiry::new(clock[0], 60);
            for now in clock {
                fire(&mut ring, now);
                ring.schedule(1, now + 2);
                prop_assert_eq!(fire(&mut ring, now + 1), NOTHING);
                prop_assert_eq!(fire(&mut ring, now + 2), [1]);
            }
        }
    }
}
