//! Who holds how many places: bounds of what is open at one time, in all and of one address.
//!
//! Takes a peer's address and the bounds that are in force; gives a [`Place`], or says which bound is reached. A place
//! is free again when its value is dropped, so that one of a task that failed is not lost. It waits for nobody.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In all.
    pub all: usize,
    /// Of one address: one peer cannot take all.
    pub of_one: usize,
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There is no place for anybody.
    All,
    /// There is none for this address.
    OfOne,
}

/// The places that are taken; every clone counts the same.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Mutex<Taken>>);

/// One of them.
#[derive(Debug)]
pub struct Place {
    places: Places,
    addr: IpAddr,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

impl Places {
    /// Takes a place for this address. Bounds that became lower take nobody's away.
    pub fn take(&self, addr: IpAddr, bounds: Bounds) -> Result<Place, Full> {
        let mut taken = self.taken();
        if taken.all >= bounds.all {
            return Err(Full::All);
        }
        let of_one = taken.of.get(&addr).copied().unwrap_or(0);
        if of_one >= bounds.of_one {
            return Err(Full::OfOne);
        }
        taken.of.insert(addr, of_one + 1);
        taken.all += 1;
        Ok(Place { places: self.clone(), addr })
    }

    /// Nothing that holds the lock can fail amid a change.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(of_one) = taken.of.get_mut(&self.addr) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.of.remove(&self.addr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn one_address_cannot_take_every_place() {
        let (places, bounds) = (Places::default(), Bounds { all: 3, of_one: 2 });
        let first = places.take(ONE, bounds).unwrap();
        let second = places.take(ONE, bounds).unwrap();
        assert_eq!(places.take(ONE, bounds).unwrap_err(), Full::OfOne);
        let third = places.take(OTHER, bounds).unwrap();
        assert_eq!(places.take(OTHER, bounds).unwrap_err(), Full::All);
        drop(first);
        assert_eq!(places.take(ONE, Bounds { of_one: 1, ..bounds }).unwrap_err(), Full::OfOne, "a lower bound");
        let again = places.take(ONE, bounds).unwrap();
        drop((second, third, again));
        assert_eq!(places.taken().of.len(), 0, "whoever left is forgotten");
        assert_eq!(places.taken().all, 0);
    }
}
