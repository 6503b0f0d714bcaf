//! To which interface each counted packet belongs, and what became of it: packets that an interface's points saw =
//! those in exported flows, those for which another point's stand, those of flows that are none of ours, and the losses
//! that the kernel counts.
//!
//! An entry's counts belong to the points that own its directions. Where an owner changes, what the one before counted
//! is put aside as a portion. All are booked with each record that has them, or when the connection is over and it is certain what
//! became of it.

use flow_common::abi::{Count, owner};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::InterfaceSums;
use super::counters::{Counters, difference};
use super::entry::Entry;
use super::slab::{NONE, Slab};

/// What became of counted packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Accounted,
    Annotated,
    NotLocal,
    Undecided,
    /// Told of by an agent before this one, as far as it was.
    Earlier,
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
    sums: Sums,
    portions: Slab<Portion>,
    /// Lists that were taken and are not booked yet.
    taken: usize,
    /// See [`Ledger::take_gone`].
    gone: HashMap<u32, [i64; 2], RandomState>,
}

/// By interface index.
type Sums = HashMap<u32, InterfaceSums, RandomState>;

impl Ledger {
    pub(super) fn new() -> Self {
        Self { sums: Sums::default(), portions: Slab::with_capacity(0), taken: 0, gone: HashMap::default() }
    }

    /// Notes that `owner` counts this direction of `entry` from here on.
    pub(super) fn change_owner(&mut self, entry: &mut Entry, direction: usize, owner: u32) {
        self.put_aside(entry, direction);
        let counted = seen(entry, direction);
        self.move_away(entry.owner[direction], counted);
        self.move_away(owner, counted.map(|count| -count));
        entry.owner[direction] = owner;
    }

    /// Notes that the map has `entry` no more.
    pub(super) fn remove(&mut self, entry: &Entry) {
        for direction in 0..2 {
            self.move_away(entry.owner[direction], seen(entry, direction));
        }
    }

    /// By interface index, packets and bytes that its points counted and that, since the last time this was asked, are not in an entry
    /// under their name any more: the entry is gone, or another point owns it.
    pub(super) fn take_gone(&mut self) -> impl Iterator<Item = (u32, [i64; 2])> {
        self.gone.drain()
    }

    fn move_away(&mut self, owner: u32, counted: [i64; 2]) {
        if owner != 0 && counted != [0; 2] {
            let gone = self.gone.entry(owner::ifindex(owner)).or_default();
            *gone = [gone[0] + counted[0], gone[1] + counted[1]];
        }
    }

    /// Takes in what points counted before this agent and that is in no entry any more.
    pub(super) fn inherit(&mut self, index: u32, gone: [i64; 2]) {
        self.sums.entry(index).or_default().earlier = gone;
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
        self.taken += usize::from(entry.portions != NONE);
        std::mem::replace(&mut entry.portions, NONE)
    }

    /// Books all that `entry` counted for its connection.
    pub(super) fn settle(&mut self, entry: &mut Entry, class: Class) {
        let portions = self.take(entry);
        self.book(portions, class);
    }

    /// Books a list that was taken.
    pub(super) fn book(&mut self, mut portions: u32, class: Class) {
        self.taken -= usize::from(portions != NONE);
        while portions != NONE {
            let Portion { owner, count, next, .. } = self.portions[portions];
            add(&mut self.sums, owner, class, count);
            self.portions.remove(portions);
            portions = next;
        }
    }

    /// Books what `entry` counted since the last record of its connection, which a record has now.
    pub(super) fn account(&mut self, entry: &mut Entry) {
        if entry.portions != NONE {
            return self.settle(entry, Class::Accounted);
        }
        for direction in 0..2 {
            let count = open(entry, direction);
            if count != Count::default() {
                add(&mut self.sums, entry.owner[direction], Class::Accounted, count);
            }
        }
        entry.booked = entry.seen;
    }

    /// Books what `entry` had counted when these were its counters, and was not booked, as told of by another agent. Gives how much.
    pub(super) fn leave(&mut self, entry: &mut Entry, began: Counters) -> Counters {
        let before = difference(began, self.began_at(entry));
        if entry.portions == NONE && before != [0; 4] {
            for direction in 0..2 {
                let at = direction * 2;
                let count = Count { packets: before[at], bytes: before[at + 1] };
                add(&mut self.sums, entry.owner[direction], Class::Earlier, count);
                entry.booked[at] += count.packets;
                entry.booked[at + 1] += count.bytes;
            }
        }
        before
    }

    /// Whether there are lists that were taken and are not booked yet.
    pub(super) fn has_taken(&self) -> bool {
        self.taken > 0
    }

    /// What is booked, by interface index.
    pub(super) fn sums(&self) -> Sums {
        self.sums.clone()
    }

    /// Whether all that `entry` counted is booked.
    pub(super) fn is_settled(entry: &Entry) -> bool {
        entry.portions == NONE && entry.booked == entry.seen
    }

    /// Adds what `entry` holds to `sums`.
    pub(super) fn add_entry(&self, entry: &Entry, class: Class, sums: &mut Sums) {
        self.add_list(entry.portions, class, sums);
        for direction in 0..2 {
            let count = open(entry, direction);
            if count != Count::default() {
                add(sums, entry.owner[direction], class, count);
            }
        }
    }

    /// Adds what a taken list holds to `sums`.
    pub(super) fn add_list(&self, portions: u32, class: Class, sums: &mut Sums) {
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

/// What an entry has of a direction, packets and bytes.
fn seen(entry: &Entry, direction: usize) -> [i64; 2] {
    [entry.seen[direction * 2].cast_signed(), entry.seen[direction * 2 + 1].cast_signed()]
}

/// What the present owner of a direction counted for the connection.
fn open(entry: &Entry, direction: usize) -> Count {
    let at = direction * 2;
    Count { packets: entry.seen[at] - entry.booked[at], bytes: entry.seen[at + 1] - entry.booked[at + 1] }
}

fn add(sums: &mut Sums, owner: u32, class: Class, count: Count) {
    let sums = sums.entry(owner::ifindex(owner)).or_default();
    let sum = match class {
        Class::Accounted => &mut sums.accounted,
        Class::Annotated => &mut sums.annotated,
        Class::NotLocal => &mut sums.not_local,
        Class::Undecided => &mut sums.undecided,
        Class::Earlier => {
            let [packets, bytes] = &mut sums.earlier;
            *packets += count.packets.cast_signed();
            *bytes += count.bytes.cast_signed();
            return;
        }
    };
    sum.packets += count.packets;
    sum.bytes += count.bytes;
}
