//! Records that exporters sent and that did not come, as their sequence numbers say.
//!
//! Takes what each session finds missing; gives sums by exporter over all its sessions. Bounded: the losses of further
//! exporters are one sum.

use super::Source;
use std::collections::HashMap;

/// Exporters that are told apart; they become labels of a metric. Those that lose nothing are not among them.
const MAX: usize = 1_024;

/// Sums since the start.
#[derive(Debug, Default)]
pub(super) struct Losses {
    exporters: HashMap<Source, u64>,
    others: u64,
}

impl Losses {
    pub(super) fn add(&mut self, source: Source, records: u32) {
        let room = self.exporters.len() < MAX || self.exporters.contains_key(&source);
        let sum = if room { self.exporters.entry(source).or_default() } else { &mut self.others };
        *sum += u64::from(records);
    }

    /// Of each exporter that lost some, in no order; without a source of all for which there was no room.
    pub(super) fn rows(&self) -> impl Iterator<Item = (Option<Source>, u64)> {
        let others = Some((None, self.others)).filter(|_| self.others > 0);
        self.exporters.iter().map(|(source, records)| (Some(*source), *records)).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exporters_beyond_the_bound_share_a_sum() {
        let mut losses = Losses::default();
        let source = |domain| Source { addr: [192, 0, 2, 1].into(), domain };
        for domain in 0..MAX as u32 + 10 {
            losses.add(source(domain), 2);
        }
        losses.add(source(3), 5);
        losses.add(source(5_000), 1);
        let of = |wanted| losses.rows().find(|(source, _)| *source == wanted).map(|(_, records)| records);
        assert_eq!((of(Some(source(3))), of(Some(source(5_000))), of(None)), (Some(7), None, Some(21)));
        assert_eq!(losses.rows().count(), MAX + 1);
    }
}
