//! What agents say of their own counting: per interface, what was seen, accounted, annotated and lost; what was sent
//! and not sent.
//!
//! Takes records of accounting; keeps the latest of each and gives the cluster's sums. Bounded: interfaces that are gone
//! become one sum of their agent's, as Pods come and go by the thousand.

use flow_common::{
    ipfix::accounting::Accounting,
    record::{InterfaceCount, Metering, NotSent},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Interfaces times headings of all Nodes.
const MAX: usize = 262_144;
/// Headings are few, and become labels of metrics.
const MAX_REASONS: usize = 64;
/// An interface of which its agent says nothing for so many seconds while it tells of others is gone: agents tell of all
/// of theirs every minute.
const GONE: u32 = 180;
/// How often such ones are looked for at most.
const SWEEP: u32 = 60;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Layer-3 bytes.
    pub octets: u64,
}

impl Amount {
    fn add(&mut self, other: Amount) {
        self.packets = self.packets.saturating_add(other.packets);
        self.octets = self.octets.saturating_add(other.octets);
    }
}

/// By place in the headings.
type Sums = BTreeMap<usize, Amount>;

/// What an interface had under a heading, and when its agent said so.
#[derive(Debug)]
struct Counted {
    amount: Amount,
    heard: u32,
}

/// The latest word of every agent.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    reasons: Vec<String>,
    /// By observation domain, interface and place in `reasons`.
    interfaces: HashMap<(u32, u32, usize), Counted>,
    /// Of interfaces that are gone, by observation domain and place in `reasons`.
    gone: HashMap<(u32, usize), Amount>,
    /// When each agent told of any interface.
    heard: HashMap<u32, u32>,
    /// When interfaces that are gone were looked for.
    swept: Option<u32>,
    metering: HashMap<u32, Metering>,
    not_sent: HashMap<u32, NotSent>,
}

impl Accounts {
    /// Keeps a record of the Node with this domain; false if there is no room.
    pub(super) fn take(&mut self, domain: u32, accounting: &Accounting, now: u32) -> bool {
        match accounting {
            Accounting::Interface(count) => self.take_interface(domain, count, now),
            Accounting::Metering(metering) => keep(&mut self.metering, domain, *metering),
            Accounting::NotSent(not_sent) => keep(&mut self.not_sent, domain, *not_sent),
            Accounting::Addr(_) => true,
        }
    }

    /// The cluster's sums by heading.
    pub(super) fn interface_sums(&self) -> BTreeMap<&str, Amount> {
        let mut sums = Sums::new();
        for (_, reason, amount) in self.amounts() {
            sums.entry(reason).or_default().add(amount);
        }
        self.named(sums)
    }

    /// The same by the observation domain of each agent.
    pub(super) fn agent_sums(&self) -> BTreeMap<u32, BTreeMap<&str, Amount>> {
        let mut agents: BTreeMap<u32, Sums> = BTreeMap::new();
        for (domain, reason, amount) in self.amounts() {
            agents.entry(domain).or_default().entry(reason).or_default().add(amount);
        }
        agents.into_iter().map(|(domain, sums)| (domain, self.named(sums))).collect()
    }

    /// Each with its observation domain and place in `reasons`.
    fn amounts(&self) -> impl Iterator<Item = (u32, usize, Amount)> {
        let there = self.interfaces.iter().map(|((domain, _, reason), counted)| (*domain, *reason, counted.amount));
        there.chain(self.gone.iter().map(|((domain, reason), amount)| (*domain, *reason, *amount)))
    }

    fn named(&self, sums: Sums) -> BTreeMap<&str, Amount> {
        sums.into_iter().map(|(reason, sum)| (self.reasons[reason].as_str(), sum)).collect()
    }

    /// Flow records that agents sent, and those they could not send.
    pub(super) fn export_sums(&self) -> (u64, u64) {
        let sent = self.metering.values().fold(0, |sum: u64, agent| sum.saturating_add(agent.records));
        let not_sent = self.not_sent.values().fold(0, |sum: u64, agent| sum.saturating_add(agent.flows));
        (sent, not_sent)
    }

    fn take_interface(&mut self, domain: u32, count: &InterfaceCount, now: u32) -> bool {
        let known = self.reasons.iter().position(|reason| *reason == count.reason);
        let reason = match known {
            Some(reason) => reason,
            None if self.reasons.len() >= MAX_REASONS => return false,
            None => {
                self.reasons.push(count.reason.clone());
                self.reasons.len() - 1
            }
        };
        let key = (domain, count.interface, reason);
        let counted = Counted { amount: Amount { packets: count.packets, octets: count.octets }, heard: now };
        keep(&mut self.heard, domain, now);
        if self.interfaces.len() >= MAX && !self.interfaces.contains_key(&key) {
            self.fold(now);
        }
        keep(&mut self.interfaces, key, counted)
    }

    /// Makes room: what interfaces that are gone had becomes one sum. An agent that is away itself is waited for.
    fn fold(&mut self, now: u32) {
        if self.swept.is_some_and(|last| now.saturating_sub(last) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        let Accounts { interfaces, gone, heard, .. } = self;
        interfaces.retain(|(domain, _, reason), counted| {
            let silent = heard.get(domain).is_some_and(|last| last.saturating_sub(counted.heard) >= GONE);
            let mut sum = gone.get(&(*domain, *reason)).copied().unwrap_or_default();
            sum.add(counted.amount);
            !silent || !keep(gone, (*domain, *reason), sum)
        });
    }
}

fn keep<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, key: K, value: V) -> bool {
    let room = map.len() < MAX || map.contains_key(&key);
    if room {
        map.insert(key, value);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(interface: u32, reason: &str, packets: u64) -> Accounting {
        Accounting::Interface(InterfaceCount {
            interface,
            reason: reason.to_owned(),
            interface_name: format!("veth{interface}"),
            packets,
            octets: packets * 100,
        })
    }

    #[test]
    fn sums_are_of_the_latest_of_each() {
        let mut accounts = Accounts::default();
        for (domain, record) in [
            (1, count(5, "seen", 10)),
            (1, count(5, "seen", 30)),
            (1, count(6, "seen", 4)),
            (2, count(5, "seen", 100)),
            (2, count(5, "map_full", 1)),
        ] {
            assert!(accounts.take(domain, &record, 0));
        }
        let sums = accounts.interface_sums();
        assert_eq!(sums["seen"], Amount { packets: 134, octets: 13_400 });
        assert_eq!(sums["map_full"].packets, 1);
        let metering = |records| Accounting::Metering(Metering { records, ..Metering::default() });
        for (domain, records) in [(1, 7), (1, 9), (2, 1)] {
            accounts.take(domain, &metering(records), 0);
        }
        accounts.take(2, &Accounting::NotSent(NotSent { flows: 3, ..NotSent::default() }), 0);
        assert_eq!(accounts.export_sums(), (10, 3));
    }

    #[test]
    fn headings_are_bounded() {
        let mut accounts = Accounts::default();
        let taken = (0..100).filter(|at| accounts.take(1, &count(1, &format!("made-up-{at}"), 1), 0)).count();
        assert_eq!(taken, MAX_REASONS);
        assert!(accounts.take(1, &count(1, "made-up-3", 2), 0));
    }

    #[test]
    fn interfaces_that_are_gone_make_room_and_stay_in_the_sums() {
        let mut accounts = Accounts::default();
        let most = MAX as u32;
        // A few of an agent that is away by then.
        (0..most).for_each(|at| assert!(accounts.take(u32::from(at >= 10), &count(at, "seen", 1), 0)));
        assert!(!accounts.take(1, &count(most, "seen", 1), 100), "they may all be there yet");
        assert!(accounts.take(1, &count(10, "seen", 3), 200), "it is");
        assert!(accounts.take(1, &count(most + 1, "seen", 1), 200));
        assert_eq!(accounts.interfaces.len(), 10 + 2);
        assert_eq!(accounts.interface_sums()["seen"].packets, u64::from(most) + 3);
        assert_eq!(accounts.agent_sums()[&1]["seen"].packets, u64::from(most) + 3 - 10);
    }
}
