//! The kernel side as the agent sees it: loads and attaches the programs, reads rings and maps.
//!
//! Takes link events and map contents, gives [`abi::Event`]s, sweeps and counters as plain values. Every call is synchronous
//! and short. Joins, names and exports nothing: that is the table's and the enricher's part.

use flow_common::abi::{Count, Event, Flow, HookCounters, Key4, Key6};
use flows::Sweep;
use interfaces::Interfaces;
use load::{Loaded, map_error};
use roles::Roles;
use std::io;
use std::os::fd::OwnedFd;

mod attach;
pub mod btf;
mod clock;
mod conntrack;
pub mod drops;
mod flows;
mod interfaces;
mod links;
mod load;
mod rings;
mod roles;
mod syscall;

pub use conntrack::{ConnLayout, ConntrackHooks, HooksConfig, Rung, Rungs, Standing};

/// What [`Kernel::load`] needs to know.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Entries of the IPv4 and of the IPv6 flow map each.
    pub max_flows: u32,
    /// Interfaces that can be attached at one time.
    pub max_interfaces: u32,
    /// Bytes of the rings `events` and `ends` each; rounded up to a power of two.
    pub ring_bytes: u32,
    /// Globs of interface names that are Pods' own ends; `!glob` excludes.
    pub pods: Vec<String>,
    /// Globs of interface names that are uplinks, whatever they look like; wins over `pods`. `!glob` excludes.
    pub uplinks: Vec<String>,
    /// How to attach; none: by TCX where the kernel has it, else by clsact.
    pub attachment: Option<Attachment>,
}

/// What a load failed at: a sentence with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent was built before the kernel programs.
    #[error("this agent was built without its kernel programs: run `cargo xtask build`")]
    NoObject,
    /// The object lacks a part: it is of another version.
    #[error("the kernel programs lack `{name}`: build agent and programs together with `cargo xtask build`")]
    Incomplete {
        /// The part.
        name: &'static str,
    },
    /// Neither root nor the capabilities.
    #[error("not permitted to load kernel programs: run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    NotPermitted,
    /// No bpf().
    #[error("this kernel has no bpf(): it needs CONFIG_BPF_SYSCALL, as every distribution's kernel from 5.10 on has")]
    NoBpf,
    /// No programs of the type.
    #[error("this kernel has no tc programs: it needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS")]
    NoTc,
    /// Below 5.11 maps count against a limit.
    #[error(
        "the locked-memory limit is too low for the map `{name}`: add CAP_SYS_RESOURCE, raise `ulimit -l`, or lower maxFlows"
    )]
    MemoryLimit {
        /// The map.
        name: String,
    },
    /// No memory.
    #[error("no memory for the map `{name}`: lower maxFlows")]
    NoMemory {
        /// The map.
        name: String,
    },
    /// Any other refusal of a map.
    #[error("the kernel refused the map `{name}`: {error}")]
    Map {
        /// The map.
        name: String,
        /// What it said.
        error: std::io::Error,
    },
    /// The verifier's refusal.
    #[error("the kernel refused the program `{name}` ({error}); please report its words:\n{log}")]
    Refused {
        /// The program.
        name: &'static str,
        /// What it said.
        error: std::io::Error,
        /// The last lines of the verifier's log.
        log: String,
    },
    /// The tick could not be measured.
    #[error("the kernel's clock cannot be read: {0}")]
    Clock(std::io::Error),
    /// No netlink.
    #[error("the network interfaces cannot be listed: {0}")]
    Links(std::io::Error),
    /// Anything else.
    #[error("the kernel programs cannot be loaded: {0}")]
    Other(aya::EbpfError),
}

/// A map or program call that the kernel refused while running.
#[derive(Debug, thiserror::Error)]
#[error("{call} of {map}: {source}")]
pub struct MapError {
    /// The bpf() command.
    pub call: &'static str,
    /// The map.
    pub map: &'static str,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// What the rings held, in order. Reused: [`Kernel::poll_events`] clears it first.
#[derive(Debug, Default)]
pub struct Events {
    /// New flows and generations, and flows as they were when another point took a direction over.
    pub started: Vec<Event>,
    /// Closed connections, each after its beginning was in `started` (unless that event was lost).
    pub ended: Vec<Event>,
}

/// A part of a sweep; keys and flows go in step. Reused: [`Kernel::sweep`] clears it first.
#[derive(Debug, Default)]
pub struct Slice {
    /// IPv4 keys.
    pub keys4: Vec<Key4>,
    /// The flows of `keys4`.
    pub flows4: Vec<Flow>,
    /// IPv6 keys.
    pub keys6: Vec<Key6>,
    /// The flows of `keys6`.
    pub flows6: Vec<Flow>,
    /// Entries that were read: these, and those that an earlier round gave as they still are.
    pub read: usize,
}

/// Where a sweep stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepProgress {
    /// There is more in this round.
    More,
    /// Every entry that lived through the round has been read once; the next call begins another.
    RoundComplete,
}

/// What a deletion did.
#[derive(Debug, Default)]
pub struct Deleted {
    /// Entries that are gone.
    pub removed: usize,
    /// Entries that had a packet within the last 2 s and therefore stay, as they are now: to be fed like a sweep's.
    pub kept: Slice,
    /// Packets that came between the last look at an entry and its deletion.
    pub late_packets: u64,
    /// Their layer-3 bytes.
    pub late_bytes: u64,
}

/// Turns the kernel's clocks into nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    jiffies: u32,
    jiffy_ns: u64,
    monotonic_ns: u64,
    wall_ns: u64,
}

impl Clock {
    /// A clock whose tick `jiffies` begins at `monotonic_ns`, which is `wall_ns` since 1970: the table is tested in simulated time.
    pub const fn new(jiffies: u32, jiffy_ns: u64, monotonic_ns: u64, wall_ns: u64) -> Self {
        Self { jiffies, jiffy_ns, monotonic_ns, wall_ns }
    }

    /// Now, on the monotonic clock, to a tick.
    pub fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns
    }

    /// Of a [`flow_common::abi::Direction::last`]: the tick's beginning.
    pub fn jiffies_to_wall_ns(&self, jiffies: u32) -> u64 {
        let since = i64::from(jiffies.wrapping_sub(self.jiffies).cast_signed()) * self.jiffy_ns.cast_signed();
        self.wall_ns.saturating_add_signed(since)
    }

    /// Of a [`Flow::first_ns`].
    pub fn monotonic_to_wall_ns(&self, monotonic_ns: u64) -> u64 {
        self.wall_ns.saturating_add_signed(monotonic_ns.wrapping_sub(self.monotonic_ns).cast_signed())
    }
}

/// What an interface is to its Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A Pod's own end: whatever passes belongs to that Pod.
    Pod,
    /// A way to other Nodes and the world.
    Uplink,
}

/// How a hook is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A TCX link at the head of the chain.
    Tcx,
    /// A filter of a clsact qdisc, below kernel 6.6.
    Clsact,
}

/// An interface's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received, link-layer header included.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent, link-layer header included.
    pub tx_bytes: u64,
}

/// One interface, attached or not.
#[derive(Clone, Debug)]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// What it is to the Node.
    pub role: Role,
    /// How it is attached, or why not.
    pub attachment: Result<Attachment, String>,
    /// The interface's own counters now.
    pub link: LinkCounters,
    /// The interface's own counters at the attach: what it carried before is `before_attach`.
    pub link_base: LinkCounters,
    /// What the programs saw: ingress, egress. `annotated` is without what was moved to `takeover`.
    pub hooks: [HookCounters; 2],
}

/// Fill of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// The map's name.
    pub name: &'static str,
    /// Entries (rings: bytes) in use.
    pub used: u64,
    /// Entries (rings: bytes) there is room for.
    pub capacity: u64,
}

/// Run time of one program from the kernel's BPF statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStatistics {
    /// The program's name.
    pub program: String,
    /// Runs since the statistics were on.
    pub runs: u64,
    /// Nanoseconds of all of them.
    pub run_ns: u64,
}

/// The loaded programs and their maps. Dropping it detaches everything.
pub struct Kernel {
    loaded: Loaded,
    interfaces: Interfaces,
    sweep: Sweep,
    rings: [MapFill; 2],
}

impl Kernel {
    /// Loads the programs and attaches them to every interface that is there.
    pub fn load(config: &KernelConfig) -> Result<Self, LoadError> {
        let mut loaded = load::load(config)?;
        let roles = Roles::new(&config.pods, &config.uplinks);
        let mut interfaces =
            Interfaces::open(roles, config.max_interfaces, config.attachment).map_err(LoadError::Links)?;
        interfaces.begin(&mut loaded.programs, &loaded.maps).map_err(LoadError::Links)?;
        let capacity = u64::from(config.ring_bytes);
        let rings = ["events", "ends"].map(|name| MapFill { name, used: 0, capacity });
        Ok(Self { loaded, interfaces, sweep: Sweep::default(), rings })
    }

    /// Follows link events: attaches what came, forgets what went, moves back to the head of a changed chain. Never
    /// blocks; to be called every 100 ms. True if the list of [`Kernel::interfaces`] changed.
    pub fn refresh(&mut self) -> io::Result<bool> {
        self.interfaces.refresh(&mut self.loaded.programs, &self.loaded.maps)
    }

    /// Drains both rings.
    pub fn poll_events(&mut self, events: &mut Events) {
        let maps = &mut self.loaded.maps;
        // The ends first: each of them then has its beginning in this batch or an earlier one.
        rings::drain(&mut maps.ends, &mut events.ended);
        rings::drain(&mut maps.events, &mut events.started);
        self.rings[0].used = rings::bytes(events.started.len());
        self.rings[1].used = rings::bytes(events.ended.len());
    }

    /// Reads up to about `max` more entries of the flow maps. Those in which nothing was counted since the round before the last are
    /// passed over, but for every eighth round.
    pub fn sweep(&mut self, max: usize, slice: &mut Slice) -> Result<SweepProgress, MapError> {
        let jiffies = self.clock().jiffies;
        self.sweep.slice(&self.loaded.maps.flows4, &self.loaded.maps.flows6, jiffies, max, slice)
    }

    /// One IPv4 flow as it is now.
    pub fn lookup4(&self, key: &Key4) -> Result<Option<Flow>, MapError> {
        flows::lookup(&self.loaded.maps.flows4, "flows4", key)
    }

    /// One IPv6 flow as it is now.
    pub fn lookup6(&self, key: &Key6) -> Result<Option<Flow>, MapError> {
        flows::lookup(&self.loaded.maps.flows6, "flows6", key)
    }

    /// Deletes entries that have been quiet for 2 s; the others stay and are given back.
    pub fn delete(&mut self, keys4: &[Key4], keys6: &[Key6], deleted: &mut Deleted) -> Result<(), MapError> {
        deleted.kept.clear();
        (deleted.removed, deleted.late_packets, deleted.late_bytes) = (0, 0, 0);
        let maps = &self.loaded.maps;
        let quiet = (self.clock().jiffies, self.loaded.silence);
        flows::delete(&maps.flows4, keys4, quiet, deleted, flows::keep4).map_err(map_error("deletion", "flows4"))?;
        flows::delete(&maps.flows6, keys6, quiet, deleted, flows::keep6).map_err(map_error("deletion", "flows6"))
    }

    /// Every interface that a pattern names, and those that went within the last minute.
    pub fn interfaces(&mut self) -> Vec<InterfaceReport> {
        self.interfaces.reports(&self.loaded.maps)
    }

    /// Packets and layer-3 bytes that were no IP, by ethertype; 0 holds what found no room of its own.
    pub fn ethertypes(&self) -> Result<Vec<(u16, Count)>, MapError> {
        rings::ethertypes(&self.loaded.maps.ethertypes).map_err(map_error("look-up", "ethertypes"))
    }

    /// The clocks as they stand to each other now.
    pub fn clock(&self) -> Clock {
        self.loaded.tick.clock()
    }

    /// Fill of the flow maps in the last whole sweep, and of the rings when they were last drained.
    pub fn maps(&self) -> Vec<MapFill> {
        let [used4, used6] = self.sweep.fill;
        let capacity = u64::from(self.loaded.max_flows);
        let [events, ends] = self.rings;
        vec![
            MapFill { name: "flows4", used: used4, capacity },
            MapFill { name: "flows6", used: used6, capacity },
            events,
            ends,
        ]
    }

    /// Run times per program since the statistics were on; all zero where they are off.
    pub fn run_statistics(&self) -> Vec<RunStatistics> {
        self.loaded.run_statistics()
    }

    /// Turns the kernel's run-time statistics on for as long as the result lives. They cost every BPF program of the machine
    /// some 30 ns a run; needs CAP_SYS_ADMIN.
    pub fn enable_statistics(&self) -> io::Result<OwnedFd> {
        syscall::enable_statistics()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.interfaces.leave(&mut self.loaded.programs);
    }
}
