//! One connection with two tuples, whatever comes first.

use super::*;

/// What happens to a translated connection, in some order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Connection tracking's message.
    Told,
    /// A packet of each direction at the original tuple's point.
    Before,
    /// The same packets at the translated tuple's point.
    After,
    /// Rings are read, and the map swept.
    Swept,
    /// More than the active time-out passes, and what is due is given.
    Exported,
}

/// A translated connection and the points that see it.
struct Case {
    name: &'static str,
    original: Tuple,
    /// As the server answers.
    reply: Tuple,
    before: [u32; 2],
    after: [u32; 2],
    /// Whether the original tuple's point has to count.
    original_counts: bool,
}

fn cases() -> [Case; 5] {
    let pod_to_service = tuple(("10.0.1.2", 40_000), ("10.96.0.10", 80), 6);
    let outside_to_node = tuple(("192.0.2.9", 40_000), ("172.18.0.2", 30_080), 6);
    let masqueraded = ("172.18.0.2", 61_000);
    [
        Case {
            name: "Service, backend on this Node",
            original: pod_to_service,
            reply: tuple(("10.0.1.3", 8080), ("10.0.1.2", 40_000), 6),
            before: [pod(CLIENT, false), pod(CLIENT, true)],
            after: [pod(SERVER, true), pod(SERVER, false)],
            original_counts: true,
        },
        Case {
            name: "Service, backend on another Node",
            original: pod_to_service,
            reply: tuple(("10.0.2.3", 8080), ("10.0.1.2", 40_000), 6),
            before: [pod(CLIENT, false), pod(CLIENT, true)],
            after: [uplink(true), uplink(false)],
            original_counts: true,
        },
        Case {
            name: "NodePort with masquerade, backend on this Node",
            original: outside_to_node,
            reply: tuple(("10.0.1.3", 8080), masqueraded, 6),
            before: [uplink(false), uplink(true)],
            after: [pod(SERVER, true), pod(SERVER, false)],
            original_counts: false,
        },
        Case {
            name: "NodePort with masquerade, backend on another Node",
            original: outside_to_node,
            reply: tuple(("10.0.2.3", 8080), masqueraded, 6),
            before: [uplink(false), uplink(true)],
            after: [uplink(true), uplink(false)],
            original_counts: true,
        },
        Case {
            name: "a Pod's own Service",
            original: pod_to_service,
            reply: tuple(("10.0.1.2", 8080), ("10.0.1.1", 50_000), 6),
            before: [pod(CLIENT, false), pod(CLIENT, true)],
            after: [pod(CLIENT, true), pod(CLIENT, false)],
            original_counts: true,
        },
    ]
}

impl Case {
    fn entry(&self) -> Entry {
        tracked(self.original, self.reply, 5)
    }

    fn run(&self, sim: &mut Simulation, step: Step) {
        let (before, after) = (self.original, back(self.reply));
        match step {
            Step::Told => sim.conntrack(Kind::New, self.entry()),
            Step::Before => {
                sim.packet(before, self.before[0], 100, ACK);
                sim.packet(back(before), self.before[1], 1_000, ACK);
            }
            Step::After => {
                sim.packet(after, self.after[0], 100, ACK);
                sim.packet(back(after), self.after[1], 1_000, ACK);
            }
            Step::Swept => sim.sweep(),
            Step::Exported => {
                sim.sweep();
                sim.pass(6_000);
                sim.sweep();
            }
        }
    }
}

/// Every order of the steps.
fn orders(steps: &[Step]) -> Vec<Vec<Step>> {
    if steps.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let mut rest = steps.to_vec();
        rest.remove(at);
        for mut order in orders(&rest) {
            order.insert(0, *step);
            all.push(order);
        }
    }
    all
}

#[test]
fn two_entries_are_one_flow_in_every_order() {
    for case in cases() {
        for order in orders(&[Step::Told, Step::Before, Step::After, Step::Swept]) {
            let mut sim = Simulation::new();
            for step in &order {
                case.run(&mut sim, *step);
            }
            case.run(&mut sim, Step::Before);
            case.run(&mut sim, Step::After);
            sim.finish();
            let context = format!("{}: {order:?}", case.name);
            assert_eq!(sim.given.len(), 1, "{context}");
            let record = sim.record();
            assert_eq!(packets(&record), [2, 2, 2, 2], "{context}");
            assert_eq!(octets(&record), [200, 200, 2_000, 2_000], "{context}");
            let head = &record.head;
            assert_eq!((head.src_addr, head.src_port), (case.original.src, case.original.src_port), "{context}");
            assert_eq!((head.dst_addr, head.dst_port), (case.reply.src, case.reply.src_port), "{context}");
            assert_eq!(record.ends.original_dst, Some((case.original.dst, case.original.dst_port)), "{context}");
            let seen_as = (case.reply.dst, case.reply.dst_port);
            let is_masqueraded = seen_as != (case.original.src, case.original.src_port);
            assert_eq!(record.ends.nat_src, is_masqueraded.then_some(seen_as), "{context}");
            if is_masqueraded {
                assert_eq!((record.extended.nat_src_addr, record.extended.nat_src_port), seen_as, "{context}");
            }
            check_sums(&sim, &case, &context);
        }
    }
}

/// One entry's packets are accounted, the other's annotated.
fn check_sums(sim: &Simulation, case: &Case, context: &str) {
    let sums = sim.table.interfaces();
    let total = |part: fn(&InterfaceSums) -> abi::Count| sums.values().map(|sums| part(sums).packets).sum::<u64>();
    assert_eq!([total(|sums| sums.accounted), total(|sums| sums.annotated)], [4, 4], "{context}");
    for (interface, counted) in sim.counted() {
        assert_eq!(everything(&sums[&interface]), counted, "{context}");
    }
    let points = if case.original_counts { case.before } else { case.after };
    for point in points {
        assert!(sums[&owner::ifindex(point)].accounted.packets > 0, "{context}");
    }
}

#[test]
fn what_was_exported_before_the_join_is_not_exported_again() {
    for case in cases() {
        for order in orders(&[Step::Told, Step::Before, Step::After, Step::Exported]) {
            let mut sim = Simulation::new();
            for step in &order {
                case.run(&mut sim, *step);
            }
            case.run(&mut sim, Step::Before);
            case.run(&mut sim, Step::After);
            sim.finish();
            let context = format!("{}: {order:?}", case.name);
            let records = sim.records();
            let last = records.last().unwrap();
            // Where both were exported before anybody knew that they are one, the first packets are in records twice,
            // as two flows.
            let both = order.ends_with(&[Step::Exported, Step::Told]);
            let delta = records.iter().map(|record| record.head.packet_delta).sum::<u64>();
            assert_eq!(delta, if both { 3 } else { 2 }, "{context}");
            let same: u64 = records
                .iter()
                .filter(|record| record.extended.flow_id == last.extended.flow_id)
                .map(|record| record.head.packet_delta)
                .sum();
            assert_eq!((last.head.packet_total, same), (2, 2), "{context}");
            assert_eq!((last.head.src_addr, last.head.dst_addr), (case.original.src, case.reply.src), "{context}");
            let sums = sim.table.interfaces();
            let accounted: u64 = sums.values().map(|sums| sums.accounted.packets).sum();
            let exported =
                records.iter().map(|record| record.head.packet_delta + record.head.reverse_packet_delta).sum::<u64>();
            assert_eq!(accounted, exported, "{context}");
            for (interface, counted) in sim.counted() {
                assert_eq!(everything(&sums[&interface]), counted, "{context}");
            }
        }
    }
}

#[test]
fn both_entries_end_and_are_deleted_with_their_flow() {
    for case in cases() {
        let mut sim = Simulation::new();
        for step in [Step::Told, Step::Before, Step::After, Step::Swept] {
            case.run(&mut sim, step);
        }
        let (before, after) = (case.original, back(case.reply));
        sim.packet(back(before), case.before[1], 40, RST);
        sim.packet(back(after), case.after[1], 40, RST);
        sim.tick();
        let record = sim.record();
        assert_eq!((record.head.end_reason, packets(&record)), (EndReason::End, [1, 1, 2, 2]), "{}", case.name);
        for _ in 0..3 {
            sim.pass(2_000);
            sim.sweep();
        }
        assert!(sim.map.is_empty(), "{}", case.name);
        assert_eq!((sim.table.statistics().connections, sim.table.statistics().tracked), (0, 0), "{}", case.name);
    }
}

#[test]
fn a_refused_connection_that_is_forgotten_before_its_packets_are_read_is_one_flow() {
    for case in cases() {
        let mut sim = Simulation::new();
        sim.conntrack(Kind::New, case.entry());
        sim.conntrack(Kind::Destroy, case.entry());
        let (before, after) = (case.original, back(case.reply));
        for (tuple, points) in [(before, case.before), (after, case.after)] {
            sim.packet(tuple, points[0], 60, SYN);
            sim.packet(back(tuple), points[1], 40, RST | ACK);
        }
        sim.tick();
        let record = sim.record();
        assert_eq!((record.head.end_reason, packets(&record)), (EndReason::End, [1, 1, 1, 1]), "{}", case.name);
        for _ in 0..3 {
            sim.pass(2_000);
            sim.sweep();
        }
        assert_eq!((sim.records().len(), sim.map.len()), (0, 0), "{}", case.name);
        assert_eq!((sim.table.statistics().connections, sim.table.statistics().tracked), (0, 0), "{}", case.name);
    }
}

#[test]
fn the_next_connection_of_the_same_tuples_is_another_flow() {
    for case in cases() {
        let mut sim = Simulation::new();
        for step in [Step::Told, Step::Before, Step::After, Step::Swept] {
            case.run(&mut sim, step);
        }
        sim.conntrack(Kind::Destroy, case.entry());
        sim.conntrack(Kind::New, Entry { id: 6, ..case.entry() });
        for step in [Step::After, Step::Before, Step::Swept, Step::Before, Step::After] {
            case.run(&mut sim, step);
        }
        sim.finish();
        let totals: Vec<[u64; 4]> = sim.records().iter().map(packets).collect();
        assert_eq!(totals, [[1, 1, 1, 1], [2, 2, 2, 2]], "{}", case.name);
    }
}

#[test]
fn a_translated_flow_that_was_ended_for_room_goes_on_as_another_under_its_right_ends() {
    let [case, ..] = cases();
    let mut sim = Simulation::with(TableConfig { max_flows: 2, ..config() });
    for step in [Step::Told, Step::Before, Step::After, Step::Swept] {
        case.run(&mut sim, step);
    }
    sim.pass(3_000);
    sim.sweep();
    let ended = sim.record();
    assert_eq!(ended.head.end_reason, EndReason::Resources);
    case.run(&mut sim, Step::Before);
    case.run(&mut sim, Step::After);
    sim.finish();
    let next = sim.record();
    assert_eq!((next.head.src_addr, next.head.dst_addr), (case.original.src, case.reply.src));
    assert_eq!(packets(&next), [1, 1, 1, 1]);
    assert_ne!(next.extended.flow_id, ended.extended.flow_id);
    let accounted: u64 = sim.table.interfaces().values().map(|sums| sums.accounted.packets).sum();
    assert_eq!(accounted, 4);
}

#[test]
fn the_zone_that_translates_names_the_flow() {
    let [case, ..] = cases();
    for translation_first in [false, true] {
        let mut sim = Simulation::new();
        let plain = Entry { zone: 7, id: 9, ..tracked(case.original, back(case.original), 9) };
        let order = if translation_first { [case.entry(), plain] } else { [plain, case.entry()] };
        case.run(&mut sim, Step::Before);
        sim.tick();
        for entry in order {
            sim.conntrack(Kind::New, entry);
        }
        case.run(&mut sim, Step::After);
        sim.finish();
        let record = sim.record();
        assert_eq!((record.head.dst_addr, record.zone), (case.reply.src, 0));
        assert_eq!(packets(&record), [1, 1, 1, 1]);
    }
}
