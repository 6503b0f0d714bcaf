//! Three network namespaces: the test's own, which routes, tracks and translates, and one on either side of it.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

#[path = "../shared/patience.rs"]
mod patience;

pub(crate) use patience::patience;

/// Where the switches and timeouts of connection tracking are.
const SWITCHES: &str = "/proc/sys/net/netfilter";

/// What the router does: a Service's address, marks and labels, and a zone of its own for one port.
const RULES: &str = "
    table inet raw {
        chain prerouting {
            type filter hook prerouting priority -300
            udp dport 5555 ct zone set 7
        }
    }
    table ip nat {
        chain prerouting {
            type nat hook prerouting priority -100
            ip daddr 10.96.0.10 tcp dport 80 dnat to 10.0.2.2:8080
        }
        chain postrouting {
            type nat hook postrouting priority 100
        }
    }
    table inet filter {
        chain forward {
            type filter hook forward priority 0
            ct state new tcp dport 8081 ct mark set 0x1234
            ct state new tcp dport 8081 ct label set 3
            ct state new tcp dport 8081 ct label set 127
        }
        chain output {
            type filter hook output priority 0
            ct state new accept
        }
    }
";

/// A side's namespace, held open by a sleeping process.
#[derive(Clone, Copy)]
pub(crate) struct Side(u32);

/// The namespaces; they go with it.
pub(crate) struct Lab {
    holders: [Child; 2],
}

impl Lab {
    /// This thread and the programs it starts are in the router from here on.
    pub(crate) fn new() -> Self {
        #[expect(deprecated, reason = "its successor is unsafe because of flags that this call does not have")]
        let entered = rustix::thread::unshare(UnshareFlags::NEWNET);
        entered.expect("these tests make network namespaces: run them as root, `sudo -E cargo test -p flow-agent`");
        let hold = || Command::new("unshare").args(["--net", "sleep", "600"]).spawn().expect("util-linux is installed");
        let lab = Self { holders: [hold(), hold()] };
        for holder in &lab.holders {
            until("the namespace is there", || {
                let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
                let its = namespace(&holder.id().to_string());
                its.is_some() && its != namespace("thread-self") && its != namespace("1")
            });
        }
        run("ip", "link set lo up", "");
        for (number, side) in [(1, lab.client()), (2, lab.server())] {
            run("ip", &format!("link add side{number} type veth peer name eth0 netns {}", side.0), "");
            run("ip", &format!("addr add 10.0.{number}.1/24 dev side{number}"), "");
            run("ip", &format!("addr add fd0{number}::1/64 dev side{number} nodad"), "");
            run("ip", &format!("link set side{number} up"), "");
            for command in [
                "ip link set lo up",
                &format!("ip addr add 10.0.{number}.2/24 dev eth0"),
                &format!("ip addr add fd0{number}::2/64 dev eth0 nodad"),
                "ip link set eth0 up",
                &format!("ip route add default via 10.0.{number}.1"),
                &format!("ip route add default via fd0{number}::1"),
                "sysctl -q -w net.ipv4.ip_local_port_range=1024\t65001",
            ] {
                run("nsenter", &format!("--net=/proc/{}/ns/net {command}", side.0), "");
            }
        }
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{switch}"), "1").expect(switch);
        }
        track();
        lab
    }

    pub(crate) fn client(&self) -> Side {
        Side(self.holders[0].id())
    }

    pub(crate) fn server(&self) -> Side {
        Side(self.holders[1].id())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// Tracks everything that passes the router.
pub(crate) fn rules() {
    run("nft", "-f -", RULES);
}

/// Tracks it with counters and times, and forgets the ended soon.
pub(crate) fn track() {
    rules();
    for (switch, value) in [
        ("nf_conntrack_acct", "1"),
        ("nf_conntrack_timestamp", "1"),
        ("nf_conntrack_tcp_timeout_time_wait", "2"),
        ("nf_conntrack_tcp_timeout_close", "2"),
        ("nf_conntrack_udp_timeout", "2"),
        ("nf_conntrack_icmp_timeout", "2"),
        ("nf_conntrack_icmpv6_timeout", "2"),
    ] {
        set_switch(switch, value);
    }
}

/// Sets a switch or a number of the router's connection tracking.
pub(crate) fn set_switch(name: &str, value: &str) {
    fs::write(format!("{SWITCHES}/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Connections in the router's table.
pub(crate) fn tracked() -> u64 {
    switch("nf_conntrack_count")
}

/// The value of a switch or a number of the router's connection tracking.
pub(crate) fn switch(name: &str) -> u64 {
    let value = fs::read_to_string(format!("{SWITCHES}/{name}"));
    value.expect("connection tracking").trim().parse().expect("a number")
}

impl Side {
    /// Runs on a thread in this side's namespace.
    pub(crate) fn inside<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0)).expect("held");
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
            work()
        })
    }

    /// Runs a program there.
    pub(crate) fn run(self, program: &str, arguments: &str) {
        run("nsenter", &format!("--net=/proc/{}/ns/net {program} {arguments}", self.0), "");
    }
}

/// Waits for a condition, within a limit.
pub(crate) fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let (begin, limit) = (Instant::now(), limit * patience());
    while !done() {
        if begin.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Waits for a condition that must come.
pub(crate) fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(10), done), "not in time: {what}");
}

/// Runs a program to its end, with something to read.
pub(crate) fn run(program: &str, arguments: &str, input: &str) {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is not installed: {error}"));
    // It may end without reading.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect(program);
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
