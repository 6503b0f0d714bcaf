//! The agent's accounting as options data. Takes facts and counts, gives records in the order in which they are sent.

use flow_common::ipfix::accounting::Accounting;
use flow_common::record::{InterfaceCount, Metering, NodeAddr, NotSent};

use super::outbox::Counts;
use crate::doctor::{Facts, Interface, Tally};

/// The agent has one metering and one exporting process.
const PROCESS: u32 = 1;

/// Everything that is told.
pub(super) fn records(facts: &Facts, counts: &Counts) -> Vec<Accounting> {
    let mut records = vec![
        Accounting::Metering(Metering {
            metering_process: PROCESS,
            messages: counts.messages,
            records: counts.records,
            octets: counts.octets,
        }),
        Accounting::NotSent(NotSent {
            exporting_process: PROCESS,
            flows: counts.lost_flows,
            packets: counts.lost.packets,
            octets: counts.lost.bytes,
            first_milliseconds: counts.lost_at[0].millis(),
            last_milliseconds: counts.lost_at[1].millis(),
        }),
    ];
    let is_there = |index: u32| facts.interfaces.iter().any(|other| other.index == index && other.attached.is_some());
    let is_told = |it: &&Interface| it.attached.is_some() || it.seen.packets > 0 && !is_there(it.index);
    facts.interfaces.iter().filter(is_told).for_each(|interface| describe(interface, &mut records));
    records.extend(facts.addresses.iter().map(|address| {
        Accounting::Addr(NodeAddr {
            interface: address.index,
            addr: address.addr,
            node: facts.node.clone(),
            interface_name: address.interface.clone(),
        })
    }));
    records
}

fn describe(interface: &Interface, records: &mut Vec<Accounting>) {
    let mut tell = |reason: &str, tally: Tally| {
        records.push(Accounting::Interface(InterfaceCount {
            interface: interface.index,
            reason: reason.to_owned(),
            interface_name: interface.name.clone(),
            packets: tally.packets,
            octets: tally.bytes,
        }));
    };
    tell("seen", interface.seen);
    tell("accounted", interface.accounted);
    tell("annotated", interface.annotated);
    interface.lost.iter().for_each(|loss| tell(&loss.reason, loss.tally));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Address;
    use crate::doctor::Loss;

    #[test]
    fn an_interface_that_has_gone_is_told_of_until_another_has_its_index() {
        let gone = Interface { index: 4, seen: Tally { packets: 7, bytes: 700 }, ..Interface::default() };
        let told = |interfaces: &[&Interface]| -> Vec<u64> {
            let facts = Facts { interfaces: interfaces.iter().copied().cloned().collect(), ..Facts::default() };
            let seen = |record: Accounting| match record {
                Accounting::Interface(count) if count.reason == "seen" => Some(count.packets),
                _ => None,
            };
            records(&facts, &Counts::default()).into_iter().filter_map(seen).collect()
        };
        let waiting = Interface { index: 5, ..Interface::default() };
        assert_eq!(told(&[&waiting, &gone]), [7]);
        let next = Interface { attached: Some("tcx".into()), seen: Tally { packets: 1, bytes: 60 }, ..gone.clone() };
        assert_eq!(told(&[&next, &waiting, &gone]), [1]);
    }

    /// What the aggregator adds up: seen is accounted, annotated, or lost for a reason, once nothing waits.
    #[test]
    fn each_interface_is_told_with_all_its_reasons() {
        let tally = |packets| Tally { packets, bytes: packets * 100 };
        let interface = Interface {
            name: "eth0".into(),
            index: 2,
            attached: Some("tcx".into()),
            seen: tally(10),
            accounted: tally(6),
            annotated: tally(3),
            lost: vec![Loss { reason: "not_ip".into(), tally: tally(1) }],
            ..Interface::default()
        };
        let left_out = Interface { name: "veth0".into(), refused: Some("why".into()), ..Interface::default() };
        let address = Address { addr: [10, 0, 0, 1].into(), index: 2, interface: "eth0".into() };
        let facts = Facts { interfaces: vec![interface, left_out], addresses: vec![address], ..Facts::default() };
        let told = records(&facts, &Counts::default());
        let of_interface: Vec<(&str, u64)> = told
            .iter()
            .filter_map(|record| match record {
                Accounting::Interface(count) => Some((count.reason.as_str(), count.packets)),
                _ => None,
            })
            .collect();
        assert_eq!(of_interface, [("seen", 10), ("accounted", 6), ("annotated", 3), ("not_ip", 1)]);
        assert_eq!(told.len(), 2 + 4 + 1);
    }
}
