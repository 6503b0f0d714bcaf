//! What the agent reads: the kernel's rings and maps, connection tracking, and the folder of Kubernetes objects.
//!
//! Takes a tick every 100 ms with its time; feeds table and enricher in the order that they need, so that a flow's tracked connection
//! is known before its first event, and each take-over that a value from a map shows. Every call is short: a sweep goes in slices over its period. Exports nothing.

use std::path::{Path, PathBuf};

use flow_common::abi;
use flow_common::k8s::Change;
use flow_common::k8s::folder::{self, Folder, Look};
use flow_common::time::Timestamp;
use tokio::sync::mpsc;

mod feed;
mod pace;
mod packets;
mod tracked;
mod tracking;

pub use tracked::LeftOut;
pub use tracking::Tracking;

use crate::config::{Config, Pin, Source};
use crate::conntrack::{Entry, Scope, Zones};
use crate::doctor::{Feature, Fill};
use crate::enrich::Enricher;
use crate::kernel::drops::{Drops, DropsConfig, FlowDrops};
use crate::kernel::{
    self, Deleted, Events, Inheritance, InterfaceReport, Kernel, KernelConfig, LoadError, Pins, RunStatistics, Slice,
    SweepProgress,
};
use crate::table::{Key, Table};
use feed::Feed;
use pace::Pace;
use packets::Packets;
use tracked::TrackedFlows;

/// Looks at the folder of objects that wait to be taken in.
const LOOKS: usize = 4;

/// Connections that are held for each live flow there may be: those that are over stay until connection tracking forgets them.
const ROOM: usize = 2;

/// Flows with drops that are kept apart at one time, and bytes of the ring that tells of new ones.
const DROPPED_FLOWS: u32 = 16_384;
const DROP_RING_BYTES: u32 = 1 << 18;

/// Why there is nothing to count packets with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The programs are refused, and they alone were to count.
    #[error("{0}")]
    Programs(Box<LoadError>),
    /// Connection tracking alone was to count, and cannot be read.
    #[error("`source: conntrack` stands on connection tracking alone, and {0}")]
    Tracking(String),
    /// Neither is to be had.
    #[error("{programs}; and instead of the programs, {tracking}")]
    Neither {
        /// Why not the programs.
        programs: Box<LoadError>,
        /// Why not connection tracking.
        tracking: String,
    },
}

/// Everything that is read, and the buffers it is read into.
pub struct Sources {
    packets: Packets,
    drops: Drops,
    tracking: Tracking,
    objects: Objects,
    pace: Pace,
    events: Events,
    dropped: Vec<FlowDrops>,
    slice: Slice,
    deleted: Deleted,
    faults: Vec<String>,
    not_kept: Option<String>,
}

/// Where programs and maps are kept from one agent to the next, with what is there.
#[derive(Debug, Default)]
pub struct Kept {
    pins: Option<Pins>,
    refused: Option<String>,
}

impl Kept {
    /// As configured, where there is a place for it.
    pub fn open(config: &Config) -> Self {
        if config.source == Source::Conntrack {
            return Self::default();
        }
        if config.pin == Pin::Never {
            return Self { pins: None, refused: Some("bpf.pin is `never`".to_owned()) };
        }
        match kernel::pins(&config.pin_path, &kernel_config(config)) {
            Ok(pins) => Self { pins: Some(pins), refused: None },
            Err(error) => {
                tracing::info!("packets that pass while no agent runs are not counted: {error}");
                Self { pins: None, refused: Some(error.to_string()) }
            }
        }
    }

    /// Whether there is a place for them.
    pub fn keeps(&self) -> bool {
        self.pins.is_some()
    }

    /// When the counting began that this agent goes on with; none if it begins itself.
    pub fn born(&self) -> Option<Timestamp> {
        let inheritance = self.pins.as_ref()?.inherited()?;
        Some(Timestamp::from_nanos(inheritance.born_ns))
    }
}

/// The folder of objects and what was refused of it.
#[derive(Debug)]
pub struct Objects {
    path: Option<PathBuf>,
    looks: Option<mpsc::Receiver<Look>>,
    refused: Vec<String>,
}

impl Sources {
    /// Loads the kernel programs, or stands on connection tracking. What began before `born` is older than the agent.
    pub fn open(
        config: &Config,
        kept: Kept,
        tracking: Tracking,
        objects: Objects,
        born: Timestamp,
    ) -> Result<Self, OpenError> {
        let Kept { pins, refused: not_kept } = kept;
        let packets = open_packets(config, pins, &tracking, born)?;
        let drops = if config.source == Source::Conntrack { Drops::none() } else { open_drops(config) };
        let period = match &packets {
            Packets::Programs(_) => config.active_timeout,
            Packets::Tracking(..) => config.poll_interval,
        };
        Ok(Self {
            packets,
            drops,
            tracking,
            objects,
            pace: Pace::new(period),
            events: Events::default(),
            dropped: Vec::new(),
            slice: Slice::default(),
            deleted: Deleted::default(),
            faults: Vec::new(),
            not_kept,
        })
    }

    /// Goes on with what an agent before has left in the kernel, if there is any: reads all of it.
    pub fn adopt(&mut self, table: &mut Table, now: Timestamp) {
        let Packets::Programs(kernel) = &self.packets else { return };
        let Some((Inheritance { alive_ns, .. }, gone)) = kernel.inherited() else { return };
        table.inherit(gone.iter().map(|(index, gone)| (*index, *gone)));
        self.catch_up(table, now);
        while self.sweep(Pace::SLICE, table, now) && !self.pace.is_complete() {}
        let Packets::Programs(kernel) = &self.packets else { return };
        table.inherited(|key| match key {
            Key::V4(key) => kernel.identity(4, (*key).into()),
            Key::V6(key) => kernel.identity(6, *key),
        });
        let flows = table.statistics().live;
        let away = now.nanos().saturating_sub(alive_ns) / 1_000_000;
        tracing::info!("{flows} flows go on that an agent before has left; it was last there {away} ms ago");
    }

    /// Leaves to the next agent as what flows are told of; before their records leave.
    pub fn identify(&mut self, table: &mut Table) {
        if let Packets::Programs(kernel) = &self.packets {
            kernel.identify(table.take_identified());
        }
    }

    /// Whether the counting goes on when the agent ends.
    pub fn goes_on(&self) -> bool {
        self.packets.goes_on()
    }

    /// One tick: rings first, then connection tracking (so that each new flow's connection is there), then a part of the sweep.
    pub fn tick(&mut self, table: &mut Table, enricher: &mut Enricher, now: Timestamp) {
        if let Packets::Programs(kernel) = &mut self.packets
            && let Err(error) = kernel.refresh()
        {
            self.faults.push(format!("following the network interfaces: {error}"));
        }
        self.objects.feed(enricher, now);
        self.catch_up(table, now);
        let known = table.statistics().entries.iter().sum();
        while let Some(count) = self.pace.next(now, known) {
            if !self.sweep(count, table, now) {
                break;
            }
        }
        self.settle(table, now);
    }

    /// The last look at everything, before the agent ends.
    pub fn finish(&mut self, table: &mut Table, now: Timestamp) {
        self.catch_up(table, now);
        // What is left of the round that is under way, then a whole one: entries that it had passed already may have grown.
        let mut rounds = self.pace.rounds_left();
        while rounds > 0 && self.sweep(Pace::SLICE, table, now) {
            rounds -= usize::from(self.pace.is_complete());
        }
        self.settle(table, now);
    }

    /// Reads single values of what counts the packets, and single connections as connection tracking has them.
    #[expect(clippy::type_complexity, reason = "two functions, as the table takes them")]
    pub fn single(&mut self) -> (impl FnMut(&Key) -> Option<abi::Flow>, impl FnMut(&[Scope], &mut Vec<Option<Entry>>)) {
        let (packets, tracking, faults) = (&self.packets, &mut self.tracking, &mut self.faults);
        (
            move |key: &Key| packets.lookup(key),
            move |scopes: &[Scope], entries: &mut Vec<_>| tracking.read_some(scopes, entries, faults),
        )
    }

    /// Whether connection tracking counts the packets.
    pub fn counts_by_tracking(&self) -> bool {
        matches!(self.packets, Packets::Tracking(..))
    }

    /// Where maps and programs stay when the agent ends.
    pub fn keeping(&self) -> Feature {
        let rung = if self.packets.goes_on() { "bpffs" } else { "none" };
        Feature { name: "pins".to_owned(), rung: rung.to_owned(), refused: self.not_kept.iter().cloned().collect() }
    }

    /// What the counting at the interfaces stands on, where these hooks are attached.
    pub fn counting(&self, hooks: &str) -> Feature {
        let (rung, refused) = match &self.packets {
            Packets::Programs(_) => (hooks, None),
            Packets::Tracking(_, refused) => ("none", refused.clone()),
        };
        Feature { name: "tc".to_owned(), rung: rung.to_owned(), refused: refused.into_iter().collect() }
    }

    /// Every interface that a pattern names; none where connection tracking counts.
    pub fn interfaces(&mut self) -> Vec<InterfaceReport> {
        self.packets.interfaces()
    }

    /// Fill of whatever holds what was counted.
    pub fn fill(&self) -> Vec<Fill> {
        self.packets.fill()
    }

    /// Run times of the programs at the interfaces.
    pub fn run_statistics(&self) -> Vec<RunStatistics> {
        self.packets.run_statistics()
    }

    /// Connections of connection tracking that are in no record; where it counts the packets.
    pub fn left_out(&self) -> LeftOut {
        match &self.packets {
            Packets::Programs(_) => LeftOut::default(),
            Packets::Tracking(flows, _) => flows.statistics(),
        }
    }

    /// The drop programs, for facts.
    pub fn drops(&mut self) -> &mut Drops {
        &mut self.drops
    }

    /// Connection tracking, for facts.
    pub fn tracking(&mut self) -> &mut Tracking {
        &mut self.tracking
    }

    /// The objects' folder, for facts.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The zones of connection tracking that are read.
    pub fn zones(&self) -> &Zones {
        self.tracking.zones()
    }

    /// What failed since the last time this was asked, each fault once. To be asked every second.
    pub fn take_faults(&mut self) -> Vec<String> {
        self.faults.sort_unstable();
        self.faults.dedup();
        std::mem::take(&mut self.faults)
    }

    /// Takes in what the rings hold, after what connection tracking has told up to then.
    fn catch_up(&mut self, table: &mut Table, now: Timestamp) {
        let Self { packets, tracking, faults, events, .. } = self;
        let clock = packets.clock();
        match packets {
            Packets::Programs(kernel) => {
                kernel.poll_events(events);
                tracking.read(table, now, faults);
                // After the rings: no event may be of a later time.
                let clock = kernel.clock();
                table.feed_events(&events.started, &clock, now);
                table.feed_events(&events.ended, &clock, now);
                // At once: the events are read, so the next agent has it from here or not at all.
                kernel.note_gone(table.take_gone());
            }
            Packets::Tracking(flows, _) => {
                tracking.hear(&mut Feed { table, flows: Some((flows, clock)), now }, faults);
            }
        }
        self.dropped.clear();
        // After the events: what answers a packet is sent before the packet is dropped.
        let clock = self.packets.clock();
        if let Err(error) = self.drops.poll(clock.monotonic_ns(), &mut self.dropped) {
            self.faults.push(error.to_string());
        }
        table.feed_drops(&self.dropped, &clock, now);
    }

    /// Reads up to `count` entries; of connection tracking, which cannot be read in parts, all. False if that failed.
    fn sweep(&mut self, count: usize, table: &mut Table, now: Timestamp) -> bool {
        let clock = self.packets.clock();
        let kernel = match &mut self.packets {
            Packets::Programs(kernel) => kernel,
            Packets::Tracking(flows, _) => {
                let mut feed = Feed { table, flows: Some((flows, clock)), now };
                self.tracking.dump(&mut feed, &mut self.slice, &mut self.faults);
                self.pace.read(self.slice.read, true);
                return true;
            }
        };
        match kernel.sweep(count, &mut self.slice) {
            Ok(progress) => {
                // The values were read before the rings: each take-over that they show is told of by now, and each translation of a
                // flow that has ended already.
                self.catch_up(table, now);
                table.feed_slice(&self.slice, &self.packets.clock(), now);
                self.pace.read(self.slice.read, progress == SweepProgress::RoundComplete);
                true
            }
            Err(error) => {
                self.faults.push(error.to_string());
                false
            }
        }
    }

    /// What the table wants to know of single entries, and what it has no more use for.
    fn settle(&mut self, table: &mut Table, now: Timestamp) {
        let clock = self.packets.clock();
        let (packets, tracking, faults) = (&self.packets, &mut self.tracking, &mut self.faults);
        let lookup = |key: &Key| packets.lookup(key);
        let read = |scopes: &[Scope], entries: &mut Vec<Option<Entry>>| match packets {
            Packets::Programs(_) => tracking.read_some(scopes, entries, faults),
            Packets::Tracking(flows, _) => entries.extend(scopes.iter().map(|scope| flows.read(scope))),
        };
        table.adopt(lookup, read, &clock, now);
        let deletions = table.deletions();
        if !deletions.keys4.is_empty() || !deletions.keys6.is_empty() {
            match self.packets.delete(deletions, &mut self.deleted) {
                Ok(()) => table.deleted(&self.deleted, &clock, now),
                Err(error) => self.faults.push(error.to_string()),
            }
        }
        if let Packets::Programs(kernel) = &mut self.packets {
            kernel.note_gone(table.take_gone());
        }
    }
}

/// Whoever is to count, or may instead.
fn open_packets(
    config: &Config,
    pins: Option<Pins>,
    tracking: &Tracking,
    born: Timestamp,
) -> Result<Packets, OpenError> {
    let refused = match config.source {
        Source::Conntrack => None,
        Source::Auto | Source::Ebpf => match Kernel::load(&kernel_config(config), pins) {
            Ok(kernel) => return Ok(Packets::Programs(Box::new(kernel))),
            Err(error) if config.source == Source::Ebpf => return Err(OpenError::Programs(Box::new(error))),
            Err(error) => Some(Box::new(error)),
        },
    };
    match (refused, tracking.refused().map(ToOwned::to_owned)) {
        (None, Some(tracking)) => Err(OpenError::Tracking(tracking)),
        (Some(programs), Some(tracking)) => Err(OpenError::Neither { programs, tracking }),
        (refused, None) => {
            match &refused {
                Some(why) => {
                    tracing::warn!("connection tracking counts the packets, as the programs are refused: {why}");
                }
                None => tracing::info!("connection tracking counts the packets, as configured"),
            }
            if tracking.accounting() == Some(false) {
                tracing::warn!(
                    "it does not count either (nf_conntrack_acct is off): flows have no bytes, and a packet a side"
                );
            }
            let room = config.max_flows as usize * ROOM;
            Ok(Packets::Tracking(TrackedFlows::new(room, born), refused.map(|why| why.to_string())))
        }
    }
}

fn kernel_config(config: &Config) -> KernelConfig {
    KernelConfig {
        max_flows: config.max_flows,
        max_interfaces: config.max_interfaces,
        ring_bytes: config.ring_bytes,
        pods: config.pods.clone(),
        uplinks: config.uplinks.clone(),
        attachment: None,
    }
}

fn open_drops(config: &Config) -> Drops {
    let drops = Drops::open(&DropsConfig {
        max_flows: DROPPED_FLOWS.min(config.max_flows),
        ring_bytes: DROP_RING_BYTES.min(config.ring_bytes),
    });
    let report = drops.report();
    match (report.rung, &report.failure) {
        (Some(rung), _) => tracing::info!("drops are told of by the kernel's {rung}"),
        (None, failure) => {
            tracing::warn!("drops are not told of: {}", failure.as_deref().unwrap_or_default());
        }
    }
    drops
}

impl Objects {
    /// The folder, if there is one, and what is in it; from now on its changes are followed by a task of their own.
    pub fn open(folder: Option<&Path>) -> (Self, Vec<Change>) {
        let mut objects = Self { path: folder.map(Path::to_owned), looks: None, refused: Vec::new() };
        let Some(path) = folder else { return (objects, Vec::new()) };
        let mut folder = Folder::new(path);
        let changes = objects.take(folder.look());
        let (output, looks) = mpsc::channel(LOOKS);
        tokio::spawn(folder::run(folder, output));
        objects.looks = Some(looks);
        (objects, changes)
    }

    /// The folder's path.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is refused of it.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    fn take(&mut self, look: Look) -> Vec<Change> {
        for error in &look.errors {
            tracing::warn!("{error}");
        }
        self.refused = look.refused.iter().map(ToString::to_string).collect();
        look.changes
    }

    fn feed(&mut self, enricher: &mut Enricher, now: Timestamp) {
        while let Some(look) = self.looks.as_mut().and_then(|looks| looks.try_recv().ok()) {
            for change in self.take(look) {
                enricher.change(change, now);
            }
        }
    }
}
