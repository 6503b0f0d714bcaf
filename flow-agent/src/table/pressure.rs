//! What goes first when room runs out: connections that were never answered, then those quiet for longest.

use super::Table;
use super::connection::{LIVE, OVER, Reason};
use super::time::{STRAYS_NS, since};

/// Parts of the room in use beyond which connections are ended, and to which they are.
const FULL: (usize, usize) = (8, 10);
const RELIEVED: (usize, usize) = (3, 4);

/// How often room is looked for: the search goes over all connections.
const INTERVAL_NS: u64 = 1_000_000_000;

impl Table {
    /// Ends connections while the kernel's maps are nearly full, so that their entries can be deleted. One that had
    /// packets in the last 2 s goes only if there is no room at all.
    pub(super) fn relieve(&mut self, now_ns: u64) {
        let room = self.config.max_flows as usize;
        let lengths = self.entries.lengths();
        if since(now_ns, self.relieved_ns) < INTERVAL_NS
            || lengths.iter().all(|length| *length <= room * FULL.0 / FULL.1)
        {
            return;
        }
        self.relieved_ns = now_ns;
        let mut candidates: [Vec<(bool, u64, u32)>; 2] = [Vec::new(), Vec::new()];
        let mut ending = [0; 2];
        for number in self.connections.numbers() {
            let connection = &self.connections[number];
            if !connection.has(LIVE) {
                continue;
            }
            let family = usize::from(!self.ends(number).src.is_ipv4());
            let entries = 1 + usize::from(connection.other != super::slab::NONE);
            if connection.has(OVER) {
                ending[family] += entries;
            } else {
                candidates[family].push((connection.is_answered(), connection.last_ns, number));
            }
        }
        for (family, mut candidates) in candidates.into_iter().enumerate() {
            let staying = lengths[family].saturating_sub(ending[family]);
            let mut excess = staying.saturating_sub(room * RELIEVED.0 / RELIEVED.1);
            if lengths[family] <= room * FULL.0 / FULL.1 || excess == 0 {
                continue;
            }
            candidates.sort_unstable();
            let no_room_at_all = staying > room;
            candidates.retain(|(_, last_ns, _)| no_room_at_all || since(now_ns, *last_ns) >= STRAYS_NS);
            excess = excess.min(candidates.len());
            for (_, _, number) in &candidates[..excess] {
                self.statistics.evicted += 1;
                self.end(*number, Reason::Resources, now_ns);
            }
        }
    }
}
