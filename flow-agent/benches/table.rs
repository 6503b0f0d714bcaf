//! The connection table alone: nanoseconds a flow for a sweep in which nothing, or everything, changed, for its exports
//! and their names, and for new flows. 100,000 flows over IPv4, medians of several rounds.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::time::Duration;

use flow_agent::enrich::Enricher;
use flow_agent::kernel::{Clock, Slice};
use flow_agent::table::{Table, TableConfig, Update};
use flow_common::abi::{self, Direction, Event, FLAG_ACK, FLAG_SYN, Flow, Key4, owner};
use flow_common::k8s::Index;
use flow_common::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};

const FLOWS: u32 = 100_000;
const SLICE: usize = 8_192;
const ROUNDS: usize = 9;
const BATCH: usize = 2_048;

const WALL_NS: u64 = 1_700_000_000_000_000_000;
const JIFFY_NS: u64 = 4_000_000;

/// The kernel's map, its flows in an order that has nothing to do with the table's.
struct Map {
    keys: Vec<Key4>,
    flows: Vec<Flow>,
    now_ns: u64,
}

impl Map {
    fn new() -> Self {
        let direction = Direction {
            packets: 1,
            bytes: 60,
            owner: owner::pack(7, true, false),
            flags: FLAG_SYN | FLAG_ACK,
            ..Direction::default()
        };
        let flow = Flow { direction: [direction; 2], first_ns: 1, ..Flow::default() };
        Self { keys: (0..FLOWS).map(key).collect(), flows: vec![flow; FLOWS as usize], now_ns: 0 }
    }

    fn clock(&self) -> Clock {
        Clock::new((self.now_ns / JIFFY_NS) as u32, JIFFY_NS, self.now_ns, WALL_NS + self.now_ns)
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(WALL_NS + self.now_ns)
    }

    fn events(&self) -> Vec<Event> {
        let event =
            |(key, flow): (&Key4, &Flow)| Event { kind: abi::EVENT_NEW, family: 4, key: (*key).into(), flow: *flow };
        self.keys.iter().zip(&self.flows).map(event).collect()
    }

    /// As the kernel's hash has them, not as they came.
    fn shuffle(&mut self) {
        self.keys.sort_by_key(|key| {
            let [a, b] = key.addr.map(u64::from);
            ((a << 32 | b) ^ u64::from(key.port[0]) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
    }

    /// 5 s in which every flow had this many packets each way.
    fn pass(&mut self, packets: u64) {
        self.now_ns += 5_000_000_000;
        for direction in self.flows.iter_mut().flat_map(|flow| &mut flow.direction) {
            direction.packets += packets;
            direction.bytes += packets * 1_000;
            direction.last = (self.now_ns / JIFFY_NS) as u32;
        }
    }

    fn slices(&self) -> Vec<Slice> {
        let parts = self.keys.chunks(SLICE).zip(self.flows.chunks(SLICE));
        parts.map(|(keys, flows)| Slice { keys4: keys.to_vec(), flows4: flows.to_vec(), ..Slice::default() }).collect()
    }
}

fn key(number: u32) -> Key4 {
    let [client, server] = [(number % 100) as u8, (number / 100 % 100) as u8];
    let addr = [[10, 0, 1, client], [10, 0, 2, server]].map(u32::from_ne_bytes);
    Key4 { addr, port: [(number / 10_000 + 40_000) as u16, 80], protocol: 6, scope: [0; 3] }
}

fn main() {
    let mut map = Map::new();
    let config = TableConfig { timestamps: false, ..TableConfig::default() };
    let mut table = Table::new(config, map.now());
    let mut enricher = Enricher::new("node", false, Index::new(1_000));

    let events = map.events();
    let new = time(|| table.feed_events(&events, &map.clock(), map.now()));
    map.shuffle();
    // The first export of each goes by the clock, the others with the sweep.
    map.pass(0);
    map.now_ns += 1_000_000_000;
    assert_eq!(drain(&mut table, &mut enricher, map.now()), FLOWS as usize);

    let (mut quiet, mut active, mut exported) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        map.pass(0);
        let slices = map.slices();
        quiet.push(time(|| slices.iter().for_each(|slice| table.feed_slice(slice, &map.clock(), map.now()))));
        map.pass(3);
        let (mut feeding, mut exporting, mut records) = (Duration::ZERO, Duration::ZERO, 0);
        for slice in &map.slices() {
            feeding += time(|| table.feed_slice(slice, &map.clock(), map.now()));
            exporting += time(|| records += drain(&mut table, &mut enricher, map.now()));
        }
        assert_eq!(records, FLOWS as usize, "every flow is due");
        active.push(feeding);
        exported.push(exporting);
    }
    println!("new flow        {:4} ns", per_flow(new));
    println!("quiet sweep     {:4} ns", per_flow(median(&mut quiet)));
    println!("active sweep    {:4} ns", per_flow(median(&mut active)));
    println!("export, names   {:4} ns", per_flow(median(&mut exported)));
}

/// Everything that is due, named; how much that was.
fn drain(table: &mut Table, enricher: &mut Enricher, now: Timestamp) -> usize {
    let mut updates: Vec<Update> = Vec::with_capacity(BATCH);
    let mut records = 0;
    loop {
        updates.clear();
        let more = table.due(now, true, BATCH, |ends, start| enricher.exports(ends, start), &mut updates);
        records += updates.len();
        updates.iter().for_each(|update| drop(black_box(enricher.record(update))));
        if !more {
            return records;
        }
    }
}

/// CPU time of this thread: others may use the machine.
fn time(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    };
    let begin = now();
    work();
    now().saturating_sub(begin)
}

fn per_flow(whole: Duration) -> u128 {
    whole.as_nanos() / u128::from(FLOWS)
}

fn median(rounds: &mut [Duration]) -> Duration {
    rounds.sort_unstable();
    rounds[rounds.len() / 2]
}
