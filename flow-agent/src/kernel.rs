//! The kernel side as the agent sees it: loads and attaches the programs, reads rings and maps.
//!
//! Takes link events and map contents, gives [`abi::Event`]s, sweeps and counters as plain values. Every call is synchronous
//! and short. Joins, names and exports nothing: that is the table's and the enricher's part.

use flow_common::abi::{self, Count, Event, Flow, HookCounters, Key4, Key6};
use flows::Sweep;
use interfaces::Interfaces;
use links::Links;
use load::{Loaded, map_error};
use pins::{Identity, Shape};
use roles::Roles;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

mod attach;
pub mod btf;
pub(crate) mod clock;
mod conntrack;
pub mod drops;
mod filters;
mod flows;
mod interfaces;
mod links;
mod load;
mod namespace;
mod pins;
mod rings;
mod roles;
mod syscall;

pub use conntrack::{ConnLayout, ConntrackHooks, ConntrackModule, HooksConfig, Rung, Rungs, Standing};
pub use pins::{Inheritance, PinError, Pins};

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
    /// Entries that stay, because they had a packet within the last 2 s or hold more than was seen, as they are now: to be fed like a
    /// sweep's.
    pub kept: Slice,
    /// Packets that came between the last look at an entry and its deletion.
    pub late_packets: u64,
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
        let since = abi::ticks_since(jiffies, self.jiffies) * self.jiffy_ns.cast_signed();
        self.wall_ns.saturating_add_signed(-since)
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

/// The loaded programs and their maps. Dropping it detaches everything, unless it is kept for the next agent.
pub struct Kernel {
    loaded: Loaded,
    interfaces: Interfaces,
    sweep: Sweep,
    rings: [MapFill; 2],
}

/// Takes the place below `root` (in bpffs) where programs and maps of this shape are kept from one agent to the next, with what is there.
pub fn pins(root: &Path, config: &KernelConfig) -> Result<Pins, PinError> {
    let ring_bytes = load::ring_bytes(config);
    Pins::open(root, Shape { max_flows: config.max_flows, max_interfaces: config.max_interfaces, ring_bytes })
}

/// Ends the counting that was kept going in this network namespace without an agent: by names below `root`, or as filters that outlived
/// theirs. Gives how many things were kept.
pub fn detach(root: &Path) -> Result<usize, PinError> {
    let count = match pins::release(root) {
        Err(PinError::NoBpffs(_)) => 0,
        result => result?,
    };
    for link in Links::open().and_then(|mut links| links.dump()).unwrap_or_default() {
        attach::remove_leftovers(&link.name);
    }
    Ok(count)
}

impl Kernel {
    /// Loads the programs and attaches them to every interface that is there; with `pins` in the place of those of the agent before, whose
    /// maps they use on.
    pub fn load(config: &KernelConfig, pins: Option<Pins>) -> Result<Self, LoadError> {
        let mut loaded = load::load(config, pins)?;
        loaded.renew();
        let roles = Roles::new(&config.pods, &config.uplinks);
        let pins = loaded.maps.pins.as_ref();
        let mut interfaces =
            Interfaces::open(roles, config.max_interfaces, config.attachment, pins).map_err(LoadError::Links)?;
        interfaces.begin(&mut loaded.programs, &loaded.maps).map_err(LoadError::Links)?;
        if let Some(pins) = &mut loaded.maps.pins {
            pins.tidy(|index| interfaces.has(index));
        }
        let capacity = u64::from(config.ring_bytes);
        let rings = ["events", "ends"].map(|name| MapFill { name, used: 0, capacity });
        Ok(Self { loaded, interfaces, sweep: Sweep::default(), rings })
    }

    /// Whether programs and maps stay for the next agent.
    pub fn is_kept(&self) -> bool {
        self.loaded.maps.pins.is_some()
    }

    /// What was adopted of the agent before, and what its points counted that is not in the maps any more: packets and bytes, by
    /// interface index.
    pub fn inherited(&self) -> Option<(Inheritance, &BTreeMap<u32, [i64; 2]>)> {
        let inheritance = self.loaded.maps.pins.as_ref()?.inherited()?;
        Some((inheritance, self.interfaces.gone()))
    }

    /// Leaves to the next agent what interfaces' points counted in entries that are gone.
    pub fn note_gone(&mut self, gone: impl Iterator<Item = (u32, [i64; 2])>) {
        if self.is_kept() {
            gone.for_each(|(index, gone)| self.interfaces.note_gone(index, gone, &self.loaded.maps));
        }
    }

    /// Leaves to the next agent as what flows are being told of: see [`Identified`].
    pub fn identify(&self, flows: impl Iterator<Item = Identified>) {
        if let Some(pins) = &self.loaded.maps.pins {
            for Identified { family, key, generation, reversed, began, flow_id } in flows {
                let identity = Identity { flow_id, generation, reversed: reversed.into(), began };
                pins.identify(pinned_key(family, key), identity);
            }
        }
    }

    /// As what the agent before has told of a flow.
    pub fn identity(&self, family: u32, key: Key6) -> Option<Identified> {
        let Identity { flow_id, generation, reversed, began } =
            self.loaded.maps.pins.as_ref()?.identity(pinned_key(family, key))?;
        Some(Identified { family, key, generation, reversed: reversed != 0, began, flow_id })
    }

    /// Says that the agent is there, and follows link events: attaches what came, forgets what went, moves back to the head of a changed
    /// chain. Never blocks; to be called every 100 ms. True if the list of [`Kernel::interfaces`] changed.
    pub fn refresh(&mut self) -> io::Result<bool> {
        self.loaded.renew();
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

    /// Deletes entries that have been quiet for 2 s and hold no more than [`Flow::counters`] that were seen of each; the others stay and are
    /// given back.
    pub fn delete(
        &mut self,
        (keys4, seen4): (&[Key4], &[[u64; 4]]),
        (keys6, seen6): (&[Key6], &[[u64; 4]]),
        deleted: &mut Deleted,
    ) -> Result<(), MapError> {
        deleted.kept.clear();
        (deleted.removed, deleted.late_packets) = (0, 0);
        let maps = &self.loaded.maps;
        let quiet = (self.clock().jiffies, self.loaded.silence);
        flows::delete(&maps.flows4, (keys4, seen4), quiet, deleted, Slice::push4)
            .map_err(map_error("deletion", "flows4"))?;
        flows::delete(&maps.flows6, (keys6, seen6), quiet, deleted, Slice::push6)
            .map_err(map_error("deletion", "flows6"))?;
        if let Some(pins) = &maps.pins {
            let Slice { keys4: kept4, keys6: kept6, .. } = &deleted.kept;
            let gone4 = without(keys4, kept4).map(|key| pinned_key(4, (*key).into()));
            gone4.chain(without(keys6, kept6).map(|key| pinned_key(6, *key))).for_each(|key| pins.forget(key));
        }
        Ok(())
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

/// A flow that is told of for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identified {
    /// 4 or 6.
    pub family: u32,
    /// The key, of an IPv4 flow as [`Key6::from`] puts it.
    pub key: Key6,
    /// Of the map's entry.
    pub generation: u32,
    /// Whether its originator is the key's end 1.
    pub reversed: bool,
    /// The entry's packets and bytes from end 0, then from end 1, when it began.
    pub began: [u64; 4],
    /// Its number; 0 for the entry that another one's counters stand for.
    pub flow_id: u64,
}

/// One map holds both families.
fn pinned_key(family: u32, mut key: Key6) -> Key6 {
    key.scope[2] = if family == 4 { 4 } else { 0 };
    key
}

/// The keys that are not among the kept ones, which are in the same order.
fn without<'a, K: PartialEq>(keys: &'a [K], kept: &'a [K]) -> impl Iterator<Item = &'a K> {
    let mut kept = kept.iter().peekable();
    keys.iter().filter(move |key| kept.next_if_eq(key).is_none())
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if !self.is_kept() {
            self.interfaces.leave();
        }
    }
}
