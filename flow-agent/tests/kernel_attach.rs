//! Attaching in a network namespace of each test's own: veth pairs come and go, programs find and leave them.
//!
//! Needs root and the built kernel programs; says so where either is missing.

use aya::programs::{SchedClassifier, TcAttachType};
use flow_agent::kernel::{
    self, Attachment, InterfaceReport, Kernel, KernelConfig, PinError, Role, Slice, SweepProgress,
};
use flow_common::abi::{EVENT_NEW, Reason};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[path = "shared/namespaces.rs"]
mod lab;

use lab::{Lab, config, ip, load, run};

fn report(kernel: &mut Kernel, name: &str) -> Option<InterfaceReport> {
    kernel.interfaces().into_iter().find(|report| report.name == name)
}

/// Packets on both hooks as the interface itself counted them since its attach.
fn own(report: &InterfaceReport) -> [u64; 2] {
    let InterfaceReport { link, link_base, .. } = report;
    [link.rx_packets - link_base.rx_packets, link.tx_packets - link_base.tx_packets]
}

/// The same as the programs did.
fn seen(report: &InterfaceReport) -> [u64; 2] {
    report.hooks.map(|hook| hook.seen.packets)
}

/// What the interface counted more than the programs.
fn unseen(report: &InterfaceReport) -> [i64; 2] {
    let (own, seen) = (own(report), seen(report));
    [0, 1].map(|hook| own[hook].cast_signed() - seen[hook].cast_signed())
}

/// A report of a moment in which nothing passes, and as it is to be: link and programs are not read at once, the kernel sends of its own
/// accord, to find neighbours and routers, and a packet may be held up between the two for as long as a processor is.
fn quiet(lab: &Lab, kernel: &mut Kernel, name: &str, is_it: impl Fn(&InterfaceReport) -> bool) -> InterfaceReport {
    let mut quiet = None;
    lab.until("a moment in which nothing passes, and what passed is seen", || {
        let [first, second] = [(), ()].map(|()| report(kernel, name).expect("attached"));
        let is_quiet = (first.link, first.hooks) == (second.link, second.hooks);
        quiet = (is_quiet && is_it(&second)).then_some(second);
        quiet.is_some()
    });
    quiet.expect("waited for")
}

/// One in which all that passed since the attach was seen.
fn settled(lab: &Lab, kernel: &mut Kernel, name: &str) -> InterfaceReport {
    quiet(lab, kernel, name, |report| unseen(report) == [0, 0])
}

/// For the table of kernels.
#[expect(clippy::print_stdout, reason = "the table is made of what tests print")]
fn say_rung(report: &InterfaceReport) {
    let rung = match report.attachment {
        Ok(Attachment::Tcx) => "TCX link",
        Ok(Attachment::Clsact) => "clsact filter",
        Err(_) => "none",
    };
    println!("feature tc: {rung}");
}

fn attached(kernel: &mut Kernel, name: &str) -> bool {
    kernel.refresh().expect("links can be read");
    report(kernel, name).is_some_and(|report| report.attachment.is_ok())
}

/// What this kernel must be attached by: TCX is in every kernel from 6.6 on.
fn expected_attachment() -> Attachment {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let series = [numbers.next(), numbers.next()].map(|number| number.expect("a series"));
    if series >= [6, 6] { Attachment::Tcx } else { Attachment::Clsact }
}

#[test]
fn interfaces_are_attached_as_they_come_and_forgotten_as_they_go() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let mut kernel = load();
    let there = report(&mut kernel, "veth0").expect("named by a pattern");
    assert_eq!((there.role, &there.attachment), (Role::Pod, &Ok(expected_attachment())));
    say_rung(&there);

    lab.pod("veth1", "10.9.1");
    lab.until("a new pair is attached", || attached(&mut kernel, "veth1"));
    lab.pod("up0", "10.9.2");
    lab.until("an uplink is attached", || attached(&mut kernel, "up0"));
    assert_eq!(report(&mut kernel, "up0").expect("attached").role, Role::Uplink);

    ip("link add veth-not type veth peer name veth-inside");
    kernel.refresh().expect("links can be read");
    assert!(report(&mut kernel, "veth-not").is_none(), "excluded by name");
    let waiting = report(&mut kernel, "veth-inside").expect("named by a pattern").attachment;
    assert!(waiting.as_ref().is_err_and(|reason| reason.contains("other end")), "{waiting:?}");
    ip(&format!("link set veth-not netns {}", lab.other.id()));
    lab.until("a pair whose other end moved is attached", || attached(&mut kernel, "veth-inside"));

    ip("link del veth1");
    lab.until("a gone interface says so", || {
        kernel.refresh().expect("links can be read")
            && report(&mut kernel, "veth1").is_some_and(|report| report.attachment.is_err())
    });
}

#[test]
fn every_packet_of_an_interface_is_seen_and_accounted_for() {
    let lab = Lab::new();
    lab.pod_of_both_families();
    let mut kernel = load();
    run("ping", "-q -c 5 -i 0.002 -W 2 10.9.0.2");
    run("ping", "-q -c 4 -i 0.002 -W 2 fd09::2");
    let echo = u16::from_be_bytes([8, 0]).to_be();
    let ping = lab.started(&mut kernel, |event| event.family == 4 && event.key.port[1] == echo);
    assert_eq!((ping.kind, ping.key.protocol, ping.flow.generation), (EVENT_NEW, 1, 0));
    let flow = kernel.lookup4(&ping.key.to_key4()).expect("a map").expect("a flow");
    assert_eq!(flow.direction.map(|direction| (direction.packets, direction.bytes)), [(5, 420); 2]);

    // The first three rounds give every flow.
    let whole = (0..3).find_map(|_| {
        let before = settled(&lab, &mut kernel, "veth0");
        let (counted, ethertypes) = (packets_of_all(&mut kernel), kernel.ethertypes().expect("a map"));
        let after = settled(&lab, &mut kernel, "veth0");
        (before.hooks == after.hooks).then_some((after, counted, ethertypes))
    });
    let (report, counted, ethertypes) = whole.expect("a moment in which nothing passes");
    let lost = |reason: Reason| report.hooks.iter().map(|hook| hook.lost[reason as usize].packets).sum::<u64>();
    assert_eq!(seen(&report).iter().sum::<u64>(), counted + Reason::ALL.map(lost).iter().sum::<u64>());
    let arp = ethertypes.into_iter().find(|(ethertype, _)| *ethertype == 0x0806);
    assert_eq!(arp.map_or(0, |(_, count)| count.packets), lost(Reason::NotIp));
}

fn packets_of_all(kernel: &mut Kernel) -> u64 {
    let (mut counted, mut slice) = (0, Slice::default());
    while kernel.sweep(64, &mut slice).expect("a map") == SweepProgress::More {
        counted += packets(&slice);
    }
    counted + packets(&slice)
}

fn packets(slice: &Slice) -> u64 {
    let flows = slice.flows4.iter().chain(&slice.flows6);
    flows.flat_map(|flow| flow.direction).map(|direction| direction.packets).sum()
}

#[test]
fn programs_load_whatever_signals_come() {
    extern "C" fn ignore(_: libc::c_int) {}
    let _lab = Lab::new();
    let handler = ignore as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, which it may at any time.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    // SAFETY: without arguments.
    let loading = unsafe { libc::pthread_self() };
    let is_done = AtomicBool::new(false);
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                // SAFETY: the thread outlives the scope.
                unsafe { libc::pthread_kill(loading, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let loaded = Kernel::load(&config(None), None);
        is_done.store(true, Ordering::Relaxed);
        loaded
    });
    assert!(loaded.is_ok(), "{:?}", loaded.err());
}

#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn skipped(why: &str) {
    println!("skipped: {why}");
}

fn chain(interface: &str, hook: TcAttachType) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(interface, hook).expect("kernel 6.6");
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

#[test]
fn the_programs_return_to_the_head_of_the_chain() {
    if expected_attachment() != Attachment::Tcx {
        return skipped("a chain has a head from kernel 6.6 on");
    }
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let mut kernel = load();
    let chains = || [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| chain("veth0", hook));
    let alone = chains();
    assert_eq!(alone.each_ref().map(Vec::len), [1, 1]);
    // Another agent's programs come before ours.
    let other = load();
    let second = chains();
    for (own, both) in alone.iter().zip(&second) {
        assert_eq!((both.len(), both.last()), (2, own.first()), "the last to come is the first to run");
    }
    lab.until("the first agent's are ahead again", || {
        kernel.refresh().expect("links can be read");
        chains().iter().zip(&alone).all(|(both, own)| both.len() == 2 && both.first() == own.first())
    });
    run("ping", "-q -c 3 -i 0.002 -W 2 10.9.0.2");
    settled(&lab, &mut kernel, "veth0");
    // What another test starts at this moment has the links for as long as it is no program of its own yet.
    drop(other);
    lab.until("programs go with their agent", || chains().map(|chain| chain.len()) == [1, 1]);
    drop(kernel);
    lab.until("the last go too", || chains().map(|chain| chain.len()) == [0, 0]);
}

#[test]
fn clsact_serves_where_tcx_does_not_and_leftovers_go() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let clsact = || Kernel::load(&config(Some(Attachment::Clsact)), None).unwrap_or_else(|error| panic!("{error}"));
    // An agent that was killed leaves its filters behind.
    std::mem::forget(clsact());
    let mut kernel = clsact();
    assert_eq!(report(&mut kernel, "veth0").expect("named").attachment, Ok(Attachment::Clsact));
    run("ping", "-q -c 3 -i 0.002 -W 2 10.9.0.2");
    let report = settled(&lab, &mut kernel, "veth0");
    assert!(seen(&report).iter().all(|packets| *packets >= 3));
    assert_eq!(filters("veth0"), [1, 1], "the old ones were removed");
    drop(kernel);
    assert_eq!(filters("veth0"), [0, 0]);
    drop(lab);
}

/// Filters on both hooks.
fn filters(interface: &str) -> [usize; 2] {
    ["ingress", "egress"].map(|hook| {
        let output = Command::new("tc").args(["filter", "show", "dev", interface, hook]).output().expect("iproute2");
        String::from_utf8_lossy(&output.stdout).matches("direct-action").count()
    })
}

#[test]
fn filters_that_others_remove_come_again() {
    let lab = Lab::new();
    lab.pod("veth0", "10.9.0");
    let clsact = config(Some(Attachment::Clsact));
    let mut kernel = Kernel::load(&clsact, None).unwrap_or_else(|error| panic!("{error}"));
    let removals = ["filter del dev veth0 egress", "qdisc del dev veth0 clsact"];
    for (removal, left) in removals.into_iter().zip([[1, 0], [0, 0]]) {
        run("tc", removal);
        assert_eq!(filters("veth0"), left);
        run("ping", "-q -c 2 -i 0.002 -W 2 10.9.0.2");
        lab.until("both are there again", || {
            kernel.refresh().expect("links can be read");
            filters("veth0") == [1, 1]
        });
        // What passed without them shows, and is no more.
        let before = quiet(&lab, &mut kernel, "veth0", |_| true);
        let missed = unseen(&before);
        assert!(missed[1] >= 2, "{missed:?}");
        run("ping", "-q -c 3 -i 0.002 -W 2 10.9.0.2");
        let after = quiet(&lab, &mut kernel, "veth0", |after| unseen(after) == missed);
        assert!(own(&after)[0] - own(&before)[0] >= 3);
    }
}

#[test]
fn filters_leave_an_interface_that_has_another_name_by_then() {
    let lab = Lab::new();
    let rename = |from: &str, to: &str| {
        ip(&format!("link set {from} down"));
        ip(&format!("link set {from} name {to}"));
    };
    lab.pod("veth0", "10.9.0");
    lab.pod("veth1", "10.9.1");
    let clsact = config(Some(Attachment::Clsact));
    let mut kernel = Kernel::load(&clsact, None).unwrap_or_else(|error| panic!("{error}"));
    // No pattern has this name.
    rename("veth0", "other0");
    lab.until("it is left", || {
        kernel.refresh().expect("links can be read");
        filters("other0") == [0, 0]
    });
    // Another interface gets the name of one that keeps its filters.
    rename("veth1", "veth2");
    ip(&format!("link add veth1 type veth peer name veth3p netns {}", lab.other.id()));
    lab.until("the new one is attached", || attached(&mut kernel, "veth1") && attached(&mut kernel, "veth2"));
    rename("veth2", "other2");
    lab.until("the renamed one is left", || {
        kernel.refresh().expect("links can be read");
        filters("other2") == [0, 0]
    });
    assert_eq!(filters("veth1"), [1, 1], "it goes on");
    rename("veth1", "veth3");
    drop(kernel);
    assert_eq!(filters("veth3"), [0, 0]);
}

#[test]
fn an_interface_that_took_the_place_of_another_unseen_is_attached() {
    let lab = Lab::new();
    let pod = || {
        ip(&format!("link add veth0 index 4000 type veth peer name veth0p netns {}", lab.other.id()));
        ip("addr add 10.9.0.1/24 dev veth0");
        ip("link set veth0 up");
        lab.inside("ip addr add 10.9.0.2/24 dev veth0p");
        lab.inside("ip link set veth0p up");
    };
    pod();
    let mut kernel = load();
    if report(&mut kernel, "veth0").expect("attached").attachment == Ok(Attachment::Clsact) {
        // Links tell that their interface has gone, filters do not.
        return;
    }
    run("ping", "-q -c 3 -i 0.002 -W 2 10.9.0.2");
    // More changes than wait for a reader: that the one went and the other came is among those lost.
    let batch = tempfile::NamedTempFile::new().expect("a file");
    let changes: String = (0..3_000).map(|change| format!("link set lo mtu {}\n", 60_000 + change % 2)).collect();
    std::fs::write(batch.path(), changes).expect("there is room");
    ip(&format!("-batch {}", batch.path().display()));
    ip("link del veth0");
    pod();
    assert!(attached(&mut kernel, "veth0"));
    run("ping", "-q -c 3 -i 0.002 -W 2 10.9.0.2");
    let there = settled(&lab, &mut kernel, "veth0");
    assert!(seen(&there).iter().all(|packets| *packets >= 3), "{:?}", seen(&there));
}

/// A bpffs that this thread alone has, and what it starts.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn new() -> Self {
        // SAFETY: gives this thread mounts of its own, and takes no memory from anyone.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("mounts of one's own");
        let folder = tempfile::tempdir().expect("a folder");
        run("mount", "--make-rprivate /");
        run("mount", &format!("-t bpf bpf {}", folder.path().display()));
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        run("umount", &format!("-l {}", self.path().display()));
    }
}

/// Loads with what is kept in the folder, and says whether that was adopted.
fn load_kept(folder: &Path, max_flows: u32, attachment: Option<Attachment>) -> (Kernel, bool) {
    let config = KernelConfig { max_flows, ..config(attachment) };
    let pins = once_free(|| kernel::pins(&folder.join("agent"), &config));
    let is_adopted = pins.inherited().is_some();
    (Kernel::load(&config, Some(pins)).unwrap_or_else(|error| panic!("{error}")), is_adopted)
}

/// What is done when no agent is there any more: a program that another test starts has this process's open files for a moment.
fn once_free<T>(mut attempt: impl FnMut() -> Result<T, PinError>) -> T {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(PinError::Taken(_)) if begin.elapsed() < Duration::from_secs(5) => std::thread::yield_now(),
            done => return done.unwrap_or_else(|error| panic!("{error}")),
        }
    }
}

/// Packets on both hooks, as both the programs and the interface have them.
fn passed(lab: &Lab, kernel: &mut Kernel) -> u64 {
    seen(&settled(lab, kernel, "veth0")).iter().sum()
}

fn ping() {
    run("ping", "-q -c 5 -i 0.002 -W 2 10.9.0.2");
}

#[test]
fn what_is_kept_counts_without_an_agent_and_the_next_one_goes_on() {
    goes_on(None);
}

#[test]
fn filters_that_are_kept_count_on_too() {
    goes_on(Some(Attachment::Clsact));
}

fn goes_on(attachment: Option<Attachment>) {
    let (lab, folder) = (Lab::new(), Bpffs::new());
    lab.pod("veth0", "10.9.0");
    lab.pod("veth1", "10.9.1");
    let (mut kernel, adopted) = load_kept(folder.path(), 16_384, attachment);
    assert!(!adopted);
    ping();
    let before = passed(&lab, &mut kernel);
    let again = kernel::pins(&folder.path().join("agent"), &config(None)).expect_err("there is an agent already");
    assert!(again.to_string().contains("another flow-agent"), "{again}");
    assert!(kernel::detach(&folder.path().join("agent")).is_err(), "it is in use");
    drop(kernel);

    ping();
    ip("link del veth1");
    let (mut kernel, adopted) = load_kept(folder.path(), 16_384, attachment);
    assert!(adopted);
    assert!(report(&mut kernel, "veth1").is_none(), "it went while no agent was there");
    let meanwhile = passed(&lab, &mut kernel);
    // On clsact, filters count meanwhile as well; what passed while they were replaced is before the attach.
    assert!(meanwhile >= before + 10, "{before}, then {meanwhile}");
    ping();
    assert!(passed(&lab, &mut kernel) >= meanwhile + 10);
    let (mut slice, mut echoed) = (Slice::default(), 0);
    while kernel.sweep(1_000, &mut slice).expect("a map") == SweepProgress::More {}
    let icmp = slice.keys4.iter().zip(&slice.flows4).filter(|(key, _)| key.protocol == 1);
    icmp.for_each(|(_, flow)| echoed += flow.direction.iter().map(|direction| direction.packets).sum::<u64>());
    assert_eq!(echoed, 30);
    drop(kernel);

    assert!(once_free(|| kernel::detach(&folder.path().join("agent"))) > 0);
    assert!(!folder.path().join("agent").exists());
    ping();
    let (mut kernel, adopted) = load_kept(folder.path(), 16_384, attachment);
    assert!(!adopted);
    ping();
    assert!((10..20).contains(&passed(&lab, &mut kernel)));
}

#[test]
fn maps_of_another_shape_and_of_an_agent_long_gone_begin_anew() {
    let (lab, folder) = (Lab::new(), Bpffs::new());
    lab.pod("veth0", "10.9.0");
    let (kernel, _) = load_kept(folder.path(), 16_384, None);
    ping();
    drop(kernel);
    let (mut kernel, adopted) = load_kept(folder.path(), 8_192, None);
    assert!(!adopted);
    ping();
    assert!((10..20).contains(&passed(&lab, &mut kernel)));
    drop(kernel);
    let home =
        std::fs::read_dir(folder.path().join("agent")).expect("kept").next().expect("this namespace's").expect("it");
    let kept: Vec<_> = std::fs::read_dir(home.path()).expect("kept").collect();
    assert_eq!(kept.len(), 1, "the other shape's are gone");

    let memory = kept.into_iter().next().expect("one").expect("it").path().join("memory");
    let memory = aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(memory).expect("kept")).expect("an array");
    let mut memory: aya::maps::Array<_, [u64; 5]> = memory.try_into().expect("of accounts");
    let mut own = memory.get(&0, 0).expect("the agent's own");
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec.cast_unsigned();
    // A little longer ago than the lease; on a machine that has just started, never.
    own[2] = now.saturating_sub(601) * 1_000_000_000;
    memory.set(0, own, 0).expect("it is there");
    let (mut kernel, adopted) = load_kept(folder.path(), 8_192, None);
    assert!(!adopted, "it was last there too long ago");
    ping();
    assert!((10..20).contains(&passed(&lab, &mut kernel)));
}
