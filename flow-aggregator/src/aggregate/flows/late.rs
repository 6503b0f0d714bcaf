//! Records of flows that have left the table: a tombstone is found for them, and the flow lives again where there is news.
//!
//! Under one key there may be tombstones of several connections, and a later flow in the table.

use super::{Flows, Turn};
use crate::aggregate::{
    flow::{Flow, Numbers, larger},
    item::{Item, take},
    key::Addr,
    rules::{Outcome, Relation},
    tails::TailId,
};

/// Whether a record of this side with these numbers is of the flow.
type Fits<A> = fn(&Flow<A>, usize, &Numbers) -> bool;

impl<A: Addr> Flows<A> {
    /// The tombstone of the flow that this record is of, where there is none in the table.
    pub(super) fn rest(&self, item: &Item<'_, A>, tail: TailId) -> Option<u32> {
        if !self.tombstones.is_there(&item.key, item.hash) {
            return None;
        }
        let out_of_step = || self.resting(item, tail, Flow::is_partner_out_of_step);
        self.buried(item).or_else(|| self.gone_on(item, tail)).or_else(out_of_step)
    }

    /// The tombstone of the flow that goes on with this record, by its side and times.
    pub(super) fn gone_on(&self, item: &Item<'_, A>, tail: TailId) -> Option<u32> {
        let resting = |fits| self.resting(item, tail, fits);
        resting(Flow::goes_on_with).or_else(|| resting(Flow::goes_on_anew_with))
    }

    /// The tombstone of a flow that this record fits by its side and times.
    fn resting(&self, item: &Item<'_, A>, tail: TailId, fits: Fits<A>) -> Option<u32> {
        let role = self.role(item, tail);
        self.tombstones.matching(&item.key, item.hash, |flow| {
            flow.side_of(item.exporter, role).is_some_and(|side| fits(flow, side, &item.numbers))
        })
    }

    /// The tombstone of the connection with this flow id.
    pub(super) fn buried(&self, item: &Item<'_, A>) -> Option<u32> {
        let flow_id = item.numbers.flow_id;
        if flow_id == 0 { None } else { self.tombstones.with_flow_id(&item.key, item.hash, flow_id) }
    }

    /// A record of a flow of which only a tombstone is left: mostly a repeat. Else the flow lives again, or, where its
    /// key has another flow by now, is exported and buried again.
    pub(super) fn late(&mut self, number: u32, item: &Item<'_, A>, tail: TailId, turn: &mut Turn<'_>) {
        let Some(mut flow) = self.tombstones.view(number) else { return };
        let role = self.role(item, tail);
        let flow_id = item.numbers.flow_id;
        let named = flow.sides.iter().position(|side| flow_id != 0 && side.flow_id == flow_id);
        let Some(side) = named.or_else(|| flow.side_of(item.exporter, role)) else {
            turn.counts.surplus += 1;
            return;
        };
        if self.rejoin(number, &flow, side, item, tail, turn) {
            return;
        }
        flow.heard = turn.now;
        let fresh = !flow.sides[side].is_known();
        if named.is_none() && flow.goes_on_anew_with(side, &item.numbers) {
            flow.begin_anew(side, &item.numbers);
            turn.counts.restarted += 1;
        }
        if take(&mut flow, side, item, Some(tail), &mut self.tails) == Outcome::Repeated {
            turn.counts.repeated += 1;
            return;
        }
        self.tombstones.revive(number);
        turn.counts.revived += 1;
        self.make_room(turn);
        let taken = self.find(item).is_some();
        let slot = self.slab.insert(flow);
        if taken {
            return self.close(slot, turn);
        }
        self.judge(slot, side, fresh, turn);
        self.index.insert(item.hash, slot);
        self.schedule(slot, turn.now);
    }

    /// Whether a half that was buried alone goes on in a flow that the other half began meanwhile, as after a denied
    /// attempt whose success the destination's Node told first. What was exported of it is not exported again.
    fn rejoin(
        &mut self,
        number: u32,
        buried: &Flow<A>,
        side: usize,
        item: &Item<'_, A>,
        tail: TailId,
        turn: &mut Turn<'_>,
    ) -> bool {
        let alone = !buried.sides[1 - side].is_known() && buried.rare.is_none();
        let role = self.role(item, tail);
        let lacks = |slot: u32| {
            let flow = self.slab.at(slot)?;
            let place = flow.side_of(item.exporter, role).filter(|place| !flow.sides[*place].is_known())?;
            (flow.relation(place, &item.numbers) == Relation::Same).then_some((slot, place))
        };
        let news = alone && buried.adds(side, &item.numbers);
        let Some((slot, place)) = self.find(item).filter(|_| news).and_then(lacks) else { return false };
        self.tombstones.revive(number);
        self.further(slot, place, item, Some(tail), turn);
        if let Some(flow) = self.slab.at_mut(slot) {
            flow.sides[place].last = larger(flow.sides[place].last, buried.sides[side].last);
        }
        buried.sides.iter().for_each(|side| self.tails.release(side.tail));
        turn.counts.revived += 1;
        true
    }

    /// A record of an earlier connection under the key of a later one: if that left no tombstone, it is exported as it is.
    pub(super) fn earlier(&mut self, item: &Item<'_, A>, tail: TailId, turn: &mut Turn<'_>) {
        match self.resting(item, tail, Flow::is_partner_out_of_step) {
            Some(number) => self.late(number, item, tail, turn),
            None => {
                if let Some(slot) = self.create(item, tail, turn) {
                    self.close(slot, turn);
                }
            }
        }
    }
}
