//! What addresses stand for, where several objects may claim the same one.
//!
//! An answer never depends on the order in which objects came: of several claims the one whose owner's name sorts
//! first counts, and when that is withdrawn the next does.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cidr::Cidr;

/// Keys, and for each the claims on it, sorted by owner.
#[derive(Debug)]
pub(super) struct Claims<K, V> {
    by_key: HashMap<K, Vec<(Arc<str>, V)>, foldhash::fast::RandomState>,
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self { by_key: HashMap::default() }
    }
}

impl<K: Copy + Eq + Hash, V> Claims<K, V> {
    /// Adds what `owner` claims. A key that it claims already keeps its value.
    pub(super) fn add(&mut self, owner: &Arc<str>, claims: impl IntoIterator<Item = (K, V)>) {
        for (key, value) in claims {
            let claimed = self.by_key.entry(key).or_default();
            if let Err(place) = claimed.binary_search_by(|(known, _)| known.cmp(owner)) {
                claimed.insert(place, (owner.clone(), value));
            }
        }
    }

    /// Withdraws `owner`'s claims on these keys.
    pub(super) fn remove<'a>(&mut self, owner: &str, keys: impl IntoIterator<Item = &'a K>)
    where
        K: 'a,
    {
        for key in keys {
            if let Some(claimed) = self.by_key.get_mut(key) {
                claimed.retain(|(known, _)| **known != *owner);
                if claimed.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
    }

    /// The claim that counts.
    pub(super) fn first(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)?.first().map(|(_, value)| value)
    }
}

/// Networks, counted, so that two Nodes may name the same one.
#[derive(Debug, Default)]
pub(super) struct Networks {
    count: HashMap<Cidr, usize, foldhash::fast::RandomState>,
    /// How many networks there are by family (is it IPv4) and length of prefix: one look-up for each.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Networks {
    /// Adds a network once more.
    pub(super) fn add(&mut self, network: Cidr) {
        *self.count.entry(network).or_default() += 1;
        *self.lengths.entry((network.addr().is_ipv4(), network.prefix())).or_default() += 1;
    }

    /// Takes away what `add` added.
    pub(super) fn remove(&mut self, network: Cidr) {
        if let Some(count) = self.count.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&network);
            }
            let length = (network.addr().is_ipv4(), network.prefix());
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
    }

    /// Whether one of them holds `addr`.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        let family = addr.is_ipv4();
        let mut lengths = self.lengths.range((family, 0)..=(family, 128));
        lengths
            .any(|((_, prefix), _)| Cidr::new(addr, *prefix).is_some_and(|network| self.count.contains_key(&network)))
    }
}
