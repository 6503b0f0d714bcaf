//! The comparison of the connections that live, on request: a dump of connection tracking in parts against table and map, then the flows
//! that the dump did not have, then once more what nobody could explain.
//!
//! Equal counters are equal, whenever each was read: both only grow. Others are read again in a bracket, map, connection tracking, map,
//! until the map's did not move meanwhile. What is left without a reason may be news that is still under way to the table: it is looked at
//! a second time, when rings and sweep have come round.

use flow_common::abi;
use flow_common::time::Timestamp;

use super::reason::{differing, only_conntrack, only_ebpf, totals};
use super::{Difference, Ended, Findings, Outcome, Reason};
use crate::conntrack::{Entry, Scope};
use crate::table::{Counterpart, Ends, Key, Table};

/// Connections read in one bracket: few enough for it to be short, many enough for a request to be worth its system call.
const TOGETHER: usize = 64;

/// Brackets of each connection that moves.
const TRIES: usize = 4;

/// Connections that wait for a second look; what comes beyond is judged at the first.
const SUSPECTS: usize = 16_384;

/// Reads connections by their tuples into a list.
type Read<'a> = &'a mut dyn FnMut(&[Scope], &mut Vec<Option<Entry>>);

/// Both sides, and how single values of either are read.
pub struct Sides<'a> {
    /// What was counted.
    pub table: &'a Table,
    /// What has ended.
    pub ended: &'a Ended,
    /// Reads the map.
    pub lookup: &'a mut dyn FnMut(&Key) -> Option<abi::Flow>,
    /// Reads connection tracking: as many answers as questions.
    pub read: Read<'a>,
    /// Whether a connection is of those that are exported.
    pub is_local: &'a dyn Fn(&Ends, Timestamp) -> bool,
    /// The time.
    pub now: Timestamp,
}

/// One comparison.
#[derive(Debug, Default)]
pub struct Check {
    findings: Findings,
    suspects: Vec<Scope>,
    /// The flow without a tracked connection that comes next.
    next: u32,
    is_second: bool,
    accounting: bool,
}

/// What a bracket found.
enum Bracket {
    /// What is there now.
    Still(Difference),
    Equal,
    Moving,
    /// It ended meanwhile, which is compared elsewhere.
    Gone,
}

impl Check {
    /// A part of the dump.
    pub fn dumped(&mut self, entries: &[Entry], sides: &mut Sides<'_>) {
        let mut apart = Vec::new();
        for entry in entries {
            if self.is_equal_at_once(entry, sides) {
                self.findings.sums.add(Outcome::Equal, None);
            } else {
                apart.push(Scope { tuple: entry.original, zone: entry.zone });
            }
        }
        self.look(&apart, sides);
    }

    /// Up to `max` of the flows that connection tracking was not found to know. False after the last.
    pub fn untracked(&mut self, max: usize, sides: &mut Sides<'_>) -> bool {
        let numbers: Vec<u32> = sides.table.untracked_from(self.next).take(max).collect();
        let Some(last) = numbers.last() else { return false };
        self.next = last + 1;
        let scopes: Vec<Scope> = numbers.iter().map(|number| sides.table.counted(*number).scope).collect();
        for scopes in scopes.chunks(TOGETHER) {
            let mut entries = Vec::with_capacity(scopes.len());
            (sides.read)(scopes, &mut entries);
            // One that is known by now was in the dump, or will be in the next.
            for scope in scopes.iter().zip(&entries).filter_map(|(scope, entry)| entry.is_none().then_some(scope)) {
                self.alone(scope, sides);
            }
        }
        true
    }

    /// Begins the second look; false if none is needed.
    pub fn begin_second(&mut self) -> bool {
        self.is_second = true;
        !self.suspects.is_empty()
    }

    /// Looks again at up to `max` that nobody could explain. False after the last.
    pub fn again(&mut self, max: usize, sides: &mut Sides<'_>) -> bool {
        let some = self.suspects.split_off(self.suspects.len().saturating_sub(max));
        self.look(&some, sides);
        !self.suspects.is_empty()
    }

    /// What was found, and whether connection tracking counts.
    pub fn finish(self) -> (Findings, bool) {
        (self.findings, self.accounting)
    }

    /// Whether both sides say the same by what is known of them already. Without counters presence is all there is to compare.
    fn is_equal_at_once(&mut self, entry: &Entry, sides: &Sides<'_>) -> bool {
        let Some(total) = known_total(entry, sides) else { return false };
        let Some(counted) = totals(entry) else { return true };
        self.accounting = true;
        counted == total
    }

    /// Reads these anew and judges them.
    fn look(&mut self, scopes: &[Scope], sides: &mut Sides<'_>) {
        for scopes in scopes.chunks(TOGETHER) {
            let mut open = scopes.to_vec();
            for attempt in 1..=TRIES {
                let brackets = bracket(&open, sides);
                let mut moving = Vec::new();
                for (scope, bracket) in open.iter().zip(brackets) {
                    match bracket {
                        Bracket::Still(difference) => self.judge(difference, scope),
                        Bracket::Equal => self.findings.sums.add(Outcome::Equal, None),
                        Bracket::Moving if attempt < TRIES => moving.push(*scope),
                        Bracket::Moving => self.findings.sums.add(Outcome::Moving, None),
                        Bracket::Gone => self.alone(scope, sides),
                    }
                }
                open = moving;
            }
        }
    }

    /// Connection tracking does not know it (any more): a flow that it never knew is the kernel programs' alone.
    fn alone(&mut self, scope: &Scope, sides: &Sides<'_>) {
        if let Some(counted) = sides.table.flow_of(scope).filter(|counted| !counted.is_tracked && !counted.is_over) {
            self.judge(only_ebpf(&counted), scope);
        }
    }

    /// Notes a difference, or keeps it for a second look.
    fn judge(&mut self, difference: Difference, scope: &Scope) {
        if difference.reason.is_none() && !self.is_second && self.suspects.len() < SUSPECTS {
            self.suspects.push(*scope);
        } else {
            self.findings.note(difference);
        }
    }
}

/// What the table and the ended flows know of a connection, without a look at the map.
fn known_total(entry: &Entry, sides: &Sides<'_>) -> Option<[u64; 4]> {
    let part = Table::name(entry).and_then(|name| sides.ended.flow(&name)).map(|counted| counted.total);
    match sides.table.counterpart(entry) {
        Counterpart::Flow(number) => Some(sum(sides.table.counted(number).total, part)),
        _ => part,
    }
}

/// Looks at the map, at connection tracking and at the map again.
fn bracket(scopes: &[Scope], sides: &mut Sides<'_>) -> Vec<Bracket> {
    let mut before = Vec::with_capacity(scopes.len());
    (sides.read)(scopes, &mut before);
    before.resize(scopes.len(), None);
    let numbers: Vec<Option<u32>> = before
        .iter()
        .map(|entry| match sides.table.counterpart(entry.as_ref()?) {
            Counterpart::Flow(number) => Some(number),
            _ => None,
        })
        .collect();
    let mut values = || -> Vec<Option<abi::Flow>> {
        let key = |number: &Option<u32>| sides.table.counting_key((*number)?);
        numbers.iter().map(|number| key(number).and_then(|key| (sides.lookup)(&key))).collect()
    };
    let first = values();
    let mut entries = Vec::with_capacity(scopes.len());
    (sides.read)(scopes, &mut entries);
    entries.resize(scopes.len(), None);
    let second = values();
    let values = first.into_iter().zip(second);
    let looks = numbers.iter().zip(values).zip(before.iter().zip(entries));
    looks
        .map(|((number, (first, second)), (before, entry))| {
            let (Some(before), Some(entry)) = (before, entry) else { return Bracket::Gone };
            if before.id != entry.id {
                return Bracket::Moving;
            }
            of_one(*number, first, second, &entry, sides)
        })
        .collect()
}

/// What a bracket says of one connection.
fn of_one(
    number: Option<u32>,
    first: Option<abi::Flow>,
    second: Option<abi::Flow>,
    entry: &Entry,
    sides: &Sides<'_>,
) -> Bracket {
    let part = Table::name(entry).and_then(|name| sides.ended.flow(&name)).copied();
    let (counted, total) = match (number, part) {
        (Some(number), part) => {
            let mut counted = sides.table.counted(number);
            let total = match (first, second) {
                (Some(first), Some(second)) if packets(&first) != packets(&second) => return Bracket::Moving,
                (_, Some(second)) => match sides.table.total_with(number, &second) {
                    Some(total) => total,
                    None => return Bracket::Moving,
                },
                // The map has it no more: the table's is final.
                (_, None) => counted.total,
            };
            if let Some(part) = part {
                counted.join(&part);
            }
            (counted, sum(total, part.map(|part| part.total)))
        }
        (None, Some(part)) => (part, part.total),
        (None, None) => return Bracket::Still(missing(entry, sides)),
    };
    match differing(&counted, total, entry) {
        Some(difference) => Bracket::Still(difference),
        None => Bracket::Equal,
    }
}

fn missing(entry: &Entry, sides: &Sides<'_>) -> Difference {
    let known = match sides.table.counterpart(entry) {
        Counterpart::BeforeAgent => Some(Reason::BeganBefore),
        Counterpart::OtherZone => Some(Reason::OtherZone),
        _ if sides.ended.not_kept() > 0 => Some(Reason::NotKept),
        _ => None,
    };
    let start = entry.start.unwrap_or(sides.now);
    only_conntrack(entry, known, (sides.is_local)(&Ends::from(entry), start))
}

fn sum(total: [u64; 4], part: Option<[u64; 4]>) -> [u64; 4] {
    let part = part.unwrap_or_default();
    std::array::from_fn(|at| total[at] + part[at])
}

fn packets(flow: &abi::Flow) -> [u64; 2] {
    [flow.direction[0].packets, flow.direction[1].packets]
}
