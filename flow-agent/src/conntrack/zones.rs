//! The zones of connection tracking that are of interest.

/// Zones as configured; none are all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones(Vec<u16>);

impl From<Vec<u16>> for Zones {
    fn from(zones: Vec<u16>) -> Self {
        Self(zones)
    }
}

impl Zones {
    /// Whether a connection of this zone is of interest.
    pub fn has(&self, zone: u16) -> bool {
        self.0.is_empty() || self.0.contains(&zone)
    }

    /// What to ask the kernel for: each zone, or everything.
    pub(super) fn asked(&self) -> impl Iterator<Item = Option<u16>> + '_ {
        let all = self.0.is_empty().then_some(None);
        all.into_iter().chain(self.0.iter().copied().map(Some))
    }
}
