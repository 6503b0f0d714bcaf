//! Values by a small number that is given again once the value has gone. The numbers stay dense, so that others can
//! keep arrays beside.

use std::ops::{Index, IndexMut};

/// The number of nothing.
pub(super) const NONE: u32 = u32::MAX;

/// The values. A removed one stays in place until its number is given again: who keeps numbers says when they end.
#[derive(Debug)]
pub(super) struct Slab<T> {
    values: Vec<T>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// Reserves addresses for `capacity` values; memory comes with the values.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { values: Vec::with_capacity(capacity), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self[number] = value;
            return number;
        }
        let number = self.values.len() as u32;
        assert!(number != NONE, "a slab holds fewer than 2^32 values");
        self.values.push(value);
        number
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.free.push(number);
    }

    pub(super) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    /// Numbers ever given; some may be free.
    pub(super) fn numbers(&self) -> std::ops::Range<u32> {
        0..self.values.len() as u32
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: u32) -> &T {
        &self.values[number as usize]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.values[number as usize]
    }
}
