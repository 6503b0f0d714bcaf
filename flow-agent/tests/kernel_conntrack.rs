//! The hooks on connection tracking on the running kernel: on every rung that it takes they tell of what netlink tells of; and of the
//! rungs that it refuses, why.
//!
//! Needs root, nft and iproute2, and the built kernel programs. Kernels differ: what none of these tests can show on one, those of
//! `cargo xtask vm-test` do.
#![expect(clippy::print_stdout, reason = "on which rung the hooks stand is read from what the tests print")]

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use flow_agent::conntrack::decode::{Clocks, decode};
use flow_agent::conntrack::{Conntrack, Entry, Event, Groups, HookStatistics, Hooks, Kind, Tuple, Zones, tcp};
use flow_agent::kernel::{ConntrackHooks, HooksConfig, Rung, Rungs, Standing};
use flow_agent::sources::Tracking;
use flow_agent::table::{Table, TableConfig};
use flow_common::abi::CONNTRACK_END;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

#[path = "conntrack/compare.rs"]
mod compare;
#[path = "conntrack/lab.rs"]
mod lab;
#[path = "conntrack/traffic.rs"]
mod traffic;

use compare::{Observation, SETTLED, Witness, config, wait_for};
use lab::Lab;

/// One after the other: one of them unloads the module.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn words(standing: &Standing) -> String {
    standing.refused.join("; ")
}

#[test]
fn every_rung_stands_or_says_why_not() {
    let _turn = turn();
    let _lab = Lab::new();
    let rungs = Hooks::open(config(None)).rungs().clone();
    for (name, standing) in [("new", &rungs.new), ("end", &rungs.end)] {
        let rung = standing.on.map_or("none".to_owned(), |(rung, function)| format!("{} {function}", rung.name()));
        println!("feature conntrack-{name}: {rung}");
        println!("{name}: {}", words(standing));
        // As many reasons as better rungs.
        let better =
            standing.on.map_or(Rung::ALL.len(), |(rung, _)| Rung::ALL.iter().position(|of| *of == rung).unwrap());
        assert_eq!(standing.refused.len(), better, "{}", words(standing));
        for (sentence, rung) in standing.refused.iter().zip(Rung::ALL) {
            assert!(sentence.starts_with(rung.name()), "{sentence}");
        }
    }
    if !Path::new("/sys/bus/event_source/devices/kprobe").exists() {
        let kprobes = Hooks::open(config(Some(Rung::Kprobe))).rungs().clone();
        assert!(words(&kprobes.new).contains("CONFIG_KPROBE_EVENTS"), "{}", words(&kprobes.new));
        assert_eq!(rungs.new.on, None, "what is left needs a patchable kernel: {}", words(&rungs.new));
        assert!(rungs.new.refused[0].contains("CAP_BPF and CAP_PERFMON"), "{}", words(&rungs.new));
    }
}

#[test]
fn each_connection_is_told_of_as_netlink_tells_of_it() {
    let _turn = turn();
    let lab = Lab::new();
    number_one(&lab);
    let mut observation = Observation::begin();
    traffic::every_kind(&lab);
    // The kernel's collection of garbage ends what has expired, but on some it rests for minutes.
    if !observation.until_ended(traffic::EVERY_KIND, Duration::from_secs(5)) {
        lab::run("conntrack", "-F", "");
        assert!(observation.until_ended(traffic::EVERY_KIND, Duration::from_secs(5)), "{:#?}", observation.told);
    }
    observation.agree(traffic::EVERY_KIND);
    let tells_ends = |witness: &&Witness| witness.is_whole && witness.hooks.rungs().end.on.is_some();
    for witness in observation.witnesses.iter().filter(tells_ends) {
        let labelled: Vec<&Event> = witness.events.iter().filter(|event| event.entry.labels.is_some()).collect();
        assert_eq!(labelled.iter().filter(|event| event.kind == Kind::Destroy).count(), 2);
        assert!(labelled.iter().all(|event| event.entry.labels == Some([1 << 3, 1 << 63])), "{labelled:?}");
        assert!(witness.events.iter().any(|event| event.entry.zone == 7));
    }
}

/// Makes a connection and asks for its number: the kernel has no seed for numbers before it gives the first, which is told of
/// with another one therefore.
fn number_one(lab: &Lab) {
    traffic::serve_tcp(lab.server(), "0.0.0.0:8000");
    traffic::tcp(lab.client(), "10.0.2.2:8000", 1).join().expect("a connection");
    let mut netlink = Conntrack::open(Groups::NEW_AND_END).expect("netlink");
    // What is still to come of it after the flush would be another connection.
    lab::until("it is over", || {
        let mut is_over = false;
        let look = |entry: &Entry| is_over |= entry.tcp_state == Some(tcp::TIME_WAIT);
        netlink.dump(&Zones::default(), look).expect("a dump");
        is_over
    });
    lab::run("conntrack", "-F", "");
}

/// Each of so many connections, on every rung at once.
fn many(count: usize) {
    let lab = Lab::new();
    let (client, server) = (lab.client(), lab.server());
    for addr in ["0.0.0.0:8080", "0.0.0.0:8081"] {
        traffic::serve_tcp(server, addr);
    }
    number_one(&lab);
    let mut observation = Observation::begin();
    let begin = Instant::now();
    let work = ["10.96.0.10:80", "10.0.2.2:8081"].map(|addr| traffic::tcp(client, addr, count / 2));
    observation.during(&work);
    work.into_iter().for_each(|thread| thread.join().expect("connections"));
    println!("{count} connections in {:?}", begin.elapsed());
    // Where the kernel's collection of garbage rests, they are ended by hand.
    if !observation.until_ended(count, Duration::from_secs(1)) {
        lab::run("conntrack", "-F", "");
        assert!(observation.until_ended(count, Duration::from_secs(10)), "{} left", lab::tracked());
    }
    println!("ended after {:?}", begin.elapsed());
    observation.agree(count);
}

#[test]
fn none_of_a_thousand_short_connections_is_missed() {
    let _turn = turn();
    many(1_000);
}

#[test]
#[ignore = "takes minutes where the kernel is emulated"]
fn none_of_ten_thousand_short_connections_is_missed() {
    let _turn = turn();
    many(10_000);
}

#[test]
fn what_begins_twice_at_one_moment_is_one() {
    const FLOWS: usize = 300;
    let _turn = turn();
    let lab = Lab::new();
    let mut observation = Observation::begin();
    traffic::clashes(lab.client(), "10.0.2.2:7", FLOWS);
    lab::run("conntrack", "-F", "");
    // The refusals are of the flows; neighbours are found by ICMPv6, which may be tracked.
    observation.until_ended(FLOWS, Duration::from_secs(5));
    let count = |events: &[Event], kind| {
        events.iter().filter(|event| event.kind == kind && event.entry.original.dst_port == 7).count()
    };
    assert_eq!(count(&observation.told, Kind::Destroy), FLOWS);
    for witness in &mut observation.witnesses {
        let (rungs, statistics) = (witness.hooks.rungs().clone(), witness.hooks.statistics());
        println!("{}: {statistics:?}", witness.rung.name());
        let kinds = [(Kind::New, &rungs.new), (Kind::Destroy, &rungs.end)];
        for ((kind, standing), lost) in kinds.into_iter().zip(statistics.lost) {
            let expected = if standing.on.is_some() { FLOWS } else { 0 };
            let missing = expected.checked_sub(count(&witness.events, kind));
            let is_counted = missing.is_some_and(|missing| missing as u64 <= lost);
            assert!(is_counted, "{} {kind:?}: {missing:?} missing", witness.rung.name());
        }
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    const FLOWS: usize = 60;
    let _turn = turn();
    let lab = Lab::new();
    // None goes before the last has come.
    lab::set_switch("nf_conntrack_udp_timeout", "120");
    let mut hooks = Hooks::open(HooksConfig { new_ring_bytes: 4_096, end_ring_bytes: 4_096, only: None });
    let rungs = hooks.rungs().clone();
    let mut events = Vec::new();
    // Nobody listens: the refusal is an answer. None is closed before the last is open, so that each has a port of its own.
    let sending = lab.client().inside(|| {
        let send = |_| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a free port");
            socket.send_to(b"x", "10.0.2.2:9").expect("a way");
            socket
        };
        (0..FLOWS).map(send).collect::<Vec<_>>()
    });
    let _sockets = sending.join().expect("sent");
    lab::until("the flows are tracked", || lab::tracked() >= FLOWS as u64);
    lab::until("the flows are forgotten", || {
        // One that is counted may not be in the table yet.
        lab::run("conntrack", "-F", "");
        lab::tracked() == 0
    });
    let mut lost = false;
    lab::until("what found room is told of", || {
        lost |= hooks.poll(&mut events);
        let HookStatistics { told, repeated, .. } = hooks.statistics();
        events.len() as u64 == told.iter().sum::<u64>() - repeated.iter().sum::<u64>()
    });
    let statistics = hooks.statistics();
    for (kind, standing, number) in [(Kind::New, &rungs.new, 0), (Kind::Destroy, &rungs.end, 1)] {
        let told = events.iter().filter(|event| event.kind == kind).count() as u64;
        assert_eq!(told, statistics.told[number] - statistics.repeated[number]);
        if standing.on.is_some() {
            assert!(lost && told > 0 && statistics.lost[number] > 0, "{statistics:?}");
            assert_eq!(told + statistics.lost[number], FLOWS as u64, "{kind:?}: {statistics:?}");
        }
    }
    assert!(!hooks.poll(&mut events), "a loss is told of once");
}

#[test]
fn connections_of_other_namespaces_are_not_told_of() {
    let _turn = turn();
    let lab = Lab::new();
    let mut hooks = Hooks::open(config(None));
    if hooks.rungs().new.on.is_none() {
        return;
    }
    // The client tracks its own packets too.
    lab.client().run("nft", "add table inet tracked");
    lab.client()
        .run("nft", "add chain inet tracked output { type filter hook output priority 0 ; ct state new accept ; }");
    traffic::serve_tcp(lab.server(), "0.0.0.0:8080");
    traffic::tcp(lab.client(), "10.0.2.2:8080", 3).join().expect("connections");
    let mut events = Vec::new();
    lab::until("the router's connections are told of", || {
        hooks.poll(&mut events);
        events.iter().filter(|event| event.kind == Kind::New).count() >= 3
    });
    std::thread::sleep(SETTLED);
    hooks.poll(&mut events);
    assert_eq!(events.iter().filter(|event| event.kind == Kind::New).count(), 3, "{events:#?}");
}

fn rungs_with(capabilities: CapabilitySet, only: Option<Rung>) -> (Rungs, bool) {
    // Capabilities are a thread's; the namespace is this one's.
    let namespace = fs::File::open("/proc/thread-self/ns/net").expect("a namespace");
    let opened = std::thread::spawn(move || {
        use std::os::fd::AsFd as _;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("root");
        // Of those that root has here.
        let capabilities = capabilities & rustix::thread::capabilities(None).expect("root").permitted;
        let sets =
            CapabilitySets { effective: capabilities, permitted: capabilities, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).expect("fewer are always allowed");
        let mut hooks = Hooks::open(config(only));
        let rungs = hooks.rungs().clone();
        if rungs.new.on.is_none() {
            return (rungs, false);
        }
        traffic::tcp_here("10.0.2.2:8080", 1);
        let event = wait_for(&mut hooks, "a connection", |event| event.kind == Kind::New);
        (rungs, event.entry.original.dst_port == 8080)
    });
    opened.join().expect("no panic")
}

#[test]
fn fewer_capabilities_mean_other_rungs() {
    let _turn = turn();
    let lab = Lab::new();
    traffic::serve_tcp(lab.server(), "0.0.0.0:8080");
    let all = Rung::ALL.map(|rung| Hooks::open(config(Some(rung))).rungs().clone());
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let is_paranoid = paranoid.trim().parse::<i32>().is_ok_and(|level| level > 2);

    let few = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN | CapabilitySet::SYS_RESOURCE;
    let (rungs, told) = rungs_with(few, None);
    println!("BPF, PERFMON, NET_ADMIN, SYS_RESOURCE: new {:?}, end {:?}", rungs.new.on, rungs.end.on);
    println!("feature conntrack-new without SYS_ADMIN: {}", rungs.new.on.map_or("none", |(rung, _)| rung.name()));
    println!("feature conntrack-end without SYS_ADMIN: {}", rungs.end.on.map_or("none", |(rung, _)| rung.name()));
    let [tracing, multi, kprobe] = &all;
    if tracing.new.on.is_some() && is_module() {
        assert!(rungs.new.refused[0].contains("CAP_SYS_ADMIN"), "{}", words(&rungs.new));
    }
    if multi.new.on.is_some() && is_module() {
        assert_eq!((rungs.new.on, rungs.end.on, told), (multi.new.on, multi.end.on, true));
    }
    if kprobe.new.on.is_some() && is_paranoid {
        let (only, _) = rungs_with(few, Some(Rung::Kprobe));
        assert!(only.new.on.is_none() && words(&only.new).contains("perf_event_paranoid"), "{}", words(&only.new));
    }
    if tracing.end.on.is_some_and(|(_, function)| function == "nf_conntrack_destroy") {
        assert_eq!(rungs.end.on, tracing.end.on, "the kernel's own function needs no more");
    }

    let (rungs, _) = rungs_with(few - CapabilitySet::BPF, None);
    assert_eq!((rungs.new.on, rungs.end.on), (None, None));
    assert!(words(&rungs.new).contains("CAP_BPF"), "{}", words(&rungs.new));
    let (rungs, _) = rungs_with(few - CapabilitySet::PERFMON, None);
    assert_eq!((rungs.new.on, rungs.end.on), (None, None));
    assert!(words(&rungs.new).contains("CAP_PERFMON"), "{}", words(&rungs.new));
}

/// Whether connection tracking is a module here; what is built in has no such file.
fn is_module() -> bool {
    Path::new("/sys/module/nf_conntrack/initstate").exists()
}

/// Unloads connection tracking and what uses it; gives all of it, the last first.
fn unload_tracking() -> Vec<String> {
    lab::run("nft", "flush ruleset", "");
    // Other tests' namespaces, with their rules, go some time after them.
    lab::until("no namespace has rules", || {
        Path::new("/sys/module/nft_ct")
            .exists()
            .then(|| fs::read_to_string("/sys/module/nft_ct/refcnt"))
            .is_none_or(|count| count.is_ok_and(|count| count.trim() == "0"))
    });
    let mut unloaded = Vec::new();
    unload("nf_conntrack", &mut unloaded);
    unloaded
}

/// Unloads a module and those that use it; gives all of them, the last first.
fn unload(module: &str, unloaded: &mut Vec<String>) {
    let holders = fs::read_dir(format!("/sys/module/{module}/holders")).into_iter().flatten().flatten();
    for holder in holders {
        unload(&holder.file_name().to_string_lossy(), unloaded);
    }
    if Path::new(&format!("/sys/module/{module}")).exists() {
        lab::run("rmmod", module, "");
        unloaded.push(module.to_owned());
    }
}

fn load(unloaded: &[String]) {
    for module in unloaded.iter().rev() {
        lab::run("modprobe", module, "");
    }
}

#[test]
fn a_module_that_is_loaded_again_is_followed() {
    let _turn = turn();
    if !is_module() {
        // There is nothing to follow.
        return;
    }
    let lab = Lab::new();
    traffic::serve_tcp(lab.server(), "0.0.0.0:8080");
    let mut hooks = Hooks::open(config(Some(Rung::Kprobe)));
    let standing = hooks.rungs().clone();
    if standing.new.on.is_none() {
        return;
    }
    let connect = || traffic::tcp(lab.client(), "10.0.2.2:8080", 1).join().expect("a connection");
    connect();
    wait_for(&mut hooks, "the first connection", |event| event.kind == Kind::New);

    let unloaded = unload_tracking();
    lab::until("the module is missed", || hooks.refresh(Instant::now()));
    assert!(words(&hooks.rungs().new).contains("not loaded"), "{}", words(&hooks.rungs().new));

    load(&unloaded);
    lab::track();
    lab::until("the module is found", || hooks.refresh(Instant::now()));
    assert_eq!((&hooks.rungs().new.on, &hooks.rungs().end.on), (&standing.new.on, &standing.end.on));
    connect();
    let event = wait_for(&mut hooks, "a connection after that", |event| event.kind == Kind::New);
    lab::run("conntrack", "-F", "");
    let end = wait_for(&mut hooks, "its end", |event| event.kind == Kind::Destroy);
    assert_eq!(event.entry.id, end.entry.id);
}

#[test]
fn the_agent_s_part_follows_it_too_and_turns_its_switches_on_again() {
    let _turn = turn();
    if !is_module() {
        // There is nothing to follow.
        return;
    }
    let lab = Lab::new();
    traffic::serve_tcp(lab.server(), "0.0.0.0:8080");
    let connect = || traffic::tcp(lab.client(), "10.0.2.2:8080", 1).join().expect("a connection");
    // A rung that does not hold the module, and no programs at all.
    for hooks in [Some(config(Some(Rung::Kprobe))), None] {
        let mut tracking = Tracking::open(hooks, Zones::default());
        let mut table = Table::new(TableConfig::default(), SystemTime::now().into());
        let mut told = || {
            let mut faults = Vec::new();
            tracking.read(&mut table, SystemTime::now().into(), &mut faults);
            assert_eq!(faults, Vec::<String>::new());
            tracking.statistics().events + tracking.hook_statistics().told.iter().sum::<u64>()
        };
        let before = told();
        connect();
        lab::until("the first connection is told of", || told() > before);

        let unloaded = unload_tracking();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            told();
        }
        assert!(!Path::new("/sys/module/nf_conntrack").exists(), "looking for the module loaded it");
        load(&unloaded);
        lab::rules();
        assert_eq!(lab::switch("nf_conntrack_acct"), 0, "a new load counts nothing by itself");
        lab::until("its switches are on", || {
            told();
            lab::switch("nf_conntrack_acct") == 1 && lab::switch("nf_conntrack_timestamp") == 1
        });
        let before = told();
        connect();
        lab::until("a connection after that is told of", || told() > before);
    }
}

/// Prints events as the programs wrote them, for the decoder's own tests: `-- --ignored --nocapture captures`.
#[test]
#[ignore = "writes what other tests read"]
fn captures_what_the_kernel_tells() {
    let _turn = turn();
    let lab = Lab::new();
    let (mut events, mut told) = (Vec::new(), Vec::new());
    number_one(&lab);
    let mut netlink = Conntrack::open(Groups::NEW_AND_END).expect("netlink");
    let mut hooks = ConntrackHooks::open(config(None));
    traffic::every_kind(&lab);
    lab::run("conntrack", "-F", "");
    lab::until("all have ended", || {
        hooks.poll(&mut events);
        netlink.poll(&mut told).expect("netlink");
        events.iter().filter(|event| event.kind == CONNTRACK_END).count() >= traffic::EVERY_KIND
    });
    let layout = *hooks.layout().expect("attached");
    // Its numbers are read in this order.
    println!("layout {layout:?}");
    let clocks = Clocks::now();
    for raw in &events {
        let event = decode(raw, &layout, &clocks).expect("a connection");
        let known = told.iter().rfind(|known| known.entry.original == event.entry.original);
        let known = known.expect("netlink tells of it");
        let words = [raw.at_ns, raw.jiffies, raw.address].into_iter().chain(raw.seed).chain(raw.accounting);
        let words = words.chain(raw.times).chain(raw.labels);
        let words = words.chain([raw.kind, raw.parts, raw.namespace, raw.length].map(u64::from)).chain(raw.conn);
        let words: Vec<String> = words.map(|word| format!("{word:x}")).collect();
        let Tuple { protocol, dst_port, .. } = event.entry.original;
        println!("event {:?}-{protocol}-{dst_port} {:x} {}", event.kind, known.entry.id, words.join(" "));
    }
}
