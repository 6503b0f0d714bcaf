//! Sequence numbers of one observation domain (RFC 7011, section 3.1): how many data records were sent and did not come.
//!
//! A stream keeps the order, so that a gap is a loss at once. Datagrams may come late: a gap counts as lost once it was
//! not filled for a while. Of what comes late and fills no gap nobody knows whether it is a repeat or an exporter that
//! began anew, until a second message goes on where it ended.

use super::Counters;
use std::collections::VecDeque;

/// A message that is at most this many records behind is late; one further behind says that the exporter began anew.
const LATE: u32 = 65_536;
/// So many records are not lost at once: an exporter whose numbers jump so far began anew.
const MOST_LOST: u32 = 1 << 24;
/// Seconds that a datagram may come late.
const PATIENCE: u32 = 5;
/// Gaps that wait to be filled. More of them are no disorder but loss.
const GAPS: usize = 16;

/// What the next message's sequence number ought to be.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    last: Option<Last>,
    /// Above 0 where the exporter's numbers count a message's own records in, unlike the RFC's: go-ipfix's do, and so
    /// do those of Antrea's agents. Each message that fits one way alone moves it.
    inclusive: i8,
    /// Oldest first.
    gaps: VecDeque<Gap>,
    /// Where the message ended that came last of those that are behind and fill no gap.
    stray: Option<u32>,
}

/// The message before, as its header has it.
#[derive(Clone, Copy, Debug)]
struct Last {
    sequence: u32,
    records: u32,
}

/// Records that did not come yet.
#[derive(Clone, Copy, Debug)]
struct Gap {
    begin: u32,
    records: u32,
    since: u32,
}

/// A message's place in the sequence, and how it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Of its header.
    pub(super) sequence: u32,
    /// Data records in it.
    pub(super) records: u64,
    /// It holds further ones whose number nobody knows, because their template is missing.
    pub(super) uncounted: bool,
    /// When it came, in seconds.
    pub(super) now: u32,
    /// Datagrams may come late.
    pub(super) by_datagram: bool,
}

impl Sequence {
    /// A whole message came. Gives how many records are known to be lost since the message before.
    pub(super) fn end(&mut self, place: Place, counters: &mut Counters) -> u32 {
        let Place { sequence, uncounted, now, by_datagram, .. } = place;
        // A message has no room for more.
        let records = u32::try_from(place.records).unwrap_or(u32::MAX);
        let mut lost = self.settle(Some(now));
        let advances = match self.last {
            Some(last) => self.follow(last, Last { sequence, records }, now, counters),
            None => true,
        };
        if !by_datagram {
            lost = lost.saturating_add(self.settle(None));
        }
        if uncounted {
            self.last = None;
        } else if advances {
            self.last = Some(Last { sequence, records });
        }
        counters.lost += u64::from(lost);
        lost
    }

    /// The session is over: no gap is filled any more. Gives how many records are lost.
    pub(super) fn finish(&mut self) -> u32 {
        self.settle(None)
    }

    /// `false` if the message is behind the one before.
    fn follow(&mut self, last: Last, next: Last, now: u32, counters: &mut Counters) -> bool {
        let exclusive = next.sequence == last.sequence.wrapping_add(last.records);
        let inclusive = next.records > 0 && next.sequence == last.sequence.wrapping_add(next.records);
        if exclusive != inclusive {
            let known = self.inclusive;
            self.inclusive = (known + if inclusive { 1 } else { -1 }).clamp(-2, 2);
            // Where nothing is known either way is right; a gap may look like the other way by chance.
            if known == 0 || (known > 0) == inclusive {
                self.stray = None;
                return true;
            }
        }
        let (expected, begin) = match self.inclusive > 0 {
            true => (last.sequence, next.sequence.wrapping_sub(next.records)),
            false => (last.sequence.wrapping_add(last.records), next.sequence),
        };
        let (ahead, behind) = (begin.wrapping_sub(expected), expected.wrapping_sub(begin));
        if ahead == 0 {
            self.stray = None;
            true
        } else if ahead <= MOST_LOST {
            self.stray = None;
            self.gaps.push_back(Gap { begin: expected, records: ahead, since: now });
            true
        } else if behind <= LATE && self.is_late(begin, next.records) {
            counters.late += 1;
            false
        } else {
            counters.restarts += 1;
            self.stray = None;
            true
        }
    }

    /// A message behind others fills a gap, or may be a repeat; not so one that goes on where another such ended.
    fn is_late(&mut self, begin: u32, records: u32) -> bool {
        let end = begin.wrapping_add(records);
        if self.fill(begin, records) || records == 0 {
            return true;
        }
        self.stray.replace(end) != Some(begin)
    }

    /// Takes these records out of the gap in which they all are, if there is one.
    fn fill(&mut self, begin: u32, records: u32) -> bool {
        let is_in = |gap: &Gap| {
            let before = begin.wrapping_sub(gap.begin);
            before < gap.records && records <= gap.records - before
        };
        let Some(at) = self.gaps.iter().position(is_in) else { return false };
        let Some(gap) = self.gaps.remove(at) else { return false };
        let before = begin.wrapping_sub(gap.begin);
        let after = gap.records - before - records;
        let rest = [Gap { records: before, ..gap }, Gap { begin: begin.wrapping_add(records), records: after, ..gap }];
        for rest in rest.into_iter().rev().filter(|rest| rest.records > 0) {
            self.gaps.insert(at, rest);
        }
        true
    }

    /// Gaps that have waited long enough, or all if there is no waiting any more, are lost.
    fn settle(&mut self, now: Option<u32>) -> u32 {
        let mut lost = 0_u32;
        while let Some(oldest) = self.gaps.front() {
            let waits = now.is_some_and(|now| now.saturating_sub(oldest.since) < PATIENCE);
            if waits && self.gaps.len() <= GAPS {
                break;
            }
            lost = lost.saturating_add(oldest.records);
            self.gaps.pop_front();
        }
        lost
    }
}
