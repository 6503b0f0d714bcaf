//! The Nodes' own addresses, as their agents report them.
//!
//! Takes what options data says; gives whether an address belongs to another Node than the one that reports a flow.
//! Bounded; an address belongs to the exporter that reported it last, or to none while several report it, as those of
//! bridges that are alike on every Node.

use super::flow::Exporter;
use std::{collections::HashMap, net::IpAddr};

/// A Node has some dozens of addresses, a large cluster some thousands of Nodes.
const MAX: usize = 262_144;

/// Agents report once a minute. An address that has moved to another Node is that one's after so long.
const LATELY: u32 = 300;

/// Which exporter's an address is.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<IpAddr, Owner>);

#[derive(Debug)]
struct Owner {
    exporter: Exporter,
    reported: u32,
    shared_until: u32,
}

impl Nodes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// False if there is no room.
    pub(super) fn report(&mut self, addr: IpAddr, exporter: Exporter, now: u32) -> bool {
        let addr = addr.to_canonical();
        if self.0.len() >= MAX && !self.0.contains_key(&addr) {
            return false;
        }
        let owner = self.0.entry(addr).or_insert(Owner { exporter, reported: now, shared_until: 0 });
        if owner.exporter != exporter && now < owner.reported.saturating_add(LATELY) {
            owner.shared_until = now + LATELY;
        }
        (owner.exporter, owner.reported) = (exporter, now);
        true
    }

    /// Whether the address is one Node's, and not the reporter's own.
    pub(super) fn is_other(&self, addr: IpAddr, reporter: Exporter, now: u32) -> bool {
        let owner = self.0.get(&addr.to_canonical());
        owner.is_some_and(|owner| owner.exporter != reporter && owner.shared_until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NODE_A, NODE_B};
    use super::*;
    use crate::aggregate::agent;

    #[test]
    fn an_address_that_several_report_is_no_other_node_s() {
        let (mut nodes, [a, b]) = (Nodes::default(), [NODE_A, NODE_B].map(|node| agent(node.domain)));
        let bridge = IpAddr::from([172, 17, 0, 1]);
        nodes.report(bridge, a, 0);
        assert!(nodes.is_other(bridge, b, 0) && !nodes.is_other(bridge, a, 0));
        for minute in 1..20 {
            nodes.report(bridge, [a, b][minute as usize % 2], minute * 60);
            assert!([a, b].iter().all(|reporter| !nodes.is_other(bridge, *reporter, minute * 60 + 30)));
        }
        // One of the Nodes is gone, or the address has moved.
        let gone = (20..30).find(|minute| {
            nodes.report(bridge, b, minute * 60);
            nodes.is_other(bridge, a, minute * 60)
        });
        assert!(gone.is_some() && !nodes.is_other(bridge, b, 30 * 60));
    }
}
