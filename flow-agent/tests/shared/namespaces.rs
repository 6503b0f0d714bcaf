//! Two network namespaces of a test's own, pairs between them, and the kernel programs there.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use flow_agent::kernel::{Attachment, Events, Kernel, KernelConfig};
use flow_common::abi::Event;

#[path = "command.rs"]
mod command;
#[path = "patience.rs"]
mod patience;

pub(crate) use command::run;
pub(crate) use patience::patience;

/// A namespace that this thread and its children are in, and another one held open by a sleeping process.
pub(crate) struct Lab {
    pub(crate) other: Child,
}

impl Lab {
    pub(crate) fn new() -> Self {
        #[expect(deprecated, reason = "its successor is unsafe because of flags that this call does not have")]
        let entered = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        entered.expect("these tests make network namespaces: run them as root, `sudo -E cargo test -p flow-agent`");
        let other = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().expect("util-linux is installed");
        let lab = Self { other };
        lab.until("the other namespace is there", || {
            let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
            namespace(&lab.other.id().to_string()) != namespace("thread-self")
        });
        ip("link set lo up");
        lab
    }

    /// A pair, one end moved into the other namespace.
    pub(crate) fn pod(&self, name: &str, addr: &str) {
        ip(&format!("link add {name} type veth peer name {name}p netns {}", self.other.id()));
        ip(&format!("addr add {addr}.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        self.inside(&format!("ip addr add {addr}.2/24 dev {name}p"));
        self.inside(&format!("ip link set {name}p up"));
    }

    /// The pair veth0, 10.9.0.1 and fd09::1 here, 10.9.0.2 and fd09::2 there.
    pub(crate) fn pod_of_both_families(&self) {
        self.pod("veth0", "10.9.0");
        ip("addr add fd09::1/64 dev veth0 nodad");
        self.inside("ip addr add fd09::2/64 dev veth0p nodad");
    }

    pub(crate) fn inside(&self, command: &str) {
        run("nsenter", &format!("--net=/proc/{}/ns/net {command}", self.other.id()));
    }

    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let (begin, limit) = (Instant::now(), Duration::from_secs(5) * patience());
        while !done() {
            assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The event of a flow's beginning: others' may stand before it that are not ready.
    pub(crate) fn started(&self, kernel: &mut Kernel, wanted: impl Fn(&Event) -> bool) -> Event {
        let (mut events, mut found) = (Events::default(), None);
        self.until("the flow's first packet is an event", || {
            kernel.poll_events(&mut events);
            found = events.started.iter().copied().find(&wanted);
            found.is_some()
        });
        found.expect("waited for")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

pub(crate) fn load() -> Kernel {
    Kernel::load(&config(None), None).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn config(attachment: Option<Attachment>) -> KernelConfig {
    let patterns = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    KernelConfig {
        max_flows: 16_384,
        max_interfaces: 8,
        ring_bytes: 1 << 20,
        pods: patterns(&["veth*", "!veth-not"]),
        uplinks: patterns(&["up*"]),
        attachment,
    }
}
