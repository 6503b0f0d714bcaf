//! Whether the kernel programs and connection tracking counted the same of every connection, and if not, by how much and why.
//!
//! Takes the table's side ([`crate::table::Counted`]) and connection tracking's entries; gives [`Report`]s. Live connections are compared
//! on request by a [`Check`], ended ones as they end by [`Ended`]. Does no I/O and reads no clock: whoever owns map and netlink reads
//! single values through the functions it hands in.

use serde::{Deserialize, Serialize};

mod ended;
mod live;
mod reason;
#[cfg(test)]
mod tests;

pub use ended::Ended;
pub use live::{Check, Sides};
pub use reason::Reason;

/// Differences of each kind that a report names; the others are in its sums.
const NAMED: usize = 500;

/// What a comparison found of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Both counted the same.
    Equal,
    /// It went on while it was looked at.
    Moving,
    /// The counters differ.
    Differs,
    /// Connection tracking does not know it.
    OnlyEbpf,
    /// No flow was counted.
    OnlyConntrack,
}

/// Connections with one outcome and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// What was found.
    pub outcome: Outcome,
    /// Why; none where nothing is to explain, or it is not known.
    pub reason: Option<Reason>,
    /// How many.
    pub connections: u64,
}

/// Connections by outcome and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums(pub Vec<Count>);

/// A connection of which both sides do not say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What was found.
    pub outcome: Outcome,
    /// Why, where it is known.
    pub reason: Option<Reason>,
    /// Number of the protocol.
    pub protocol: u8,
    /// The originator: address and port.
    pub src: (std::net::IpAddr, u16),
    /// Whom it asked, before translation.
    pub dst: (std::net::IpAddr, u16),
    /// Zone of connection tracking.
    pub zone: u16,
    /// Packets and bytes of the originator, then of the responder, as the kernel programs counted them.
    pub ebpf: [u64; 4],
    /// As connection tracking counted them.
    pub conntrack: [u64; 4],
}

/// Differences as they are named: some of those whose reason is known, some of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// Those without a known reason.
    pub unexplained: Vec<Difference>,
    /// Those with one.
    pub explained: Vec<Difference>,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// All that was compared.
    pub sums: Sums,
    /// Differences, not all where there are very many; of ended connections the latest.
    pub differences: Differences,
}

/// What `verify` tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why live connections could not be compared; none if they were.
    pub failure: Option<String>,
    /// Whether connection tracking counts packets: without it only presence is compared.
    pub accounting: bool,
    /// The connections that live.
    pub live: Findings,
    /// The connections that have ended since the agent began.
    pub ended: Findings,
    /// Connections that have ended on one side, and wait for their end on the other.
    pub waiting: u64,
    /// Ended ones that there was no room to compare.
    pub not_kept: u64,
    /// Milliseconds that the comparison took, and those of them that the agent worked on it.
    pub took_ms: [u64; 2],
}

impl Report {
    /// Connections whose difference nobody can explain.
    pub fn unexplained(&self) -> u64 {
        self.live.sums.unexplained() + self.ended.sums.unexplained()
    }
}

impl Sums {
    fn add(&mut self, outcome: Outcome, reason: Option<Reason>) {
        let known = self.0.iter_mut().find(|count| (count.outcome, count.reason) == (outcome, reason));
        match known {
            Some(count) => count.connections += 1,
            None => self.0.push(Count { outcome, reason, connections: 1 }),
        }
    }

    /// All connections.
    pub fn compared(&self) -> u64 {
        self.0.iter().map(|count| count.connections).sum()
    }

    /// Those with this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0.iter().filter(|count| count.outcome == outcome).map(|count| count.connections).sum()
    }

    /// Those that differ without a known reason.
    pub fn unexplained(&self) -> u64 {
        self.0.iter().filter(|count| count.is_unexplained()).map(|count| count.connections).sum()
    }
}

impl Count {
    /// Whether something is to explain and nobody can.
    pub fn is_unexplained(&self) -> bool {
        !matches!(self.outcome, Outcome::Equal | Outcome::Moving) && self.reason.is_none()
    }
}

impl Outcome {
    /// A stable name: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Moving => "moving",
            Self::Differs => "differs",
            Self::OnlyEbpf => "only_ebpf",
            Self::OnlyConntrack => "only_conntrack",
        }
    }
}

impl Findings {
    fn note(&mut self, difference: Difference) {
        self.sums.add(difference.outcome, difference.reason);
        let list = match difference.reason {
            Some(_) => &mut self.differences.explained,
            None => &mut self.differences.unexplained,
        };
        if list.len() < NAMED {
            list.push(difference);
        }
    }

    /// The same, the latest kept.
    fn note_latest(&mut self, difference: Difference) {
        let Differences { unexplained, explained } = &mut self.differences;
        for list in [unexplained, explained] {
            if list.len() >= NAMED {
                list.remove(0);
            }
        }
        self.note(difference);
    }
}
