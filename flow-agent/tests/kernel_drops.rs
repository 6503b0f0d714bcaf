//! Drops in network namespaces of each test's own: what nftables, a queue and the absence of a socket drop is what the drop
//! programs count, packet for packet.
//!
//! Needs root, nft and the built kernel programs; says so where one is missing. Where the kernel gives no reasons, only what holds
//! without them is looked at, and the test says what it leaves out.

#[path = "kernel_drops/lab.rs"]
mod lab;

use flow_agent::kernel::drops::{Class, Drops, DropsConfig, FlowDrops, FlowKey, Rung, SiteReport};
use flow_agent::kernel::{Kernel, KernelConfig};
use flow_common::abi::{Count, Flow, STATE_REFUSED};
use lab::{Lab, Side};
use std::collections::HashMap;

/// What a rule of [`Lab::rules`] drops.
struct Case {
    /// The rule's counter, and the chain that it is in.
    counter: &'static str,
    /// Whether a tc program sees the packet before it is dropped.
    at_tc: bool,
    side: Side,
    protocol: u8,
    dst: &'static str,
    port: u16,
    packets: u64,
}

const UDP: u8 = 17;
const TCP: u8 = 6;

#[rustfmt::skip]
const CASES: [Case; 15] = [
    Case { counter: "forward", at_tc: true, side: Side::Pod, protocol: UDP, dst: "10.9.2.2", port: 9001, packets: 7 },
    Case { counter: "forward", at_tc: true, side: Side::Pod, protocol: UDP, dst: "fd09:2::2", port: 9001, packets: 5 },
    Case { counter: "forward", at_tc: true, side: Side::Pod, protocol: TCP, dst: "10.9.2.2", port: 9001, packets: 1 },
    Case { counter: "forward", at_tc: true, side: Side::Pod, protocol: TCP, dst: "fd09:2::2", port: 9001, packets: 1 },
    Case { counter: "input", at_tc: true, side: Side::Pod, protocol: UDP, dst: "10.9.1.1", port: 9002, packets: 4 },
    Case { counter: "input", at_tc: true, side: Side::Pod, protocol: TCP, dst: "fd09:1::1", port: 9002, packets: 1 },
    Case { counter: "prerouting", at_tc: true, side: Side::Pod, protocol: UDP, dst: "10.9.2.2", port: 9003, packets: 3 },
    Case { counter: "prerouting", at_tc: true, side: Side::Pod, protocol: TCP, dst: "10.9.2.2", port: 9003, packets: 1 },
    Case { counter: "output", at_tc: false, side: Side::Node, protocol: UDP, dst: "10.9.2.2", port: 9004, packets: 6 },
    Case { counter: "output", at_tc: false, side: Side::Node, protocol: UDP, dst: "fd09:2::2", port: 9004, packets: 2 },
    Case { counter: "reset", at_tc: true, side: Side::Pod, protocol: TCP, dst: "10.9.2.2", port: 9005, packets: 1 },
    Case { counter: "service", at_tc: true, side: Side::Pod, protocol: UDP, dst: "10.96.0.10", port: 9007, packets: 4 },
    Case { counter: "service", at_tc: true, side: Side::Pod, protocol: UDP, dst: "fd96::10", port: 9007, packets: 3 },
    Case { counter: "service", at_tc: true, side: Side::Pod, protocol: TCP, dst: "10.96.0.10", port: 9007, packets: 1 },
    Case { counter: "unreachable", at_tc: true, side: Side::Pod, protocol: UDP, dst: "10.9.2.2", port: 9006, packets: 1 },
];

fn open() -> Drops {
    open_with(DropsConfig { max_flows: 16_384, ring_bytes: 1 << 18 })
}

fn open_with(config: DropsConfig) -> Drops {
    let drops = Drops::open(&config);
    let report = drops.report();
    assert!(report.rung.is_some(), "no drops: {}", report.failure.as_deref().unwrap_or_default());
    drops
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is made of what tests print")]
fn the_programs_run_in_some_form() {
    let drops = open();
    let report = drops.report();
    for (rung, why) in &report.refused {
        println!("refused: {rung}: {why}");
    }
    println!("feature drops: {}", report.rung.map(|rung| rung.to_string()).unwrap_or_default());
}

fn kernel() -> Kernel {
    let config = KernelConfig {
        max_flows: 4_096,
        max_interfaces: 8,
        ring_bytes: 1 << 18,
        pods: vec!["veth*".to_owned()],
        uplinks: Vec::new(),
        attachment: None,
    };
    Kernel::load(&config, None).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that was dropped so far, by flow. A sweep is due at every call.
#[derive(Default)]
struct Seen {
    flows: HashMap<FlowKey, FlowDrops>,
    now_ns: u64,
}

impl Seen {
    fn read(&mut self, drops: &mut Drops) {
        self.now_ns += 1_000_000_000;
        let mut news = Vec::new();
        drops.poll(self.now_ns, &mut news).expect("the maps can be read");
        for new in news {
            let Some(known) = self.flows.get_mut(&new.key) else {
                self.flows.insert(new.key, new);
                continue;
            };
            for (sums, more) in [(&mut known.by_rule, new.by_rule), (&mut known.by_failure, new.by_failure)] {
                for (sum, more) in sums.iter_mut().zip(more) {
                    sum.packets += more.packets;
                    sum.bytes += more.bytes;
                }
            }
        }
    }

    fn by_rule(&self) -> u64 {
        self.flows.values().flat_map(|flow| flow.by_rule).map(|count| count.packets).sum()
    }

    fn to_port(&self, protocol: u8, port: u16) -> Vec<&FlowDrops> {
        let of = |key: &FlowKey| match key {
            FlowKey::V4(key) => (key.protocol, key.port),
            FlowKey::V6(key) => (key.protocol, key.port),
        };
        let wanted = |key: &FlowKey| of(key).0 == protocol && of(key).1.contains(&port.to_be());
        self.flows.values().filter(|flow| wanted(&flow.key)).collect()
    }
}

fn flow(kernel: &Kernel, key: &FlowKey) -> Option<Flow> {
    match key {
        FlowKey::V4(key) => kernel.lookup4(key),
        FlowKey::V6(key) => kernel.lookup6(key),
    }
    .expect("the maps can be read")
}

/// The kernel leaves a run out that would come in the middle of another: so many may be missing.
fn assert_counted(drops: &Drops, what: &str, counted: u64, expected: u64) {
    let missed = drops.missed();
    assert!(counted <= expected && counted + missed >= expected, "{what}: {counted}, not {expected}; {missed} missed");
}

#[test]
fn what_nft_drops_is_counted_packet_for_packet() {
    let lab = Lab::new();
    lab.rules();
    let kernel = kernel();
    let mut drops = open();
    let mut seen = Seen::default();
    for case in &CASES {
        lab.send(case.side, case.protocol, case.dst, case.port, case.packets);
    }
    let mut counters = lab.counters();
    lab.until("nft has dropped them", || {
        counters = lab.counters();
        counters.values().sum::<u64>() >= CASES.iter().map(|case| case.packets).sum()
    });
    let expected: u64 = counters.values().sum();
    lab.until("every drop is read", || {
        seen.read(&mut drops);
        seen.by_rule() + drops.missed() >= expected
    });
    assert_counted(&drops, "of flows", seen.by_rule(), expected);
    drops.name_places().expect("the maps can be read");
    let sites = drops.sites().expect("the maps can be read");
    let netfilter: Vec<&SiteReport> = sites.iter().filter(|site| site.reason == "NETFILTER_DROP").collect();
    assert_counted(&drops, "at places", netfilter.iter().map(|site| site.count.packets).sum(), expected);
    for site in netfilter {
        assert_eq!(site.class, Class::Rule);
        let name = &site.location;
        assert!(name.starts_with("nf_hook_slow") || name.starts_with("nft_do_chain"), "{site:?}");
        // What the Node sends is dropped before it is on an interface: its route's is meant.
        let interface = ["veth1", "veth2"].contains(&site.interface.as_str());
        assert!(interface, "{site:?}");
    }
    for case in &CASES {
        let what = format!("{} {} {}", case.counter, case.dst, case.port);
        let of_case = seen.to_port(case.protocol, case.port);
        let to = of_case.iter().filter(|flow| lab::has_addr(&flow.key, case.dst)).copied().collect::<Vec<_>>();
        let [one] = to.as_slice() else { panic!("{what}: {} flows", to.len()) };
        let packets: u64 = one.by_rule.iter().map(|count| count.packets).sum();
        assert!(packets >= case.packets, "{what}: {packets}");
        assert_eq!(one.by_failure, [Count::default(); 2], "{what}");
        assert!(one.by_rule.contains(&Count::default()), "{what}: one direction");
        let counted = flow(&kernel, &one.key);
        assert_eq!(counted.is_some(), case.at_tc, "{what}: tc has the key");
        if let Some(counted) = counted {
            let at_tc = counted.direction.map(|direction| Count { packets: direction.packets, bytes: direction.bytes });
            let dropped = one.by_rule.iter().position(|count| count.packets > 0).expect("some were");
            assert_eq!(at_tc[dropped], one.by_rule[dropped], "{what}: what tc counted is what was dropped");
            let refused = counted.state & STATE_REFUSED != 0;
            assert_eq!(refused, case.counter == "unreachable", "{what}: the ICMP error is about it");
            let answered = at_tc[1 - dropped].packets > 0;
            assert_eq!(answered, case.counter == "reset", "{what}: a RST is the answer");
        }
    }
    for counter in ["forward", "input", "prerouting", "output", "reset", "unreachable"] {
        let flows = CASES.iter().filter(|case| case.counter == counter).flat_map(|case| {
            let flows = seen.to_port(case.protocol, case.port);
            flows.into_iter().filter(|flow| lab::has_addr(&flow.key, case.dst)).collect::<Vec<_>>()
        });
        let counted = flows.flat_map(|flow| flow.by_rule).map(|count| count.packets).sum();
        assert_counted(&drops, counter, counted, counters[counter]);
    }
    let counters = drops.counters().expect("a map");
    assert_eq!([counters.sites_full, counters.flows_full, counters.fragments, counters.unreadable], [0; 4]);
}

#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn skip(why: &str) {
    println!("skipped: {why}");
}

#[test]
fn failures_are_told_apart_from_rules() {
    let lab = Lab::new();
    let mut drops = open();
    if !drops.report().rung.is_some_and(Rung::has_reasons) {
        return skip("this kernel gives no reasons");
    }
    // Two packets fit this queue; it lets eight through in a second.
    lab.run("tc", "qdisc add dev veth2 root tbf rate 8kbit burst 2000 limit 2000");
    lab.send(Side::Pod, UDP, "10.9.1.1", 9007, 1);
    lab.send_bytes(Side::Pod, UDP, "10.9.2.2", 9008, 40, 1_000);
    let mut seen = Seen::default();
    let mut dropped = 0;
    lab.until("the queue has dropped what it will", || {
        let before = std::mem::replace(&mut dropped, lab.queue_drops("veth2"));
        dropped > 20 && dropped == before
    });
    let packets = |seen: &Seen, port| {
        seen.to_port(UDP, port).iter().flat_map(|flow| flow.by_failure).map(|count| count.packets).sum::<u64>()
    };
    lab.until("every drop is read", || {
        seen.read(&mut drops);
        packets(&seen, 9008) + drops.missed() >= dropped && packets(&seen, 9007) == 1
    });
    assert_counted(&drops, "of the queue", packets(&seen, 9008), dropped);
    assert_eq!(seen.by_rule(), 0);
    let sites = drops.sites().expect("the maps can be read");
    let of =
        |reason: &str| sites.iter().find(|site| site.reason == reason).unwrap_or_else(|| panic!("{reason}: {sites:?}"));
    let queue = of("QDISC_DROP");
    assert_eq!((queue.class, queue.interface.as_str()), (Class::Failure, "veth2"));
    assert_counted(&drops, "of the queue, by place", queue.count.packets, dropped);
    let socket = of("NO_SOCKET");
    assert_eq!((socket.class, socket.interface.as_str(), socket.count.packets), (Class::Failure, "veth1", 1));
    assert_eq!(socket.count.bytes, 28 + lab::PAYLOAD as u64, "layer-3 bytes");
}

#[test]
fn drops_of_other_namespaces_are_not_ours() {
    let lab = Lab::new();
    lab.rules();
    let mut drops = open();
    let before = drops.counters().expect("a map");
    lab.inside_rules();
    lab.send(Side::Node, UDP, "10.9.1.2", 9009, 25);
    lab.until("nft has dropped them", || lab.inside_counter() == 25);
    let mut seen = Seen::default();
    lab.until("they are seen", || {
        seen.read(&mut drops);
        drops.counters().expect("a map").elsewhere + drops.missed() >= before.elsewhere + 25
    });
    assert_eq!(seen.by_rule(), 0);
    let sites = drops.sites().expect("the maps can be read");
    assert!(sites.iter().all(|site| site.class != Class::Rule), "{sites:?}");
}

#[test]
fn a_flood_of_one_flow_is_one_event_and_every_packet() {
    let lab = Lab::new();
    lab.rules();
    // The smallest ring there is holds 28 events.
    let mut drops = open_with(DropsConfig { ring_bytes: 4_096, max_flows: 16_384 });
    lab.send(Side::Pod, UDP, "10.9.2.2", 9001, 50_000);
    let expected = 50_000;
    lab.until("nft has dropped them", || lab.counters()["forward"] == expected);
    let mut seen = Seen::default();
    lab.until("every drop is read", || {
        seen.read(&mut drops);
        seen.by_rule() + drops.missed() >= expected
    });
    assert_counted(&drops, "of the flow", seen.by_rule(), expected);
    assert_eq!((seen.flows.len(), drops.counters().expect("a map").events_lost), (1, 0));
}

#[test]
fn what_finds_no_room_is_counted() {
    let lab = Lab::new();
    lab.rules();
    let mut drops = open_with(DropsConfig { ring_bytes: 4_096, max_flows: 16 });
    // Flows of their own, by their source ports.
    for _ in 0..200 {
        lab.send(Side::Pod, UDP, "10.9.2.2", 9001, 1);
    }
    let mut seen = Seen::default();
    lab.until("every drop is counted", || {
        seen.read(&mut drops);
        seen.by_rule() + drops.counters().expect("a map").flows_full + drops.missed() >= 200
    });
    let counters = drops.counters().expect("a map");
    assert_counted(&drops, "in and out of the map", seen.by_rule() + counters.flows_full, 200);
    assert_eq!(seen.flows.len(), 16);
    let sites = drops.sites().expect("the maps can be read");
    let all = sites.iter().filter(|site| site.class == Class::Rule).map(|site| site.count.packets).sum();
    assert_counted(&drops, "by place all are there", all, 200);
    // Quiet flows make room.
    seen.now_ns = u64::MAX / 2;
    seen.read(&mut drops);
    assert_eq!(drops.fill().used, 0);
    lab.send(Side::Pod, UDP, "10.9.2.2", 9001, 3);
    let before = seen.by_rule();
    lab.until("a new flow is told of", || {
        seen.read(&mut drops);
        seen.by_rule() + drops.missed() >= before + 3
    });
}

#[test]
fn events_that_are_lost_hide_no_flow() {
    let lab = Lab::new();
    lab.rules();
    let mut drops = open_with(DropsConfig { ring_bytes: 4_096, max_flows: 1_024 });
    for _ in 0..300 {
        lab.send(Side::Pod, UDP, "10.9.2.2", 9001, 1);
    }
    let lost = drops.counters().expect("a map").events_lost;
    assert!(lost > 0, "the ring has room for 28");
    let mut seen = Seen::default();
    lab.until("the sweep finds all", || {
        seen.read(&mut drops);
        seen.by_rule() + drops.missed() >= 300
    });
    assert_counted(&drops, "of all flows", seen.by_rule(), 300);
}
