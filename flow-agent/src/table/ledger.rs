//! To which interface each counted packet belongs, and what became of it: packets that an interface's points saw =
//! those in exported flows, those for which another point's stand, those of flows that are none of ours, and the losses
//! that the kernel counts.
//!
//! An entry's counts belong to the points that own its directions. Where an owner changes, what the one before counted
//! is put aside as a portion; all are booked when the connection is over and it is certain what became of it.

use std::collections::HashMap;

use flow_common::abi::{Count, owner};

use super::InterfaceSums;
use super::entry::{Counters, Entry};
use super::slab::{NONE, Slab};

/// What became of counted packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Accounted,
    Annotated,
    NotLocal,
    Undecided,
}

/// What one owner counted of one direction.
#[derive(Clone, Copy, Debug)]
struct Portion {
    owner: u32,
    direction: u32,
    count: Count,
    next: u32,
}

/// The sums of what is over, and the portions of what is not.
#[derive(Debug)]
pub(super) struct Ledger {
    sums: HashMap<u32, InterfaceSums>,
    portions: Slab<Portion>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { sums: HashMap::new(), portions: Slab::with_capacity(0) }
    }

    /// Notes that `owner` counts this direction of `entry` from here on.
    pub(super) fn change_owner(&mut self, entry: &mut Entry, direction: usize, owner: u32) {
        self.put_aside(entry, direction);
        entry.owner[direction] = owner;
    }

    /// The map's counters at which the present connection of `entry` began.
    pub(super) fn began_at(&self, entry: &Entry) -> Counters {
        let mut counters = entry.booked;
        self.each(entry.portions, |portion| {
            let at = portion.direction as usize * 2;
            counters[at] -= portion.count.packets;
            counters[at + 1] -= portion.count.bytes;
        });
        counters
    }

    /// Takes all that `entry` counted for its connection as a list of its own, to be booked later.
    pub(super) fn take(&mut self, entry: &mut Entry) -> u32 {
        for direction in 0..2 {
            self.put_aside(entry, direction);
        }
        std::mem::replace(&mut entry.portions, NONE)
    }

    /// Books all that `entry` counted for its connection.
    pub(super) fn settle(&mut self, entry: &mut Entry, class: Class) {
        let portions = self.take(entry);
        self.book(portions, class);
    }

    /// Books a list that was taken.
    pub(super) fn book(&mut self, mut portions: u32, class: Class) {
        while portions != NONE {
            let Portion { owner, count, next, .. } = self.portions[portions];
            add(&mut self.sums, owner, class, count);
            self.portions.remove(portions);
            portions = next;
        }
    }

    /// Books `amounts` of what `entry` counted as accounted: they went into records before the connection was joined
    /// with another entry.
    pub(super) fn account(&mut self, entry: &mut Entry, mut amounts: Counters) {
        entry.portions = self.take(entry);
        let mut at = entry.portions;
        while at != NONE {
            let portion = &mut self.portions[at];
            let left = &mut amounts[portion.direction as usize * 2..][..2];
            let part = Count { packets: portion.count.packets.min(left[0]), bytes: portion.count.bytes.min(left[1]) };
            left[0] -= part.packets;
            left[1] -= part.bytes;
            portion.count.packets -= part.packets;
            portion.count.bytes -= part.bytes;
            let (owner, next) = (portion.owner, portion.next);
            add(&mut self.sums, owner, Class::Accounted, part);
            at = next;
        }
    }

    /// The sums with what `live` entries and lists hold, by interface index.
    pub(super) fn sums(&self) -> HashMap<u32, InterfaceSums> {
        self.sums.clone()
    }

    /// Adds what `entry` holds to `sums`.
    pub(super) fn add_entry(&self, entry: &Entry, class: Class, sums: &mut HashMap<u32, InterfaceSums>) {
        self.add_list(entry.portions, class, sums);
        for direction in 0..2 {
            let count = open(entry, direction);
            if count != Count::default() {
                add(sums, entry.owner[direction], class, count);
            }
        }
    }

    /// Adds what a taken list holds to `sums`.
    pub(super) fn add_list(&self, portions: u32, class: Class, sums: &mut HashMap<u32, InterfaceSums>) {
        self.each(portions, |portion| add(sums, portion.owner, class, portion.count));
    }

    fn each(&self, mut at: u32, mut visit: impl FnMut(&Portion)) {
        while at != NONE {
            visit(&self.portions[at]);
            at = self.portions[at].next;
        }
    }

    fn put_aside(&mut self, entry: &mut Entry, direction: usize) {
        let count = open(entry, direction);
        let at = direction * 2;
        entry.booked[at] = entry.seen[at];
        entry.booked[at + 1] = entry.seen[at + 1];
        if count != Count::default() {
            let (owner, next) = (entry.owner[direction], entry.portions);
            entry.portions = self.portions.insert(Portion { owner, direction: direction as u32, count, next });
        }
    }
}

/// What the present owner of a direction counted for the connection.
fn open(entry: &Entry, direction: usize) -> Count {
    let at = direction * 2;
    Count { packets: entry.seen[at] - entry.booked[at], bytes: entry.seen[at + 1] - entry.booked[at + 1] }
}

fn add(sums: &mut HashMap<u32, InterfaceSums>, owner: u32, class: Class, count: Count) {
    let sums = sums.entry(owner::ifindex(owner)).or_default();
    let sum = match class {
        Class::Accounted => &mut sums.accounted,
        Class::Annotated => &mut sums.annotated,
        Class::NotLocal => &mut sums.not_local,
        Class::Undecided => &mut sums.undecided,
    };
    sum.packets += count.packets;
    sum.bytes += count.bytes;
}
