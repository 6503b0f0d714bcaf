//! The Nodes' own addresses, as their agents report them.
//!
//! Takes what options data says; gives whether an address belongs to another Node than the one that reports a flow.
//! Bounded; an address belongs to the exporter that reported it last.

use super::flow::Exporter;
use std::{collections::HashMap, net::IpAddr};

/// A Node has some dozens of addresses, a large cluster some thousands of Nodes.
const MAX: usize = 262_144;

/// Which exporter's an address is.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<IpAddr, Exporter>);

impl Nodes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// False if there is no room.
    pub(super) fn report(&mut self, addr: IpAddr, exporter: Exporter) -> bool {
        let addr = addr.to_canonical();
        if self.0.len() >= MAX && !self.0.contains_key(&addr) {
            return false;
        }
        self.0.insert(addr, exporter);
        true
    }

    /// Whether the address is a Node's, and not the reporter's own.
    pub(super) fn is_other(&self, addr: IpAddr, reporter: Exporter) -> bool {
        self.0.get(&addr.to_canonical()).is_some_and(|owner| *owner != reporter)
    }
}
