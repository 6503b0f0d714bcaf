//! What a further record does to a flow.
//!
//! Takes the numbers of a record whose flow and side are known; gives whether they were news. Records may come twice,
//! late and in any order, and the result is the same. Time is in the records alone.

use super::flow::{Counters, DESTINATION, Exporter, Flow, Numbers, OCTETS, REVERSE_OCTETS, SOURCE, Side};
use super::key::Addr;
use crate::correlate::Role;
use flow_common::record::{EndReason, ForwardingStatus};

/// Two Nodes' clocks that are in step, and times in whole seconds, may differ by this and still tell of one moment.
const TOLERANCE: u64 = 1000;
/// Two Nodes' clocks may differ by this. Connections that follow one another under one key within it are told apart by
/// [`TOLERANCE`], as long as the clocks are in step.
const SKEW: u64 = 10_000;

/// How a record of a known side relates to the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// The same connection, counted on.
    Same,
    /// The same connection, whose exporter began to count anew.
    Anew,
    /// Another connection under the same key, after this one.
    Reused,
    /// Another connection under the same key, before this one.
    Earlier,
}

/// Whether a record said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing that was not known.
    Repeated,
    /// Something.
    News,
    /// A connection that was denied came through: whether a partner is needed must be asked again.
    Reopened,
}

impl<A: Addr> Flow<A> {
    /// The side that a record of this exporter belongs to. `None` if both are taken by others and the record does not
    /// say whose it is.
    #[inline]
    pub(super) fn side_of(&self, exporter: Exporter, role: Option<Role>) -> Option<usize> {
        if let Some(side) = self.sides.iter().position(|side| side.exporter == exporter) {
            return Some(side);
        }
        match role {
            Some(Role::Source) => Some(SOURCE),
            Some(Role::Destination) => Some(DESTINATION),
            None => self.sides.iter().position(|side| !side.is_known()),
        }
    }

    /// How a record relates to what the flow knows already.
    pub(super) fn relation(&self, side: usize, numbers: &Numbers) -> Relation {
        let known = &self.sides[side];
        if known.is_known() { known.relation(numbers) } else { self.partner_relation(numbers, TOLERANCE) }
    }

    /// Whether a half that is the first of its side is of this connection, should its Node's clock be out of step. Only
    /// for where no other flow is the one by times alone.
    pub(super) fn is_partner_out_of_step(&self, side: usize, numbers: &Numbers) -> bool {
        !self.sides[side].is_known() && self.partner_relation(numbers, SKEW) == Relation::Same
    }

    /// A half that is the first of its side: the times say whether it is of this connection.
    fn partner_relation(&self, numbers: &Numbers, tolerance: u64) -> Relation {
        if self.has_ended() && numbers.start > self.end().saturating_add(tolerance) {
            Relation::Reused
        } else if numbers.end.saturating_add(tolerance) < self.start {
            Relation::Earlier
        } else {
            Relation::Same
        }
    }

    /// Whether a record is of this flow, of which nothing was heard for a while.
    pub(super) fn goes_on_with(&self, side: usize, numbers: &Numbers) -> bool {
        let known = &self.sides[side];
        if !known.is_known() {
            return self.partner_relation(numbers, TOLERANCE) == Relation::Same;
        }
        if known.flow_id != 0 && numbers.flow_id != 0 {
            return known.flow_id == numbers.flow_id;
        }
        numbers.start <= self.end() && numbers.end >= self.start
    }

    /// Whether a record is of this flow, of which nothing was heard for a while, and of an exporter that began anew since.
    pub(super) fn goes_on_anew_with(&self, side: usize, numbers: &Numbers) -> bool {
        self.sides[side].is_known() && self.relation(side, numbers) == Relation::Anew
    }

    /// The exporter counts from zero: what it had counted is added to all it will say.
    pub(super) fn begin_anew(&mut self, side: usize, numbers: &Numbers) {
        let base = &mut self.rare.get_or_insert_default().base[side];
        let side = &mut self.sides[side];
        for (base, total) in base.iter_mut().zip(&mut side.total) {
            *base = base.saturating_add(std::mem::take(total));
        }
        side.flow_id = numbers.flow_id;
        side.start = numbers.start;
    }

    /// Whether a record of a known side adds anything but names.
    #[inline]
    pub(super) fn adds(&self, side: usize, numbers: &Numbers) -> bool {
        let side = &self.sides[side];
        numbers.end > side.end
            || numbers.has_total == [false; 4]
            || (0..4).any(|at| side.counted(numbers, at) > side.total[at])
            || (numbers.end == side.end && rank(numbers.reason) > rank(side.reason))
            || (numbers.reason == EndReason::End && !side.has_ended())
            || numbers.flags[0] & !side.flags[0] != 0
            || numbers.flags[1] & !side.flags[1] != 0
            || numbers.dropped > side.dropped
            || (side.status == ForwardingStatus::Unknown && numbers.status != ForwardingStatus::Unknown)
            || side.is_replaced_by(numbers)
            || (side.flow_id == 0 && numbers.flow_id != 0)
    }

    /// Takes the numbers of a record that adds something. Names are the caller's.
    #[inline]
    pub(super) fn take(&mut self, side: usize, exporter: Exporter, numbers: &Numbers) -> Outcome {
        let fresh = !self.sides[side].is_known();
        if fresh {
            self.meet(side, exporter, numbers);
        }
        let known = &mut self.sides[side];
        known.exporter = exporter;
        let replaced = known.is_replaced_by(numbers);
        let latest = fresh || numbers.end > known.end;
        let before = known.total;
        known.count(numbers);
        if latest {
            let since = if fresh { numbers.start } else { known.end };
            let passed = numbers.end.saturating_sub(since);
            known.throughput = [OCTETS, REVERSE_OCTETS].map(|at| throughput(known.total[at] - before[at], passed));
        }
        known.judge(numbers, latest, replaced);
        known.end = known.end.max(numbers.end);
        known.start = known.start.min(numbers.start);
        known.flags = [known.flags[0] | numbers.flags[0], known.flags[1] | numbers.flags[1]];
        known.dropped = known.dropped.max(numbers.dropped);
        if known.flow_id == 0 {
            known.flow_id = numbers.flow_id;
        }
        self.start = self.start.min(numbers.start);
        if numbers.icmp != 0 {
            self.icmp = numbers.icmp;
        }
        self.news = true;
        if replaced { Outcome::Reopened } else { Outcome::News }
    }

    /// What was exported before this side was first heard is not exported again; what another process may have
    /// exported is not either, unless one half saw the flow begin, which proves that there was none.
    fn meet(&mut self, side: usize, exporter: Exporter, numbers: &Numbers) {
        let other = &mut self.sides[1 - side];
        let mut last = numbers.before();
        let from_start = |last: &Counters| *last == [0; 4];
        if other.is_known() {
            if self.shown {
                last = std::array::from_fn(|at| last[at].min(other.last[at]));
            } else if from_start(&other.last) {
                last = [0; 4];
            } else if from_start(&last) {
                other.last = [0; 4];
            }
        }
        self.sides[side] = Side { exporter, last, start: numbers.start, flow_id: numbers.flow_id, ..Side::default() };
    }
}

impl Side {
    fn relation(&self, numbers: &Numbers) -> Relation {
        if self.flow_id != 0 && numbers.flow_id != 0 {
            return match numbers.flow_id == self.flow_id {
                true => Relation::Same,
                false if numbers.start > self.end => Relation::Reused,
                false if numbers.end < self.start => Relation::Earlier,
                false => Relation::Anew,
            };
        }
        let later = numbers.start > self.end;
        if numbers.has_total == [false; 4] {
            // Such senders may give each slice of a flow a start of its own.
            return if later && self.has_ended() { Relation::Reused } else { Relation::Same };
        }
        if later && numbers.start > self.start {
            Relation::Reused
        } else if numbers.end < self.start {
            Relation::Earlier
        } else if numbers.start > self.start.saturating_add(TOLERANCE) {
            Relation::Anew
        } else {
            Relation::Same
        }
    }

    #[inline]
    fn count(&mut self, numbers: &Numbers) {
        self.total = std::array::from_fn(|at| self.counted(numbers, at));
    }

    /// A counter after this record: totals never shrink; deltas without totals add up.
    #[inline]
    fn counted(&self, numbers: &Numbers, at: usize) -> u64 {
        if numbers.has_total[at] {
            self.total[at].max(numbers.totals[at])
        } else {
            self.total[at].saturating_add(numbers.deltas[at])
        }
    }

    /// A denied attempt does not stand against a later success, whichever record comes first.
    #[inline]
    pub(super) fn is_replaced_by(&self, numbers: &Numbers) -> bool {
        self.status.is_denied() && numbers.status == ForwardingStatus::Forwarded && numbers.end >= self.end
    }

    /// End reason and verdict. The end of a connection sticks; that of a denied attempt does not outlive a success.
    #[inline]
    fn judge(&mut self, numbers: &Numbers, latest: bool, replaced: bool) {
        let stale_denial = numbers.status.is_denied() && self.status == ForwardingStatus::Forwarded && !latest;
        if stale_denial {
            return;
        }
        if replaced || (!self.has_ended() && (latest || rank(numbers.reason) > rank(self.reason))) {
            self.reason = numbers.reason;
        }
        let says = numbers.status != ForwardingStatus::Unknown;
        if replaced || (says && (latest || self.status == ForwardingStatus::Unknown)) {
            self.status = numbers.status;
        }
    }
}

/// Bits a second, of octets in milliseconds; 0 if no time passed, or if it is beyond all numbers.
#[inline]
fn throughput(octets: u64, milliseconds: u64) -> u64 {
    match octets.checked_mul(8000) {
        Some(bits) => bits.checked_div(milliseconds).unwrap_or(0),
        None => {
            let rate = (u128::from(octets) * 8000).checked_div(u128::from(milliseconds));
            rate.and_then(|rate| u64::try_from(rate).ok()).unwrap_or(0)
        }
    }
}

/// Of two reasons at the same moment the one that says more.
fn rank(reason: EndReason) -> u8 {
    match reason {
        EndReason::None | EndReason::Other(_) => 0,
        EndReason::Active => 1,
        EndReason::Idle => 2,
        EndReason::Forced | EndReason::Resources => 3,
        EndReason::End => 4,
    }
}
