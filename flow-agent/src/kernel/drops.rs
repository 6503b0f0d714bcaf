//! Drops as the agent sees them: loads and attaches the drop programs in the first form that the kernel takes, reads what they
//! counted.
//!
//! Gives drops by reason, interface and place since the beginning, and per flow what was dropped since the last look, for the
//! reasons that say why a connection failed. Joins nothing with flows: the tc programs count packets, this only says what became
//! of them. Every call is synchronous and short but [`Drops::name_places`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use flow_common::abi::drop::{DropCounters, DropEvent, DropKey, Dropped, Site};
use flow_common::abi::{Count, Key4, Key6};

use super::load::map_error;
use super::syscall::{self, Plain};
use super::{MapError, MapFill, flows};

mod attach;
mod interfaces;
mod places;
mod reasons;

pub use attach::{Report, Rung};
pub use reasons::Class;

use places::Symbols;
use reasons::Reasons;

/// How often flows that are known to have drops are read again.
const SWEEP_NS: u64 = 1_000_000_000;
/// A flow without a drop for so long is forgotten here and in the kernel; what comes later begins a new entry.
const QUIET_NS: u64 = 10_000_000_000;
/// The same while the map is nearly full.
const QUIET_FULL_NS: u64 = 2_000_000_000;
/// Entries a system call.
const BATCH: u32 = 4_096;
/// Places of drops that are counted one by one.
const SITES: u32 = 4_096;

// SAFETY: integers only; their sizes are asserted to be the sum of the fields'.
unsafe impl Plain for Site {}
// SAFETY: as above.
unsafe impl Plain for DropKey {}
// SAFETY: as above.
unsafe impl Plain for Dropped {}
// SAFETY: as above.
unsafe impl Plain for DropCounters {}

/// What [`Drops::open`] needs to know.
#[derive(Clone, Copy, Debug)]
pub struct DropsConfig {
    /// Flows with drops that are kept apart at one time.
    pub max_flows: u32,
    /// Bytes of the ring; rounded up to a power of two.
    pub ring_bytes: u32,
}

/// What of a flow was dropped since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowDrops {
    /// The flow, as the tc programs key it.
    pub key: FlowKey,
    /// Packets and layer-3 bytes from the key's end 0 to end 1 and back that a rule dropped.
    pub by_rule: [Count; 2],
    /// The same of packets that failed to arrive for another reason.
    pub by_failure: [Count; 2],
    /// Nanoseconds of the monotonic clock at the last drop.
    pub last_ns: u64,
    /// Where the last drop was.
    pub site: Site,
}

/// A flow's key, of either map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKey {
    /// In the IPv4 map.
    V4(Key4),
    /// In the IPv6 map.
    V6(Key6),
}

impl From<DropKey> for FlowKey {
    fn from(key: DropKey) -> Self {
        if key.family == 4 { Self::V4(key.key.to_key4()) } else { Self::V6(key.key) }
    }
}

/// Drops of one kind at one place since the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteReport {
    /// The reason's name, or its number where the kernel does not tell the name.
    pub reason: String,
    /// What the reason means for a flow.
    pub class: Class,
    /// The interface's name; "gone" of one that is no more, empty of packets that were on none.
    pub interface: String,
    /// The function that dropped them, or why its name cannot be read.
    pub location: String,
    /// How many.
    pub count: Count,
}

/// The drop programs, attached or not. Dropping it detaches them.
pub struct Drops {
    report: Report,
    reasons: Reasons,
    symbols: Symbols,
    attached: Option<Attached>,
    /// What was read of each flow that has an entry in the kernel.
    known: HashMap<DropKey, Dropped>,
    /// Sites of interfaces that have gone: reason and place.
    gone: HashMap<(u32, u64), Count>,
    max_flows: u32,
    swept_ns: u64,
}

/// What there is only while the programs run.
struct Attached {
    programs: Ebpf,
    sites: OwnedFd,
    dropped: OwnedFd,
    counters: OwnedFd,
    ring: RingBuf<MapData>,
    cpus: usize,
}

impl Drops {
    /// Loads and attaches the programs in the best form there is. Without one there are no drops, and the report says why.
    pub fn open(config: &DropsConfig) -> Self {
        let mut drops = Self { max_flows: config.max_flows, ..Self::none() };
        match attach::open(config, SITES, &mut drops.report) {
            Ok((attached, reasons)) => (drops.attached, drops.reasons) = (Some(attached), reasons),
            Err(error) => drops.report.failure = Some(error.to_string()),
        }
        drops
    }

    /// None, because none are wanted.
    pub fn none() -> Self {
        Self {
            report: Report::default(),
            reasons: Reasons::default(),
            symbols: Symbols::new(Path::new(places::SYMBOLS)),
            attached: None,
            known: HashMap::new(),
            gone: HashMap::new(),
            max_flows: 0,
            swept_ns: 0,
        }
    }

    /// In which form the programs run, and why in no better one.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Appends what of each flow was dropped since the last call. Drops of a flow that is known already are found within a
    /// second. `now_ns` is of the monotonic clock.
    pub fn poll(&mut self, now_ns: u64, flows: &mut Vec<FlowDrops>) -> Result<(), MapError> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        for event in attached.events() {
            self.note(event.key, event.dropped, flows);
        }
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.sweep(now_ns, flows)?;
        }
        Ok(())
    }

    /// The counters of all CPUs together.
    pub fn counters(&self) -> Result<DropCounters, MapError> {
        let Some(attached) = &self.attached else { return Ok(DropCounters::default()) };
        let mut values = vec![DropCounters::default(); attached.cpus];
        syscall::lookup_per_cpu(attached.counters.as_fd(), 0, &mut values)
            .map_err(map_error("look-up", "drop_counters"))?;
        Ok(values.into_iter().fold(DropCounters::default(), sum))
    }

    /// Runs that the kernel left out, because a drop on the same CPU came in the middle of another's: kernels from 6.1 on.
    pub fn missed(&self) -> u64 {
        let Some((attached, rung)) = self.attached.as_ref().zip(self.report.rung) else { return 0 };
        attached.programs.program(rung.program()).map_or(0, attach::missed)
    }

    /// Looks up the functions that dropped packets so far: reading the kernel's symbols may take a tenth of a second.
    pub fn name_places(&mut self) -> Result<(), MapError> {
        let counts = self.counts()?;
        self.symbols.resolve(counts.iter().map(|(site, _)| site.location));
        Ok(())
    }

    /// Drops by reason, interface and place since the beginning. Places have names after [`Drops::name_places`].
    pub fn sites(&mut self) -> Result<Vec<SiteReport>, MapError> {
        let counts = self.counts()?;
        let mut names = interfaces::Names::default();
        let report = |(site, count): &(Site, Count)| SiteReport {
            reason: self.reasons.name(site.reason),
            class: self.reasons.class(site.reason),
            interface: names.of(site.ifindex),
            location: self.symbols.name(site.location),
            count: *count,
        };
        let mut reports: Vec<SiteReport> = counts.iter().map(report).collect();
        reports.extend(self.gone.iter().map(|((reason, location), count)| SiteReport {
            reason: self.reasons.name(*reason),
            class: self.reasons.class(*reason),
            interface: interfaces::GONE.to_owned(),
            location: self.symbols.name(*location),
            count: *count,
        }));
        Ok(merged(reports))
    }

    /// What a site is called: reason, interface and place.
    pub fn name(&self, site: &Site) -> [String; 3] {
        let interface = interfaces::Names::default().of(site.ifindex);
        [self.reasons.name(site.reason), interface, self.symbols.name(site.location)]
    }

    /// Fill of the map of flows.
    pub fn fill(&self) -> MapFill {
        MapFill { name: "dropped", used: self.known.len() as u64, capacity: u64::from(self.max_flows) }
    }

    /// Every site that has a place of its own. Those of interfaces that have gone make room once it is short.
    fn counts(&mut self) -> Result<Vec<(Site, Count)>, MapError> {
        let Some(attached) = &self.attached else { return Ok(Vec::new()) };
        let mut counts: Vec<(Site, Count)> = read_all(&attached.sites).map_err(map_error("sweep", "sites"))?;
        if counts.len() * 4 >= SITES as usize * 3 {
            let mut names = interfaces::Names::default();
            let (there, gone): (Vec<_>, Vec<_>) = counts
                .into_iter()
                .partition(|(site, _)| site.ifindex == 0 || names.of(site.ifindex) != interfaces::GONE);
            for (site, _) in gone {
                let last = flows::take::<Site, Count>(attached.sites.as_fd(), &site);
                let last = last.map_err(map_error("deletion", "sites"))?.unwrap_or_default();
                let sum = self.gone.entry((site.reason, site.location)).or_default();
                sum.packets += last.packets;
                sum.bytes += last.bytes;
            }
            counts = there;
        }
        Ok(counts)
    }

    /// Reads every entry, and deletes those of flows that have been quiet.
    fn sweep(&mut self, now_ns: u64, flows: &mut Vec<FlowDrops>) -> Result<(), MapError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        let entries: Vec<(DropKey, Dropped)> = read_all(&attached.dropped).map_err(map_error("sweep", "dropped"))?;
        let is_full = entries.len() * 5 >= self.max_flows as usize * 4;
        let quiet_ns = if is_full { QUIET_FULL_NS } else { QUIET_NS };
        for (key, dropped) in entries {
            self.note(key, dropped, flows);
            if now_ns.saturating_sub(dropped.last_ns) >= quiet_ns {
                self.forget(&key, flows)?;
            }
        }
        Ok(())
    }

    /// Deletes a flow's entry; drops that came since it was read are told of.
    fn forget(&mut self, key: &DropKey, flows: &mut Vec<FlowDrops>) -> Result<(), MapError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        let last = flows::take::<DropKey, Dropped>(attached.dropped.as_fd(), key);
        if let Some(last) = last.map_err(map_error("deletion", "dropped"))? {
            self.note(*key, last, flows);
        }
        self.known.remove(key);
        Ok(())
    }

    /// Tells of what is new in a flow's entry.
    fn note(&mut self, key: DropKey, dropped: Dropped, flows: &mut Vec<FlowDrops>) {
        let known = self.known.entry(key).or_default();
        let new = FlowDrops {
            key: key.into(),
            by_rule: difference(dropped.by_rule, known.by_rule),
            by_failure: difference(dropped.by_failure, known.by_failure),
            last_ns: dropped.last_ns,
            site: dropped.site,
        };
        // An event that is read after the sweep is older than what is known.
        let news = new.by_rule.iter().chain(&new.by_failure).any(|count| count.packets > 0);
        if news {
            *known = dropped;
            flows.push(new);
        }
    }
}

impl Attached {
    fn events(&mut self) -> Vec<DropEvent> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            if item.len() == size_of::<DropEvent>() {
                // SAFETY: the length is an event's, and any bytes are one: integers only, no padding.
                events.push(unsafe { item.as_ptr().cast::<DropEvent>().read_unaligned() });
            }
        }
        events
    }
}

/// What `now` has beyond `then`, nothing where it is behind.
fn difference(now: [Count; 2], then: [Count; 2]) -> [Count; 2] {
    std::array::from_fn(|at| Count {
        packets: now[at].packets.saturating_sub(then[at].packets),
        bytes: now[at].bytes.saturating_sub(then[at].bytes),
    })
}

fn sum(a: DropCounters, b: DropCounters) -> DropCounters {
    DropCounters {
        seen: a.seen + b.seen,
        sites_full: a.sites_full + b.sites_full,
        elsewhere: a.elsewhere + b.elsewhere,
        wanted: a.wanted + b.wanted,
        flows_full: a.flows_full + b.flows_full,
        fragments: a.fragments + b.fragments,
        unreadable: a.unreadable + b.unreadable,
        events_lost: a.events_lost + b.events_lost,
    }
}

/// Every entry of a hash that is small enough to be read at once.
fn read_all<K: Plain, V: Plain>(map: &OwnedFd) -> io::Result<Vec<(K, V)>> {
    let (mut keys, mut values, mut cursor, mut batch) = (Vec::new(), Vec::new(), None, BATCH);
    loop {
        let mut next = cursor;
        match syscall::lookup_batch(map.as_fd(), &mut next, batch, &mut keys, &mut values) {
            Ok(true) => cursor = next,
            Ok(false) => return Ok(keys.into_iter().zip(values).collect()),
            // A bucket holds more.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < BATCH << 8 => batch *= 2,
            Err(error) => return Err(error),
        }
    }
}

/// One report for each reason, interface and function, those with the most packets first: a function may drop at several places.
fn merged(mut reports: Vec<SiteReport>) -> Vec<SiteReport> {
    let key = |report: &SiteReport| (report.reason.clone(), report.interface.clone(), report.location.clone());
    reports.sort_by_cached_key(key);
    reports.dedup_by(|next, kept| {
        let same = (&next.reason, &next.interface, &next.location) == (&kept.reason, &kept.interface, &kept.location);
        if same {
            kept.count.packets += next.count.packets;
            kept.count.bytes += next.count.bytes;
        }
        same
    });
    reports.sort_by_key(|report| std::cmp::Reverse(report.count.packets));
    reports
}
