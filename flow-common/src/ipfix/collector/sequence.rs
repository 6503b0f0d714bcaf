//! Sequence numbers of one observation domain: how many data records were sent and did not come.

use super::Counters;

/// A message that is at most this many records behind is late; one further behind says that the exporter began anew.
const LATE: u32 = 65_536;

/// What the next message's sequence number ought to be.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    expected: Option<u32>,
    /// Whether the message at hand moves the expectation.
    behind: bool,
    /// Whether the message at hand holds data that cannot be counted.
    uncounted: bool,
}

impl Sequence {
    /// A message begins with this number.
    pub(super) fn begin(&mut self, sequence: u32, counters: &mut Counters) {
        self.behind = false;
        self.uncounted = false;
        let Some(expected) = self.expected else { return };
        let ahead = sequence.wrapping_sub(expected);
        let back = expected.wrapping_sub(sequence);
        if ahead == 0 {
        } else if back <= LATE {
            self.behind = true;
            counters.late += 1;
        } else if ahead < u32::MAX / 2 {
            counters.lost += u64::from(ahead);
        } else {
            counters.restarts += 1;
        }
    }

    /// The message holds records whose number nobody knows, because their template is missing.
    pub(super) fn uncounted(&mut self) {
        self.uncounted = true;
    }

    /// The message held this many data records.
    pub(super) fn end(&mut self, sequence: u32, records: u64) {
        if self.uncounted {
            self.expected = None;
        } else if !self.behind {
            // Sequence numbers count modulo 2^32, and a message holds fewer records.
            self.expected = Some(sequence.wrapping_add(u32::try_from(records).unwrap_or(0)));
        }
    }
}
