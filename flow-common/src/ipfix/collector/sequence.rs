//! Sequence numbers of one observation domain: how many data records were sent and did not come.

use super::Counters;

/// A message that is at most this many records behind is late; one further behind says that the exporter began anew.
const LATE: u32 = 65_536;

/// What the next message's sequence number ought to be.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    last: Option<Last>,
    /// Whether the exporter's numbers are known to be the RFC's, and not such as count a message's own records in.
    is_exclusive: bool,
    /// Whether the message at hand holds data that cannot be counted.
    uncounted: bool,
}

/// The message before.
#[derive(Clone, Copy, Debug)]
struct Last {
    sequence: u32,
    records: u32,
}

impl Sequence {
    /// The message at hand holds records whose number nobody knows, because their template is missing.
    pub(super) fn uncounted(&mut self) {
        self.uncounted = true;
    }

    /// A message with this number held this many data records.
    pub(super) fn end(&mut self, sequence: u32, records: u64, counters: &mut Counters) {
        // A message has no room for more.
        let records = u32::try_from(records).unwrap_or(u32::MAX);
        let behind = self.last.is_some_and(|last| !self.follows(last, sequence, records, counters));
        if std::mem::take(&mut self.uncounted) {
            self.last = None;
        } else if !behind {
            self.last = Some(Last { sequence, records });
        }
    }

    /// Counts what is missing between two messages; `false` if this one is late.
    fn follows(&mut self, last: Last, sequence: u32, records: u32, counters: &mut Counters) -> bool {
        let expected = last.sequence.wrapping_add(last.records);
        // go-ipfix, and so Antrea's agents, count a message's own records in.
        let inclusive = last.sequence.wrapping_add(records);
        if sequence == expected {
            self.is_exclusive |= sequence != inclusive;
            return true;
        }
        if sequence == inclusive && !self.is_exclusive {
            return true;
        }
        let (ahead, back) = (sequence.wrapping_sub(expected), expected.wrapping_sub(sequence));
        if back <= LATE {
            counters.late += 1;
            return false;
        }
        if ahead < u32::MAX / 2 {
            counters.lost += u64::from(ahead);
        } else {
            counters.restarts += 1;
        }
        true
    }
}
