//! The flow maps as user space reads them: sweeps, deletions, and the kernel's clocks.
//!
//! Needs root and the built kernel programs; says so where either is missing.

use std::collections::HashSet;
use std::net::UdpSocket;

use flow_agent::kernel::{Deleted, Kernel, Slice, SweepProgress};

#[path = "shared/namespaces.rs"]
mod lab;

use lab::{Lab, load, patience, run};

#[test]
fn flows_that_are_not_quiet_stay() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let mut kernel = load();
    run("ping", "-q -c 1 -W 2 10.9.0.2");
    let mut slice = Slice::default();
    while kernel.sweep(64, &mut slice).expect("a map") == SweepProgress::More {}
    let keys = slice.keys4.clone();
    assert_eq!(keys.len(), 1);
    let (none, first) = ((&[][..], &[][..]), [slice.flows4[0].counters()]);
    let mut deleted = Deleted::default();
    kernel.delete((&keys, &first), none, &mut deleted).expect("a map");
    assert_eq!((deleted.removed, deleted.kept.keys4.as_slice()), (0, keys.as_slice()));
    let quiet = |kernel: &mut Kernel, deleted: &mut Deleted| {
        let fewer = first.map(|[a, b, c, d]| [a - 1, b, c, d]);
        kernel.delete((&keys, &fewer), none, deleted).expect("a map");
        assert_eq!((deleted.removed, deleted.kept.flows4[0].counters()), (0, first[0]), "more than was seen");
        kernel.delete((&keys, &first), none, deleted).expect("a map");
        deleted.removed == 1
    };
    lab.until("they are quiet", || quiet(&mut kernel, &mut deleted));
    assert_eq!(kernel.lookup4(&keys[0]).expect("a map"), None);
    drop(lab);
}

#[test]
fn a_sweep_gives_every_flow_once() {
    let lab = Lab::new();
    lab.pod_of_both_families();
    let mut kernel = load();
    let ports = 1_001..4_001_u16;
    for (from, to) in [("0.0.0.0:0", "10.9.0.2"), ("[::]:0", "[fd09::2]")] {
        let socket = UdpSocket::bind(from).expect("a free port");
        for port in ports.clone() {
            // Refused ones come back as errors of later sends.
            while socket.send_to(b"x", format!("{to}:{port}")).is_err() {}
        }
    }
    let mut slice = Slice::default();
    let (mut four, mut six, mut slices) = (Vec::new(), Vec::new(), 0);
    loop {
        let progress = kernel.sweep(1_000, &mut slice).expect("a map");
        let udp = |protocol: u8, port: [u16; 2]| (protocol == 17).then_some(port.map(u16::from_be));
        four.extend(slice.keys4.iter().filter_map(|key| udp(key.protocol, key.port)));
        six.extend(slice.keys6.iter().filter_map(|key| udp(key.protocol, key.port)));
        assert_eq!((slice.keys4.len(), slice.keys6.len()), (slice.flows4.len(), slice.flows6.len()));
        slices += 1;
        if progress == SweepProgress::RoundComplete {
            break;
        }
    }
    assert!(slices > 4, "{slices}");
    for seen in [four, six] {
        let distinct: HashSet<[u16; 2]> = seen.iter().copied().collect();
        assert_eq!(distinct.len(), seen.len(), "none twice");
        let asked = |port: &u16| distinct.iter().any(|ports| ports.contains(port));
        assert!(ports.clone().all(|port| asked(&port)), "none missing");
    }
    let fill = kernel.maps();
    assert!(fill.iter().filter(|map| map.name.starts_with("flows")).all(|map| map.used >= 3_000), "{fill:?}");
}

#[test]
fn a_sweep_passes_over_what_earlier_ones_gave() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let mut kernel = load();
    let mut slice = Slice::default();
    let mut round = |kernel: &mut Kernel| {
        assert_eq!(kernel.sweep(64, &mut slice).expect("a map"), SweepProgress::RoundComplete);
        let is_ping = |key: &&flow_common::abi::Key4| key.protocol == 1;
        (slice.read, slice.keys4.iter().filter(is_ping).count())
    };
    run("ping", "-q -c 1 -W 2 10.9.0.2");
    let given: Vec<usize> = (0..16).map(|_| round(&mut kernel).1).collect();
    // The first three have nothing to go by; every eighth gives all.
    let sum = |rounds: &[usize]| rounds.iter().sum::<usize>();
    assert_eq!((sum(&given[..3]), given[7], given[15]), (3, 1, 1), "{given:?}");
    lab.until("it is passed over", || {
        let (read, given) = round(&mut kernel);
        read > 0 && given == 0
    });
    run("ping", "-q -c 1 -W 2 10.9.0.2");
    assert!(round(&mut kernel).1 > 0, "what counts again is given again");
    drop(lab);
}

#[test]
fn clocks_agree_with_the_time_of_day() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let mut kernel = load();
    let wall_ns = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let begin = wall_ns();
    run("ping", "-q -c 1 -W 2 10.9.0.2");
    let end = wall_ns();
    let flow = lab.started(&mut kernel, |event| event.key.protocol == 1).flow;
    let clock = kernel.clock();
    // A reading of both clocks takes some time, and a tick is up to 10 ms; emulated machines let the tick lag.
    let slack = 20_000_000 * u128::from(patience().pow(2));
    let around = begin - slack..end + slack;
    let first = u128::from(clock.monotonic_to_wall_ns(flow.first_ns));
    assert!(around.contains(&first), "{begin} {first} {end}");
    let last = u128::from(clock.jiffies_to_wall_ns(flow.direction[flow.originator()].last));
    assert!(around.contains(&last), "{begin} {last} {end}");
}

#[test]
fn the_clock_shows_no_tick_before_the_kernel_counts_it() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let mut kernel = load();
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
    let send = || while socket.send_to(b"x", "10.9.0.2:9").is_err() {};
    send();
    let key = lab.started(&mut kernel, |event| event.key.protocol == 17).key.to_key4();
    for _ in 0..20_000 {
        let before = kernel.clock();
        send();
        let flow = kernel.lookup4(&key).expect("a map").expect("the flow");
        let last = flow.direction[flow.originator()].last;
        let (counted, shown) = (before.jiffies_to_wall_ns(last), before.monotonic_to_wall_ns(before.monotonic_ns()));
        assert!(counted >= shown, "{} ns ahead", shown - counted);
    }
}
