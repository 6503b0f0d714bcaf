//! Beginnings and ends that were told of lately, so that one that is told of twice counts once. Keeps a bounded number of them.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// What tells one connection from the next at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// When it began, where that is noted.
    pub(super) start: u64,
    /// Hash of its tuple.
    pub(super) tuple: u64,
}

/// By the connection's address. The older half goes when the younger is full.
#[derive(Debug)]
pub(super) struct Recent {
    younger: HashMap<u64, Identity, FixedState>,
    older: HashMap<u64, Identity, FixedState>,
    capacity: usize,
}

impl Recent {
    /// Remembers so many at least, twice as many at most.
    pub(super) fn new(capacity: usize) -> Self {
        Self { younger: HashMap::default(), older: HashMap::default(), capacity }
    }

    pub(super) fn has(&self, address: u64, identity: Identity) -> bool {
        self.younger.get(&address).or_else(|| self.older.get(&address)) == Some(&identity)
    }

    /// False if it was there.
    pub(super) fn insert(&mut self, address: u64, identity: Identity) -> bool {
        if self.has(address, identity) {
            return false;
        }
        if self.younger.len() >= self.capacity {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(address, identity);
        true
    }

    pub(super) fn remove(&mut self, address: u64) {
        self.younger.remove(&address);
        self.older.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(start: u64) -> Identity {
        Identity { start, tuple: 1 }
    }

    #[test]
    fn the_same_at_the_same_address_is_known() {
        let mut recent = Recent::new(8);
        assert!(recent.insert(1, of(5)));
        assert!(!recent.insert(1, of(5)));
        assert!(recent.insert(1, of(6)), "another connection at that address");
        recent.remove(1);
        assert!(recent.insert(1, of(6)));
    }

    #[test]
    fn the_last_ones_are_remembered_and_no_more_than_twice_as_many() {
        let mut recent = Recent::new(8);
        for address in 0..100 {
            assert!(recent.insert(address, of(0)));
            assert!(recent.younger.len() + recent.older.len() <= 16);
        }
        assert!((92..100).all(|address| recent.has(address, of(0))));
        assert!(!recent.has(0, of(0)));
    }
}
