//! Whatever comes in whatever order: no packet is lost, none is exported twice.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A packet of a connection: there or back, with its flags. Seen at both points where it is translated.
    Packet {
        connection: usize,
        back: bool,
        bytes: u64,
        flags: u32,
    },
    /// Connection tracking tells of a connection's beginning or end.
    Told {
        connection: usize,
        ended: bool,
    },
    /// From here on the packets of a connection take another way: other points count them.
    Rerouted {
        connection: usize,
    },
    /// The rings lose what they may lose: a take-over without room on the ring does not happen.
    RingFull,
    Ticked,
    Swept,
    /// Part of the map is read: entries whose place has this remainder.
    SweptPartly {
        of: usize,
    },
    Passed {
        milliseconds: u64,
    },
    Connected(bool),
    Local(bool),
    /// The agent is killed, and the next one goes on with what is in the kernel.
    Restarted,
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![4 => Just(ACK), 2 => Just(SYN), 1 => Just(SYN | ACK), 2 => Just(FIN | ACK), 1 => Just(RST)];
    prop_oneof![
        12 => (0..5usize, any::<bool>(), 40..1_500u64, flags)
            .prop_map(|(connection, back, bytes, flags)| Step::Packet { connection, back, bytes, flags }),
        3 => (0..5usize, prop::bool::weighted(0.4)).prop_map(|(connection, ended)| Step::Told { connection, ended }),
        2 => (0..5usize).prop_map(|connection| Step::Rerouted { connection }),
        1 => Just(Step::RingFull),
        3 => Just(Step::Ticked),
        3 => Just(Step::Swept),
        2 => (0..3usize).prop_map(|of| Step::SweptPartly { of }),
        4 => prop_oneof![1..500u64, 1_000..8_000u64, 20_000..150_000u64]
            .prop_map(|milliseconds| Step::Passed { milliseconds }),
        1 => any::<bool>().prop_map(Step::Connected),
        1 => any::<bool>().prop_map(Step::Local),
    ]
}

/// Original tuple, reply, and the points of both: two Service connections, two plain ones, a name query.
fn connection(number: usize) -> (Tuple, Tuple, u32, u32) {
    let port = 40_000 + number as u16;
    let service = tuple(("10.0.1.2", port), ("10.96.0.10", 80), 6);
    match number {
        0 => (service, tuple(("10.0.1.3", 8080), ("10.0.1.2", port), 6), pod(CLIENT, false), pod(SERVER, true)),
        1 => {
            let node_port = tuple(("192.0.2.9", port), ("172.18.0.2", 30_080), 6);
            (node_port, tuple(("10.0.1.3", 8080), ("172.18.0.2", 61_000), 6), uplink(false), pod(SERVER, true))
        }
        2 | 3 => {
            let plain = tuple(("fd01::2", port), ("fd02::3", 80), 6);
            (plain, back(plain), pod(CLIENT, false), pod(CLIENT, false))
        }
        _ => {
            let query = tuple(("10.0.1.2", port), ("10.0.1.9", 53), 17);
            (query, back(query), pod(CLIENT, false), pod(CLIENT, false))
        }
    }
}

/// The simulation, what it counted in entries that are gone, and the ids of tracked connections.
struct Law {
    sim: Simulation,
    ids: [u32; 5],
    rerouted: [u32; 5],
    counted: BTreeMap<u32, abi::Count>,
    records: Vec<Update>,
}

impl Law {
    fn run(&mut self, step: Step) {
        match step {
            Step::Packet { connection: number, back: is_back, bytes, flags } => {
                let (original, reply, before, after) = connection(number);
                let flags = if original.protocol == 6 { flags } else { 0 };
                let [before, after] = [before, after].map(|point| point ^ self.rerouted[number]);
                self.count(if is_back { back(original) } else { original }, before, bytes, flags);
                if back(reply) != original {
                    self.count(if is_back { reply } else { back(reply) }, after, bytes, flags);
                }
            }
            Step::Told { connection: number, ended } => {
                let (original, reply, ..) = connection(number);
                let id = number as u32 * 1_000 + self.ids[number];
                self.sim.now += 1_000;
                let start = Some(self.sim.time()).filter(|_| !ended);
                self.sim.conntrack(
                    if ended { Kind::Destroy } else { Kind::New },
                    Entry { start, ..tracked(original, reply, id) },
                );
                self.ids[number] += u32::from(ended);
            }
            Step::Rerouted { connection: number } => self.rerouted[number] ^= owner::pack(64, false, false),
            Step::RingFull => self.sim.events.retain(|event| event.kind & !1 == abi::EVENT_TAKEOVER),
            Step::Ticked => self.sim.tick(),
            Step::Swept => self.sim.sweep(),
            Step::SweptPartly { of } => {
                let (clock, now) = (self.sim.clock(), self.sim.time());
                let mut slice = Slice::default();
                for (_, ((wide, key), flow)) in self.sim.map.iter().enumerate().filter(|(at, _)| at % 3 == of) {
                    push(&mut slice, *wide, *key, *flow);
                }
                self.sim.tick();
                self.sim.table.feed_slice(&slice, &clock, now);
                self.sim.due();
            }
            Step::Passed { milliseconds } => self.sim.pass(milliseconds),
            Step::Connected(connected) => self.sim.connected = connected,
            Step::Local(local) => self.sim.local = local,
            Step::Restarted => self.sim.restart(),
        }
        self.records.extend(self.sim.records());
    }

    fn new(config: TableConfig) -> Self {
        let sim = Simulation::with(config);
        Self { sim, ids: [0; 5], rerouted: [0; 5], counted: BTreeMap::new(), records: Vec::new() }
    }

    fn count(&mut self, tuple: Tuple, point: u32, bytes: u64, flags: u32) {
        self.sim.packet(tuple, point, bytes, flags);
        let count = self.counted.entry(owner::ifindex(point)).or_default();
        count.packets += 1;
        count.bytes += bytes;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_is_lost_and_none_is_exported_twice(steps in prop::collection::vec(step(), 1..120)) {
        let mut law = Law::new(config());
        for step in steps {
            law.run(step);
            // At any time, each interface's packets that were seen are somewhere.
            for sums in law.sim.table.interfaces().values() {
                prop_assert!(everything(sums).packets <= law.counted.values().map(|count| count.packets).sum());
            }
        }
        law.sim.finish();
        law.records.extend(law.sim.records());

        let sums = law.sim.table.interfaces();
        for (interface, counted) in &law.counted {
            prop_assert_eq!(everything(&sums[interface]), *counted, "interface {}", interface);
            prop_assert_eq!(sums[interface].undecided, abi::Count::default());
        }

        // What is accounted is what was exported.
        let accounted = sums.values().fold([0, 0], |[packets, bytes], sums| {
            [packets + sums.accounted.packets, bytes + sums.accounted.bytes]
        });
        let exported = law.records.iter().fold([0, 0], |[packets, bytes], record| {
            let head = &record.head;
            let (sent, answered) = (head.packet_delta, head.reverse_packet_delta);
            [packets + sent + answered, bytes + head.octet_delta + head.reverse_octet_delta]
        });
        prop_assert_eq!(accounted, exported);

        // A flow's deltas add up to its totals, record by record.
        let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
        for record in &law.records {
            let head = &record.head;
            let total = totals.entry(record.extended.flow_id).or_default();
            *total += head.packet_delta + head.reverse_packet_delta;
            prop_assert_eq!(*total, head.packet_total + head.reverse_packet_total);
        }
        prop_assert!(law.sim.table.flows().next().is_none());
    }
    #[test]
    fn restarts_lose_no_packet_of_an_interface_and_no_flow_begins_anew(
        steps in prop::collection::vec(prop_oneof![15 => step(), 1 => Just(Step::Restarted)], 1..120),
    ) {
        let mut law = Law::new(TableConfig { keeps: true, ..config() });
        steps.into_iter().for_each(|step| law.run(step));
        law.sim.finish();
        law.records.extend(law.sim.records());

        let sums = law.sim.table.interfaces();
        for (interface, counted) in &law.counted {
            let sums = sums.get(interface).copied().unwrap_or_default();
            prop_assert_eq!(everything(&sums), *counted, "interface {}", interface);
        }
        // Which end originated it may turn out later.
        let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
        for record in &law.records {
            let before = totals.entry(record.extended.flow_id).or_default();
            let now = record.head.packet_total + record.head.reverse_packet_total;
            prop_assert!(now >= *before, "{} packets, then {:?}", before, record);
            *before = now;
        }
    }
}
