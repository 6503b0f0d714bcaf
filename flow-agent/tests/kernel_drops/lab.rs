//! A Node in this thread's own network namespace, and two Pods behind it: 10.9.1.2 and 10.9.2.2, fd09:1::2 and fd09:2::2.

use flow_agent::kernel::drops::FlowKey;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../shared/command.rs"]
mod command;
#[path = "../shared/patience.rs"]
mod patience;

use command::{output, run};
use patience::patience;

/// Bytes of each datagram.
pub(crate) const PAYLOAD: usize = 10;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The first Pod.
    Pod,
    /// The Node itself.
    Node,
}

pub(crate) struct Lab {
    pods: [File; 2],
}

const RULES: &str = "
table inet lab {
    counter n_forward { }
    counter n_input { }
    counter n_prerouting { }
    counter n_output { }
    counter n_reset { }
    counter n_unreachable { }
    counter n_service { }
    chain service { type nat hook prerouting priority -100;
        ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 9007 dnat ip to 10.9.2.2:9008
        ip6 daddr fd96::10 meta l4proto { tcp, udp } th dport 9007 dnat ip6 to [fd09:2::2]:9008
    }
    chain prerouting { type filter hook prerouting priority -300;
        meta l4proto { tcp, udp } th dport 9003 counter name n_prerouting drop
    }
    chain input { type filter hook input priority 0;
        meta l4proto { tcp, udp } th dport 9002 counter name n_input drop
    }
    chain forwarding { type filter hook forward priority 0;
        meta l4proto { tcp, udp } th dport 9001 counter name n_forward drop
        meta l4proto { tcp, udp } th dport 9008 counter name n_service drop
        tcp dport 9005 counter name n_reset reject with tcp reset
        udp dport 9006 counter name n_unreachable reject with icmpx type port-unreachable
    }
    chain output { type filter hook output priority 0;
        meta l4proto { tcp, udp } th dport 9004 counter name n_output drop
    }
}";

const INSIDE: &str = "
table inet inside {
    counter n_inside { }
    chain input { type filter hook input priority 0;
        udp dport 9009 counter name n_inside drop
    }
}";

impl Lab {
    pub(crate) fn new() -> Self {
        enter_new();
        let lab = Self { pods: [(); 2].map(|()| namespace()) };
        set("net/ipv4/ip_forward", "1");
        set("net/ipv6/conf/all/forwarding", "1");
        lab.run("ip", "link set lo up");
        for (pod, number) in lab.pods.iter().zip(1..) {
            lab.run("ip", &format!("link add veth{number} type veth peer name pod{number}"));
            let holder = std::os::fd::AsRawFd::as_raw_fd(pod);
            lab.run("ip", &format!("link set pod{number} netns /proc/{}/fd/{holder}", std::process::id()));
            lab.run("ip", &format!("addr add 10.9.{number}.1/24 dev veth{number}"));
            lab.run("ip", &format!("addr add fd09:{number}::1/64 dev veth{number} nodad"));
            lab.run("ip", &format!("link set veth{number} up"));
            lab.inside(pod, || {
                run("ip", &format!("addr add 10.9.{number}.2/24 dev pod{number}"));
                run("ip", &format!("addr add fd09:{number}::2/64 dev pod{number} nodad"));
                run("ip", "link set lo up");
                run("ip", &format!("link set pod{number} up"));
                run("ip", &format!("route add default via 10.9.{number}.1"));
                run("ip", &format!("route add default via fd09:{number}::1"));
            });
        }
        lab.meet();
        lab
    }

    /// Waits until neighbours know each other: a packet that waits for its neighbour is no drop.
    fn meet(&self) {
        let [pod, _] = &self.pods;
        for dst in ["10.9.1.1", "10.9.2.2", "fd09:1::1", "fd09:2::2"] {
            self.inside(pod, || {
                until("the Pod reaches the other one", || exits_well("ping", &format!("-c 1 -W 1 {dst}")));
            });
        }
    }

    pub(crate) fn rules(&self) {
        nft(RULES);
    }

    pub(crate) fn inside_rules(&self) {
        self.inside(&self.pods[0], || nft(INSIDE));
    }

    /// Packets by the name of nft's counter.
    pub(crate) fn counters(&self) -> HashMap<String, u64> {
        counters()
    }

    pub(crate) fn inside_counter(&self) -> u64 {
        self.inside(&self.pods[0], || counters()["inside"])
    }

    pub(crate) fn run(&self, program: &str, arguments: &str) {
        run(program, arguments);
    }

    /// Sends so many packets from one socket, or begins a connection.
    pub(crate) fn send(&self, side: Side, protocol: u8, dst: &str, port: u16, packets: u64) {
        self.send_bytes(side, protocol, dst, port, packets, PAYLOAD);
    }

    pub(crate) fn send_bytes(&self, side: Side, protocol: u8, dst: &str, port: u16, packets: u64, bytes: usize) {
        let to = SocketAddr::new(dst.parse().expect("an address"), port);
        let send = || match protocol {
            17 => datagrams(to, packets, bytes),
            // One SYN: the next would come after a second.
            _ => drop(TcpStream::connect_timeout(&to, Duration::from_millis(200))),
        };
        match side {
            Side::Node => send(),
            Side::Pod => self.inside(&self.pods[0], send),
        }
    }

    /// Packets that the queue of an interface dropped.
    pub(crate) fn queue_drops(&self, interface: &str) -> u64 {
        let shown = output("tc", &format!("-s qdisc show dev {interface}"));
        let after = shown.split_once("dropped ").unwrap_or_else(|| panic!("{shown}")).1;
        after.split(',').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{shown}"))
    }

    pub(crate) fn until(&self, what: &str, done: impl FnMut() -> bool) {
        until(what, done);
    }

    fn inside<T: Send>(&self, pod: &File, what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(pod.as_fd(), Some(LinkNameSpaceType::Network)).expect("it is one");
                what()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Whether a flow has this address at one end.
pub(crate) fn has_addr(key: &FlowKey, addr: &str) -> bool {
    match (key, addr.parse().expect("an address")) {
        (FlowKey::V4(key), IpAddr::V4(addr)) => key.addr.contains(&u32::from_ne_bytes(addr.octets())),
        (FlowKey::V6(key), IpAddr::V6(addr)) => {
            let octets = addr.octets();
            let (high, low) = octets.split_at(8);
            let half = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
            key.addr.contains(&[half(high), half(low)])
        }
        _ => false,
    }
}

fn datagrams(to: SocketAddr, packets: u64, bytes: usize) {
    let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(from).expect("a free port");
    let payload = vec![b'x'; bytes];
    for _ in 0..packets {
        match socket.send_to(&payload, to) {
            // The output hook refuses; an earlier packet was refused.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused) => {}
            Err(error) => panic!("{to}: {error}"),
        }
    }
}

fn enter_new() {
    #[expect(deprecated, reason = "its successor is unsafe because of flags that this call does not have")]
    let entered = rustix::thread::unshare(UnshareFlags::NEWNET);
    entered.expect("these tests make network namespaces: run them as root, `sudo -E cargo test -p flow-agent`");
}

/// A new namespace, held open by the file.
fn namespace() -> File {
    let made = std::thread::spawn(|| {
        enter_new();
        File::open("/proc/thread-self/ns/net").expect("there is one")
    });
    made.join().expect("it does not panic")
}

fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn nft(rules: &str) {
    use std::io::Write as _;
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("nft is not installed: {error}"));
    child.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it runs").success(), "nft refuses the rules");
}

fn counters() -> HashMap<String, u64> {
    let listed: serde_json::Value = serde_json::from_str(&output("nft", "-j list counters")).expect("JSON");
    let objects = listed["nftables"].as_array().expect("a list");
    let counter = |object: &serde_json::Value| {
        let counter = object.get("counter")?;
        Some((counter["name"].as_str()?.trim_start_matches("n_").to_owned(), counter["packets"].as_u64()?))
    };
    objects.iter().filter_map(counter).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let (begin, limit) = (Instant::now(), Duration::from_secs(20) * patience());
    while !done() {
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::yield_now();
    }
}

fn exits_well(program: &str, arguments: &str) -> bool {
    let mut command = Command::new(program);
    command.args(arguments.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap_or_else(|error| panic!("{program} is not installed: {error}")).success()
}
