//! Ended connections: the flow's final totals against connection tracking's final counters, whichever comes first.
//!
//! A flow that its own packets closed is let go within seconds, its connection only minutes later; of UDP it is the other way round. What
//! is there first waits for the other, in bounded room. What waits belongs to the comparison of live connections, too: connection tracking
//! still has the connection whose flow has gone.

use std::collections::HashMap;
use std::time::Duration;

use flow_common::time::Timestamp;

use super::reason::{differing, only_conntrack, only_ebpf};
use super::{Findings, Outcome, Reason, Report};
use crate::conntrack::Entry;
use crate::table::{Counted, Counterpart, Ends, Name, Parted, Table};

/// How long a flow's totals wait for connection tracking's end: longer than it keeps what is closed.
const FLOWS_WAIT: Duration = Duration::from_secs(3_600);

/// How long connection tracking's end waits for a flow that nobody knows of; events may have been lost and the sweep finds it.
const ENDS_WAIT: Duration = Duration::from_secs(30);

/// How often what has waited in vain is looked for.
const INTERVAL: Duration = Duration::from_secs(10);

/// Ended connections and what was found of them.
#[derive(Debug)]
pub struct Ended {
    capacity: usize,
    /// Flows whose connection goes on, each with the time until which it waits.
    flows: HashMap<Name, (Timestamp, Counted)>,
    /// Connections whose flow goes on, likewise.
    connections: HashMap<Name, (Timestamp, Entry)>,
    looked: Timestamp,
    findings: Findings,
    not_kept: u64,
}

impl Ended {
    /// With room for so many on each side.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            flows: HashMap::new(),
            connections: HashMap::new(),
            looked: Timestamp::ZERO,
            findings: Findings::default(),
            not_kept: 0,
        }
    }

    /// What was found so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Tells what was found so far.
    pub fn tell(&self, report: &mut Report) {
        report.ended = self.findings.clone();
        report.waiting = u64::try_from(self.flows.len() + self.connections.len()).unwrap_or(u64::MAX);
        report.not_kept = self.not_kept;
    }

    /// The flow, or the part of it, that has ended while connection tracking still has the connection.
    pub fn flow(&self, name: &Name) -> Option<&Counted> {
        self.flows.get(name).map(|(_, counted)| counted)
    }

    /// How many there was no room for.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// So many found no room on the way here.
    pub fn note_not_kept(&mut self, more: u64) {
        self.not_kept += more;
    }

    /// Takes in what has ended.
    pub fn feed(&mut self, parted: &Parted, table: &Table, now: Timestamp) {
        match parted {
            Parted::Flow(counted) if !counted.is_tracked => self.findings.note_latest(only_ebpf(counted)),
            Parted::Flow(counted) => self.end_flow(*counted, table, now),
            Parted::Connection(entry) => self.end_connection(entry, table, now),
        }
    }

    /// Judges what has waited in vain.
    pub fn expire(&mut self, table: &Table, is_local: impl Fn(&Ends, Timestamp) -> bool, now: Timestamp) {
        if !now.is_past(self.looked, INTERVAL) {
            return;
        }
        self.looked = now;
        let Self { flows, connections, findings, not_kept, .. } = self;
        connections.retain(|_, (until, entry)| {
            if *until > now {
                return true;
            }
            let known = match table.counterpart(entry) {
                Counterpart::Flow(_) => {
                    *until = now.plus(ENDS_WAIT);
                    return true;
                }
                Counterpart::BeforeAgent => Some(Reason::BeganBefore),
                Counterpart::OtherZone => Some(Reason::OtherZone),
                Counterpart::None if *not_kept > 0 => Some(Reason::NotKept),
                Counterpart::None => None,
            };
            let is_local = is_local(&Ends::from(&*entry), entry.start.unwrap_or(now));
            findings.note_latest(only_conntrack(entry, known, is_local));
            false
        });
        flows.retain(|_, (until, counted)| {
            if *until <= now {
                let reason = Some(Reason::EndNotTold);
                findings.note_latest(super::Difference { reason, ..only_ebpf(counted) });
            }
            *until > now
        });
    }

    fn end_flow(&mut self, mut counted: Counted, table: &Table, now: Timestamp) {
        let name = counted.name;
        if let Some((_, earlier)) = self.flows.remove(&name) {
            counted.join(&earlier);
        }
        if let Some((_, entry)) = self.connections.get(&name).filter(|(_, entry)| !is_there(table, entry)) {
            compare(&mut self.findings, &counted, entry);
            self.connections.remove(&name);
        } else if self.flows.len() < self.capacity {
            self.flows.insert(name, (now.plus(FLOWS_WAIT), counted));
        } else {
            self.not_kept += 1;
        }
    }

    fn end_connection(&mut self, entry: &Entry, table: &Table, now: Timestamp) {
        let Some(name) = Table::name(entry) else { return };
        if !is_there(table, entry)
            && let Some((_, counted)) = self.flows.remove(&name)
        {
            compare(&mut self.findings, &counted, entry);
        } else if self.connections.len() < self.capacity {
            self.connections.insert(name, (now.plus(ENDS_WAIT), *entry));
        } else {
            self.not_kept += 1;
        }
    }
}

fn compare(findings: &mut Findings, counted: &Counted, entry: &Entry) {
    match differing(counted, counted.total, entry) {
        Some(difference) => findings.note_latest(difference),
        None => findings.sums.add(Outcome::Equal, None),
    }
}

/// Whether the connection still has a flow that will end.
fn is_there(table: &Table, entry: &Entry) -> bool {
    matches!(table.counterpart(entry), Counterpart::Flow(number) if table.counted(number).is_tracked)
}
