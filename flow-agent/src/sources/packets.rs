//! Where the packets are counted: by the kernel's programs at the interfaces, or by connection tracking.
//!
//! Gives what both have in common: a clock, single values, deletions. What only the programs have is empty with connection tracking.

use super::tracked::{self, TrackedFlows};
use crate::doctor::Fill;
use crate::kernel::clock::monotonic_and_wall;
use crate::kernel::{Clock, Deleted, InterfaceReport, Kernel, MapError, RunStatistics};
use crate::table::{Deletions, Key};

/// Whoever counts.
pub(super) enum Packets {
    /// The programs.
    Programs(Box<Kernel>),
    /// Connection tracking, and why not the programs if they were to.
    Tracking(TrackedFlows, Option<String>),
}

impl Packets {
    /// The clock of its values.
    pub(super) fn clock(&self) -> Clock {
        match self {
            Self::Programs(kernel) => kernel.clock(),
            Self::Tracking(..) => {
                let (monotonic_ns, wall_ns) = monotonic_and_wall();
                tracked::clock(monotonic_ns, wall_ns)
            }
        }
    }

    /// One value as it is now.
    pub(super) fn lookup(&self, key: &Key) -> Option<flow_common::abi::Flow> {
        match (self, key) {
            (Self::Programs(kernel), Key::V4(key)) => kernel.lookup4(key).ok().flatten(),
            (Self::Programs(kernel), Key::V6(key)) => kernel.lookup6(key).ok().flatten(),
            (Self::Tracking(flows, _), key) => flows.lookup(key),
        }
    }

    /// Whether the counting goes on when the agent ends.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self, Self::Programs(kernel) if kernel.is_kept())
    }

    /// Deletes what the table asks for.
    pub(super) fn delete(&mut self, deletions: &Deletions, deleted: &mut Deleted) -> Result<(), MapError> {
        match self {
            Self::Programs(kernel) => {
                let Deletions { keys4, seen4, keys6, seen6 } = deletions;
                kernel.delete((keys4, seen4), (keys6, seen6), deleted)
            }
            Self::Tracking(flows, _) => {
                *deleted = Deleted::default();
                let keys4 = deletions.keys4.iter().copied().map(Key::V4);
                let keys = keys4.chain(deletions.keys6.iter().copied().map(Key::V6));
                keys.for_each(|key| flows.delete(&key));
                deleted.removed = deletions.keys4.len() + deletions.keys6.len();
                Ok(())
            }
        }
    }

    /// Every interface that a pattern names.
    pub(super) fn interfaces(&mut self) -> Vec<InterfaceReport> {
        match self {
            Self::Programs(kernel) => kernel.interfaces(),
            Self::Tracking(..) => Vec::new(),
        }
    }

    /// Fill of whatever holds the values.
    pub(super) fn fill(&self) -> Vec<Fill> {
        match self {
            Self::Programs(kernel) => {
                let fill = |map: crate::kernel::MapFill| Fill {
                    name: map.name.to_owned(),
                    used: map.used,
                    capacity: map.capacity,
                };
                kernel.maps().into_iter().map(fill).collect()
            }
            Self::Tracking(flows, _) => {
                let wide = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
                vec![Fill {
                    name: "tracked_flows".to_owned(),
                    used: wide(flows.len()),
                    capacity: wide(flows.capacity()),
                }]
            }
        }
    }

    /// Run times of the programs.
    pub(super) fn run_statistics(&self) -> Vec<RunStatistics> {
        match self {
            Self::Programs(kernel) => kernel.run_statistics(),
            Self::Tracking(..) => Vec::new(),
        }
    }
}
