//! Connections that did not come through: what of their packets was dropped, and what that makes of them.
//!
//! The tc programs count every packet; what is told here of drops adds nothing to a connection's packets. A drop may be told of
//! before the flow that it belongs to: it waits for that, and is let go if none comes, because what was dropped before any of our
//! points is no flow.

use flow_common::abi;
use flow_common::abi::drop::Site;
use flow_common::record::{EndReason, ForwardingStatus};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::connection::{DENIAL_NEWS, DONE, EXPORTED, IDLE, LIVE, OVER, REFUSED, SCHEDULED};
use super::entry::REVERSED;
use super::key::Key;
use super::observe::Look;
use super::slab::NONE;
use super::time::{STRAYS_NS, since};
use super::{Table, Update};
use crate::kernel::drops::{FlowDrops, FlowKey};

/// Drops that wait for their flow at one time.
const WAITING: usize = 4_096;

/// The least time that they wait: a machine that is out of CPU may be late with the flow's event, or with the sweep that finds it.
const PATIENCE_NS: u64 = 10_000_000_000;

/// How often those that waited in vain are looked for.
const INTERVAL_NS: u64 = 1_000_000_000;

/// A flow that did not come through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Denied {
    /// The flow as it is now.
    pub update: Update,
    /// Where its last drop was; none if only its answer says that it was refused.
    pub site: Option<Site>,
}

/// What is known of drops.
#[derive(Debug, Default)]
pub(super) struct Denials {
    of: HashMap<u32, Denial, RandomState>,
    waiting: HashMap<Key, Waiting, RandomState>,
    looked_ns: u64,
}

/// What of a connection's packets was dropped.
#[derive(Clone, Copy, Debug, Default)]
struct Denial {
    by_rule: u64,
    by_failure: u64,
    /// Packets of the responder among them.
    answers: u64,
    site: Site,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    drops: FlowDrops,
    since_ns: u64,
}

impl Denial {
    fn add(&mut self, drops: &FlowDrops, responder: usize) {
        let packets = |counts: &[abi::Count; 2]| counts.iter().map(|count| count.packets).sum::<u64>();
        self.by_rule += packets(&drops.by_rule);
        self.by_failure += packets(&drops.by_failure);
        self.answers += drops.by_rule[responder].packets + drops.by_failure[responder].packets;
        self.site = drops.site;
    }
}

impl Table {
    /// Takes in what of each flow was dropped.
    pub(super) fn observe_drops(&mut self, drops: &[FlowDrops], look: &Look<'_>) {
        for drops in drops {
            let key = match drops.key {
                FlowKey::V4(key) => Key::V4(key),
                FlowKey::V6(key) => Key::V6(key),
            };
            match self.entries.find(&key).filter(|slot| self.is_of(*slot, drops, look)) {
                Some(slot) => self.deny(slot, drops, look.now_ns),
                None => self.wait(key, drops, look.now_ns),
            }
        }
    }

    /// An answer by ICMP says that the flow's packets do not arrive.
    pub(super) fn refuse(&mut self, key: &Key, look: &Look<'_>) {
        if let Some(slot) = self.entries.find(key) {
            let number = self.entries[slot].connection;
            if number != NONE && !self.connections[number].has(REFUSED) {
                self.connections[number].set(REFUSED, true);
                self.note_denial(number, look.now_ns);
            }
        }
    }

    /// Whether a drop belongs to the connection that an entry has now.
    fn is_of(&self, slot: u32, drops: &FlowDrops, look: &Look<'_>) -> bool {
        let number = self.entries[slot].connection;
        let at_ns = look.clock.monotonic_to_wall_ns(drops.last_ns);
        number != NONE
            && (!self.connections[number].has(OVER)
                || at_ns <= self.connections[number].mark_ns.saturating_add(STRAYS_NS))
    }

    fn deny(&mut self, slot: u32, drops: &FlowDrops, now_ns: u64) {
        let number = self.entries[slot].connection;
        let responder = usize::from(!self.entries[slot].has(REVERSED));
        self.denials.of.entry(number).or_default().add(drops, responder);
        self.note_denial(number, now_ns);
    }

    /// Makes sure that what is new of a denial is exported.
    fn note_denial(&mut self, number: u32, now_ns: u64) {
        let connection = &mut self.connections[number];
        let was_idle = connection.has(IDLE);
        connection.set(DENIAL_NEWS, true);
        connection.set(IDLE, false);
        if connection.has(OVER) {
            self.schedule(number, now_ns.saturating_add(STRAYS_NS));
        } else if was_idle || !connection.has(SCHEDULED) {
            let at_ns = connection.mark_ns.max(now_ns).saturating_add(self.active_ns);
            self.schedule(number, at_ns);
        }
    }

    fn wait(&mut self, key: Key, drops: &FlowDrops, now_ns: u64) {
        let waiting = &mut self.denials.waiting;
        if waiting.len() >= WAITING && !waiting.contains_key(&key) {
            self.statistics.drops_unmatched += packets(drops);
            return;
        }
        let waiting = waiting.entry(key).or_insert(Waiting {
            drops: FlowDrops { by_rule: NOTHING, by_failure: NOTHING, ..*drops },
            since_ns: now_ns,
        });
        for (sums, more) in
            [(&mut waiting.drops.by_rule, drops.by_rule), (&mut waiting.drops.by_failure, drops.by_failure)]
        {
            for (sum, more) in sums.iter_mut().zip(more) {
                sum.packets += more.packets;
                sum.bytes += more.bytes;
            }
        }
        waiting.drops.last_ns = drops.last_ns;
        waiting.drops.site = drops.site;
    }

    /// Gives a connection that has just begun the drops that waited for it.
    pub(super) fn claim_drops(&mut self, slot: u32, now_ns: u64) {
        if self.denials.waiting.is_empty() {
            return;
        }
        let key = self.entries.key(slot);
        if let Some(waiting) = self.denials.waiting.remove(&key) {
            self.deny(slot, &waiting.drops, now_ns);
        }
    }

    /// Lets those go that waited in vain.
    pub(super) fn forget_drops(&mut self, now_ns: u64) {
        let Self { denials, statistics, active_ns, .. } = self;
        if denials.waiting.is_empty() || since(now_ns, denials.looked_ns) < INTERVAL_NS {
            return;
        }
        denials.looked_ns = now_ns;
        let patience_ns = active_ns.saturating_mul(2).max(PATIENCE_NS);
        denials.waiting.retain(|_, waiting| {
            let stays = since(now_ns, waiting.since_ns) < patience_ns;
            statistics.drops_unmatched += if stays { 0 } else { packets(&waiting.drops) };
            stays
        });
    }

    /// What became of a connection's packets, as far as is known.
    pub(super) fn verdict(&self, number: u32) -> ForwardingStatus {
        let connection = &self.connections[number];
        let denial = self.denials.of.get(&number).copied().unwrap_or_default();
        let is_reset = connection.is_reset_at_once();
        if connection.total[2] > denial.answers && !is_reset {
            return ForwardingStatus::Forwarded;
        }
        let is_refused = is_reset || connection.has(REFUSED);
        match (denial.by_rule > 0, denial.by_failure > 0) {
            (true, _) if is_refused => ForwardingStatus::Rejected,
            (true, _) => ForwardingStatus::Dropped,
            (false, true) => ForwardingStatus::Failed,
            (false, false) if is_refused => ForwardingStatus::Rejected,
            (false, false) => ForwardingStatus::Unknown,
        }
    }

    /// Packets of a connection that were dropped on this Node, both directions.
    pub(super) fn dropped_packets(&self, number: u32) -> u64 {
        self.denials.of.get(&number).map_or(0, |denial| denial.by_rule + denial.by_failure)
    }

    /// Whether there is nothing to say of a connection that is over: that it was denied was said, and nothing came since.
    pub(super) fn is_said(&self, number: u32) -> bool {
        let connection = &self.connections[number];
        connection.has(EXPORTED) && !connection.has_news() && self.verdict(number).is_denied()
    }

    /// Two entries' connections have turned out to be one.
    pub(super) fn merge_denials(&mut self, number: u32, merged: u32) {
        if let Some(gone) = self.denials.of.remove(&merged) {
            let denial = self.denials.of.entry(number).or_default();
            // Each drop was at one of the entries.
            denial.by_rule += gone.by_rule;
            denial.by_failure += gone.by_failure;
            denial.answers += gone.answers;
            denial.site = gone.site;
            self.connections[number].set(DENIAL_NEWS, true);
        }
    }

    pub(super) fn forget_denial(&mut self, number: u32) {
        self.denials.of.remove(&number);
    }

    /// Flows that did not come through, those that are over but still have a map entry among them.
    pub fn denied(&self) -> impl Iterator<Item = Denied> + '_ {
        let is_shown = |number: &u32| {
            let connection = &self.connections[*number];
            connection.has(LIVE) && self.verdict(*number).is_denied()
        };
        self.connections.numbers().filter(is_shown).map(|number| Denied {
            update: self
                .update(number, if self.connections[number].has(DONE) { EndReason::End } else { EndReason::None }),
            site: self.denials.of.get(&number).map(|denial| denial.site),
        })
    }
}

const NOTHING: [abi::Count; 2] = [abi::Count { packets: 0, bytes: 0 }; 2];

fn packets(drops: &FlowDrops) -> u64 {
    drops.by_rule.iter().chain(&drops.by_failure).map(|count| count.packets).sum()
}
