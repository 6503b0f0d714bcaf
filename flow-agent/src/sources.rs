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

mod pace;
mod tracking;

pub use tracking::Tracking;

use crate::config::Config;
use crate::conntrack;
use crate::enrich::Enricher;
use crate::kernel::drops::{Drops, DropsConfig, FlowDrops};
use crate::kernel::{Deleted, Events, Kernel, KernelConfig, LoadError, Slice, SweepProgress};
use crate::table::{Key, Table};
use pace::Pace;

/// Looks at the folder of objects that wait to be taken in.
const LOOKS: usize = 4;

/// Flows with drops that are kept apart at one time, and bytes of the ring that tells of new ones.
const DROPPED_FLOWS: u32 = 16_384;
const DROP_RING_BYTES: u32 = 1 << 18;

/// Everything that is read, and the buffers it is read into.
pub struct Sources {
    kernel: Kernel,
    drops: Drops,
    tracking: Tracking,
    objects: Objects,
    pace: Pace,
    events: Events,
    dropped: Vec<FlowDrops>,
    slice: Slice,
    deleted: Deleted,
    faults: Vec<String>,
}

/// The folder of objects and what was refused of it.
#[derive(Debug)]
pub struct Objects {
    path: Option<PathBuf>,
    looks: Option<mpsc::Receiver<Look>>,
    refused: Vec<String>,
}

impl Sources {
    /// Loads the kernel programs.
    pub fn open(config: &Config, tracking: Tracking, objects: Objects) -> Result<Self, LoadError> {
        let kernel = Kernel::load(&KernelConfig {
            max_flows: config.max_flows,
            max_interfaces: config.max_interfaces,
            ring_bytes: config.ring_bytes,
            pods: config.pods.clone(),
            uplinks: config.uplinks.clone(),
            attachment: None,
        })?;
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
        Ok(Self {
            kernel,
            drops,
            tracking,
            objects,
            pace: Pace::new(config.active_timeout),
            events: Events::default(),
            dropped: Vec::new(),
            slice: Slice::default(),
            deleted: Deleted::default(),
            faults: Vec::new(),
        })
    }

    /// One tick: rings first, then connection tracking (so that each new flow's connection is there), then a part of the sweep.
    pub fn tick(&mut self, table: &mut Table, enricher: &mut Enricher, now: Timestamp) {
        if let Err(error) = self.kernel.refresh() {
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

    /// Reads single values of the maps, and single connections as connection tracking has them.
    #[expect(clippy::type_complexity, reason = "two functions, as the table takes them")]
    pub fn single(
        &mut self,
    ) -> (impl FnMut(&Key) -> Option<abi::Flow>, impl FnMut(&[conntrack::Scope], &mut Vec<Option<conntrack::Entry>>))
    {
        let (kernel, tracking, faults) = (&self.kernel, &mut self.tracking, &mut self.faults);
        (
            move |key: &Key| lookup(kernel, key),
            move |scopes: &[conntrack::Scope], entries: &mut Vec<_>| tracking.read_some(scopes, entries, faults),
        )
    }

    /// The kernel side, for facts.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
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

    /// What failed since the last time this was asked, each fault once. To be asked every second.
    pub fn take_faults(&mut self) -> Vec<String> {
        self.faults.sort_unstable();
        self.faults.dedup();
        std::mem::take(&mut self.faults)
    }

    /// Takes in what the rings hold, after what connection tracking has told up to then.
    fn catch_up(&mut self, table: &mut Table, now: Timestamp) {
        self.kernel.poll_events(&mut self.events);
        self.tracking.read(table, now, &mut self.faults);
        let clock = self.kernel.clock();
        table.feed_events(&self.events.started, &clock, now);
        table.feed_events(&self.events.ended, &clock, now);
        self.dropped.clear();
        // After the events: what answers a packet is sent before the packet is dropped.
        if let Err(error) = self.drops.poll(clock.monotonic_ns(), &mut self.dropped) {
            self.faults.push(error.to_string());
        }
        table.feed_drops(&self.dropped, &clock, now);
    }

    /// Reads up to `count` entries. False if that failed.
    fn sweep(&mut self, count: usize, table: &mut Table, now: Timestamp) -> bool {
        match self.kernel.sweep(count, &mut self.slice) {
            Ok(progress) => {
                // The values were read before the rings: each take-over that they show is told of by now, and each translation of a
                // flow that has ended already.
                self.catch_up(table, now);
                table.feed_slice(&self.slice, &self.kernel.clock(), now);
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
        let clock = self.kernel.clock();
        let (kernel, tracking, faults) = (&self.kernel, &mut self.tracking, &mut self.faults);
        table.adopt(
            |key| lookup(kernel, key),
            |scopes, entries| tracking.read_some(scopes, entries, faults),
            &clock,
            now,
        );
        let deletions = table.deletions();
        if deletions.keys4.is_empty() && deletions.keys6.is_empty() {
            return;
        }
        match self.kernel.delete(&deletions.keys4, &deletions.keys6, &mut self.deleted) {
            Ok(()) => table.deleted(&self.deleted, &clock, now),
            Err(error) => self.faults.push(error.to_string()),
        }
    }
}

fn lookup(kernel: &Kernel, key: &Key) -> Option<abi::Flow> {
    match key {
        Key::V4(key) => kernel.lookup4(key).ok().flatten(),
        Key::V6(key) => kernel.lookup6(key).ok().flatten(),
    }
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
