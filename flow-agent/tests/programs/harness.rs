//! The real kernel programs, run on single packets by BPF_PROG_TEST_RUN, and their maps read back.
//!
//! Each harness is in a network namespace of its own, because a test run's interface must exist.

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult};
use aya::{Ebpf, EbpfLoader};
use flow_common::abi::{Count, Direction, Event, Flow, HookCounters, Key4, Key6, Reason, SLOTS, owner};
use std::cell::RefCell;
use std::process::Command;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flow-ebpf.o"));

/// TC_ACT_UNSPEC, as a return value is shown.
const NEXT: u32 = u32::MAX;
/// Interfaces that exist in the namespace: pairs of veths, 2 to this.
pub(crate) const INTERFACES: u32 = 9;

/// Sizes and times that a test sets.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) max_flows: u32,
    pub(crate) ring_bytes: u32,
    /// Ticks until an owner is silent: 0 is always, the greatest never.
    pub(crate) silence: u32,
}

impl Default for Setting {
    fn default() -> Self {
        Self { max_flows: 256, ring_bytes: 1 << 16, silence: u32::MAX }
    }
}

/// A point and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) ifindex: u32,
    pub(crate) pod: bool,
    pub(crate) egress: bool,
}

/// Shorthands: the interfaces of these tests.
pub(crate) const fn pod(ifindex: u32, egress: bool) -> Point {
    Point { ifindex, pod: true, egress }
}
pub(crate) const fn uplink(ifindex: u32, egress: bool) -> Point {
    Point { ifindex, pod: false, egress }
}

impl Point {
    pub(crate) fn packed(self) -> u32 {
        owner::pack(self.ifindex, self.pod, self.egress)
    }

    fn program(self) -> &'static str {
        match (self.pod, self.egress) {
            (true, false) => "pod_ingress",
            (true, true) => "pod_egress",
            (false, false) => "uplink_ingress",
            (false, true) => "uplink_egress",
        }
    }
}

/// What of a packet is not in its bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Segments {
    pub(crate) count: u32,
    pub(crate) size: u32,
}

/// Loaded programs.
pub(crate) struct Harness {
    /// Loaded into the kernel when they are first run.
    programs: RefCell<Ebpf>,
    flows4: HashMap<MapData, [u8; 16], [u8; 144]>,
    flows6: HashMap<MapData, [u8; 40], [u8; 144]>,
    counters: PerCpuArray<MapData, [u8; 288]>,
    ethertypes: HashMap<MapData, u32, [u8; 16]>,
    clocks: Array<MapData, [u8; 16]>,
    lease: Array<MapData, u64>,
    _slots: Array<MapData, u32>,
    events: RingBuf<MapData>,
    ends: RingBuf<MapData>,
}

impl Harness {
    pub(crate) fn new(setting: Setting) -> Self {
        assert!(
            !OBJECT.is_empty(),
            "the kernel programs are not built: run `cargo xtask build-ebpf` before these tests"
        );
        namespace();
        let mut programs = EbpfLoader::new()
            .map_max_entries("flows4", setting.max_flows)
            .map_max_entries("flows6", setting.max_flows)
            .map_max_entries("counters", INTERFACES + 1)
            .map_max_entries("ethertypes", 4)
            .map_max_entries("fragments", 64)
            .map_max_entries("events", setting.ring_bytes)
            .map_max_entries("ends", setting.ring_bytes)
            .override_global("SILENCE", &setting.silence, true)
            .load(OBJECT)
            .unwrap_or_else(|error| panic!("kernel programs need root: run these tests with sudo ({error})"));
        let mut slots: Array<_, u32> = map(&mut programs, "slots");
        for ifindex in 1..=INTERFACES {
            slots.set(ifindex % SLOTS, ifindex, 0).expect("within the map");
        }
        Self {
            flows4: map(&mut programs, "flows4"),
            flows6: map(&mut programs, "flows6"),
            counters: map(&mut programs, "counters"),
            ethertypes: map(&mut programs, "ethertypes"),
            clocks: map(&mut programs, "clocks"),
            lease: map(&mut programs, "lease"),
            events: map(&mut programs, "events"),
            ends: map(&mut programs, "ends"),
            _slots: slots,
            programs: RefCell::new(programs),
        }
    }

    /// Sets the tick up to which packets are counted.
    pub(crate) fn lease(&mut self, tick: u64) {
        self.lease.set(0, tick, 0).expect("an array has its key");
    }

    /// Runs the program of a point on a frame.
    pub(crate) fn pass(&self, point: Point, frame: &[u8]) {
        self.pass_as(point.program(), point.ifindex, frame, Segments::default());
    }

    /// Runs a program by name on a frame that stands for several segments.
    pub(crate) fn pass_as(&self, name: &str, ifindex: u32, frame: &[u8], segments: Segments) {
        let context = context(ifindex, segments);
        let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        let result = self.run(name, options);
        assert_eq!(result.return_value, NEXT, "the packet's fate is not ours");
    }

    /// Returns after the kernel's clock has ticked.
    pub(crate) fn next_tick(&self) {
        let tick = || {
            self.pass_clock();
            let reading = self.clocks.get(&0, 0).expect("one entry");
            u64::from_ne_bytes(*reading.first_chunk().expect("eight bytes"))
        };
        let begin = tick();
        while tick() == begin {}
    }

    fn pass_clock(&self) {
        self.run("clock", TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() });
    }

    fn run(&self, name: &str, options: TestRunOptions<'_>) -> TestRunResult {
        let mut programs = self.programs.borrow_mut();
        let program = program_mut(&mut programs, name);
        if program.fd().is_err() {
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        program.test_run(options).unwrap_or_else(|error| panic!("{name}: {error:?}"))
    }

    /// Every flow of both maps, keys in the form of events.
    pub(crate) fn flows(&self) -> Vec<(Key6, Flow)> {
        let flows4 = self.flows4.iter().map(|entry| entry.expect("a map"));
        let flows4 = flows4.map(|(key, flow)| (key4(&key).into(), self::flow(&flow)));
        let flows6 = self.flows6.iter().map(|entry| entry.expect("a map"));
        let flows6 = flows6.map(|(key, flow)| (key6(&key), self::flow(&flow)));
        flows4.chain(flows6).collect()
    }

    /// One flow, by the key an event has.
    pub(crate) fn flow(&self, family: u32, key: &Key6) -> Option<Flow> {
        let bytes = if family == 4 {
            let [low, high] = key.to_key4().addr;
            let mut bytes = [0; 16];
            write(&mut bytes, &[&low.to_ne_bytes(), &high.to_ne_bytes()], key);
            self.flows4.get(&bytes, 0)
        } else {
            let halves = key.addr.as_flattened().iter().map(|half| half.to_ne_bytes()).collect::<Vec<_>>();
            let mut bytes = [0; 40];
            write(&mut bytes, &halves.iter().map(|half| &half[..]).collect::<Vec<_>>(), key);
            self.flows6.get(&bytes, 0)
        };
        bytes.ok().map(|bytes| flow(&bytes))
    }

    /// The only flow there is.
    pub(crate) fn only(&self) -> (Key6, Flow) {
        let flows = self.flows();
        assert_eq!(flows.len(), 1, "one flow: {flows:#?}");
        flows[0]
    }

    /// Moves the last packets of every IPv4 flow by so many ticks.
    pub(crate) fn move_last(&mut self, ticks: i32) {
        const LAST: usize = 16;
        let flows: Vec<_> = self.flows4.iter().map(|entry| entry.expect("a map")).collect();
        for (key, mut flow) in flows {
            for direction in flow.chunks_exact_mut(48).take(2) {
                let last = Fields(&direction[LAST..]).u32().wrapping_add_signed(ticks);
                direction[LAST..LAST + 4].copy_from_slice(&last.to_ne_bytes());
            }
            self.flows4.insert(key, flow, 0).expect("it is in");
        }
    }

    /// Counters of a point over all CPUs.
    pub(crate) fn counters(&self, point: Point) -> HookCounters {
        let values = self.counters.get(&point.ifindex, 0).expect("within the map");
        let mut sum = HookCounters::default();
        for value in values.iter() {
            let mut fields = Fields(&value[usize::from(point.egress) * 144..]);
            count(&mut sum.seen, &mut fields);
            sum.segments += fields.u64();
            count(&mut sum.annotated, &mut fields);
            for lost in &mut sum.lost {
                count(lost, &mut fields);
            }
            sum.events_lost += fields.u64();
            sum.ends_lost += fields.u64();
            sum.fragments_alone += fields.u64();
        }
        sum
    }

    /// Packets of an ethertype that is no IP.
    pub(crate) fn ethertype(&self, ethertype: u16) -> u64 {
        let key = u32::from(ethertype.to_be());
        self.ethertypes.get(&key, 0).map_or(0, |count| Fields(&count).u64())
    }

    /// New flows and generations since the last call.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        drain(&mut self.events)
    }

    /// Closed connections since the last call.
    pub(crate) fn ends(&mut self) -> Vec<Event> {
        drain(&mut self.ends)
    }

    /// That every packet and byte that was seen is counted, annotated or lost for a reason; and gives what was lost.
    pub(crate) fn balance(&self) -> Vec<(Reason, u64)> {
        let mut seen = Count::default();
        let mut accounted = Count::default();
        let mut lost = Reason::ALL.map(|reason| (reason, 0));
        for ifindex in 1..=INTERFACES {
            for egress in [false, true] {
                let hook = self.counters(uplink(ifindex, egress));
                add(&mut seen, hook.seen);
                add(&mut accounted, hook.annotated);
                for (reason, packets) in &mut lost {
                    let count = hook.lost[*reason as usize];
                    *packets += count.packets;
                    if *reason != Reason::Takeover {
                        add(&mut accounted, count);
                    }
                }
            }
        }
        for (_, flow) in self.flows() {
            for direction in flow.direction {
                add(&mut accounted, Count { packets: direction.packets, bytes: direction.bytes });
            }
        }
        assert_eq!(seen, accounted, "seen = counted + annotated + lost");
        lost.into_iter().filter(|(_, packets)| *packets > 0).collect()
    }
}

fn count(sum: &mut Count, fields: &mut Fields<'_>) {
    add(sum, Count { packets: fields.u64(), bytes: fields.u64() });
}

fn add(sum: &mut Count, more: Count) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

/// Enters a new network namespace with interfaces, unless this thread has been in one.
fn namespace() {
    thread_local! {
        static ENTERED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if ENTERED.replace(true) {
        return;
    }
    #[expect(deprecated, reason = "its successor is unsafe because of flags that this call does not have")]
    let entered = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
    entered.expect("these tests make a network namespace: run them as root, `sudo -E cargo test -p flow-agent`");
    for index in (2..INTERFACES).step_by(2) {
        let other = index + 1;
        let added = format!("link add name d{index} index {index} type veth peer name d{other} index {other}");
        let status = Command::new("ip").args(added.split(' ')).status().expect("iproute2 is installed");
        assert!(status.success(), "ip {added}");
    }
}

fn program_mut<'a>(programs: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    programs.program_mut(name).expect("in the object").try_into().expect("a tc program")
}

fn map<T: TryFrom<Map>>(programs: &mut Ebpf, name: &str) -> T
where
    T::Error: std::fmt::Debug,
{
    T::try_from(programs.take_map(name).expect("in the object")).expect("of this type")
}

/// `struct __sk_buff` with what a test run takes from it.
fn context(ifindex: u32, segments: Segments) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    context[164..168].copy_from_slice(&segments.count.to_ne_bytes());
    context[176..180].copy_from_slice(&segments.size.to_ne_bytes());
    context
}

fn drain(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(item) = ring.next() {
        let mut fields = Fields(&item);
        let (kind, family) = (fields.u32(), fields.u32());
        events.push(Event { kind, family, key: key6(&item[8..48]), flow: flow(&item[48..]) });
    }
    events
}

/// A key's bytes: its addresses, then the rest.
fn write(bytes: &mut [u8], addr: &[&[u8]], key: &Key6) {
    let [low, high] = key.port.map(u16::to_ne_bytes);
    let whole = [&addr.concat()[..], &low, &high, &[key.protocol], &key.scope].concat();
    bytes.copy_from_slice(&whole);
}

/// Reads integers one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (value, rest) = self.0.split_first_chunk().expect("long enough");
        self.0 = rest;
        *value
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }
}

fn key4(bytes: &[u8]) -> Key4 {
    let mut fields = Fields(bytes);
    Key4 {
        addr: [fields.u32(), fields.u32()],
        port: [fields.u16(), fields.u16()],
        protocol: fields.take::<1>()[0],
        scope: fields.take(),
    }
}

fn key6(bytes: &[u8]) -> Key6 {
    let mut fields = Fields(bytes);
    Key6 {
        addr: [[fields.u64(), fields.u64()], [fields.u64(), fields.u64()]],
        port: [fields.u16(), fields.u16()],
        protocol: fields.take::<1>()[0],
        scope: fields.take(),
    }
}

fn flow(bytes: &[u8]) -> Flow {
    let mut fields = Fields(bytes);
    Flow {
        direction: [direction(&mut fields), direction(&mut fields)],
        first_ns: fields.u64(),
        base_packets: [fields.u64(), fields.u64()],
        base_bytes: [fields.u64(), fields.u64()],
        generation: fields.u32(),
        state: fields.u32(),
    }
}

fn direction(fields: &mut Fields<'_>) -> Direction {
    Direction {
        packets: fields.u64(),
        bytes: fields.u64(),
        last: fields.u32(),
        owner: fields.u32(),
        pending_packets: fields.u32(),
        candidate: fields.u32(),
        pending_bytes: fields.u64(),
        flags: fields.u32(),
        awaited: fields.u32(),
    }
}
