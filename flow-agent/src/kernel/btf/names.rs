//! Named structures, unions, enumerations and functions of one section, by the hash of their name.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

use super::kind;
use super::section::Section;

/// Types of a section by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Number of the section's first type.
    begin: u32,
    /// The hash of a name -> the first type with it.
    first: HashMap<u64, u32, FixedState>,
    /// Per type, the next one with the same hash; 0 is none.
    next: Vec<u32>,
}

impl Names {
    /// Of a section whose names `string` gives: those of a module may be the kernel's.
    pub(super) fn of<'a>(section: &Section, string: impl Fn(u32) -> Option<&'a [u8]>) -> Self {
        let ids = section.ids();
        let mut next = vec![0; ids.len()];
        let mut first = HashMap::with_hasher(FixedState::default());
        // From the last to the first, so that each chain runs upwards.
        for (slot, id) in next.iter_mut().zip(ids.clone()).rev() {
            let Some(of) = section.get(id) else { continue };
            let named = matches!(of.kind(), kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FUNCTION);
            let Some(name) = string(of.name).filter(|name| named && !name.is_empty()) else { continue };
            if let Some(before) = first.insert(hash(name), id) {
                *slot = before;
            }
        }
        Self { begin: ids.start, first, next }
    }

    /// Types whose name has the hash of this one, in order.
    pub(super) fn candidates(&self, name: &[u8]) -> impl Iterator<Item = u32> {
        let next = |id: &u32| self.next.get(id.checked_sub(self.begin)? as usize).copied().filter(|next| *next != 0);
        std::iter::successors(self.first.get(&hash(name)).copied(), next)
    }
}

fn hash(name: &[u8]) -> u64 {
    FixedState::default().hash_one(name)
}
