//! Connection tracking from wherever this kernel lets it be had: programs on its functions where they stand, netlink for what they do
//! not tell, and for dumps and single connections always. As dumps know connections by the kernel's numbers, the programs are listened to
//! once they know these too. The module is followed where it is unloaded and loaded again.
//!
//! Takes a tick; feeds the table events in an order in which no connection ends before it began. Knows of no packet.

use std::path::Path;
use std::time::{Duration, Instant};

use flow_common::time::Timestamp;

use super::feed::Feed;
use crate::conntrack::{self, Conntrack, Event, Groups, HookStatistics, Hooks, Zones, switches};
use crate::doctor::Feature;
use crate::kernel::{ConntrackModule, HooksConfig, Rungs, Slice, Standing};
use crate::table::Table;

/// From a dump that failed to the next attempt. Where the kernel lacks the part that answers, each makes it look for a module.
const RETRY: Duration = Duration::from_secs(1);

/// Where the two kinds of event come from.
const NETLINK: &str = "netlink";
/// They come from nowhere.
const NONE: &str = "none";
/// Why what hooks tell is not taken.
const UNNUMBERED: &str = "waits for the kernel to number its first connection, and for CAP_SYSLOG to know how";

/// Connection tracking, or why there is none.
pub struct Tracking {
    zones: Zones,
    module: ConntrackModule,
    /// None where no program is to be loaded.
    hooks: Option<Hooks>,
    /// What the hooks tell is taken from them.
    by_hooks: bool,
    netlink: Option<Conntrack>,
    refused: Option<String>,
    switches: Option<switches::Switches>,
    events: Vec<Event>,
    later: Vec<Event>,
    /// Events were lost; only a new dump tells what they said.
    lost: bool,
    /// When a dump failed; the next one waits for [`RETRY`].
    failed: Option<Instant>,
}

impl Tracking {
    /// Attaches what the kernel takes, if programs are wanted, listens to the rest, and turns the kernel's switches on where that is
    /// permitted.
    pub fn open(config: Option<HooksConfig>, zones: Zones) -> Self {
        let mut tracking = Self {
            zones,
            module: ConntrackModule::here(),
            hooks: config.map(Hooks::open),
            by_hooks: false,
            netlink: None,
            refused: None,
            switches: None,
            events: Vec::new(),
            later: Vec::new(),
            lost: true,
            failed: None,
        };
        tracking.listen();
        tracking.switch_on();
        tracking
    }

    /// A module that was loaded again has its switches off.
    fn switch_on(&mut self) {
        if self.netlink.is_none() {
            return;
        }
        let switches = switches::turn_on(Path::new(switches::FOLDER));
        for switch in [&switches.accounting, &switches.timestamps] {
            if let switches::Switch::Off(sentence) = switch {
                tracing::warn!("{sentence}");
            }
        }
        self.switches = Some(switches);
    }

    /// The zones that are read.
    pub(super) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// Whether connections' beginnings are noted.
    pub fn has_timestamps(&self) -> bool {
        self.switches.as_ref().is_some_and(|switches| switches.timestamps.is_on())
    }

    /// Whether connections' packets are counted; none without connection tracking.
    pub fn accounting(&self) -> Option<bool> {
        self.switches.as_ref().map(|switches| switches.accounting.is_on())
    }

    /// Whether connections' times are noted; none without connection tracking.
    pub fn timestamps(&self) -> Option<bool> {
        self.switches.as_ref().map(|switches| switches.timestamps.is_on())
    }

    /// Why there is none over netlink.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What was read and lost over netlink.
    pub fn statistics(&self) -> conntrack::Statistics {
        self.netlink.as_ref().map(Conntrack::statistics).unwrap_or_default()
    }

    /// What the programs told and lost.
    pub fn hook_statistics(&mut self) -> HookStatistics {
        self.hooks.as_mut().map(Hooks::statistics).unwrap_or_default()
    }

    /// Where beginnings and ends come from.
    pub fn features(&self) -> [Feature; 2] {
        let rungs = self.rungs();
        [("conntrack-new", &rungs.new), ("conntrack-end", &rungs.end)].map(|(name, standing)| {
            let mut refused = standing.refused.clone();
            let rung = match standing.on {
                Some((rung, function)) if self.by_hooks => format!("{} {function}", rung.name()),
                Some((rung, _)) => {
                    refused.insert(0, format!("{}: {UNNUMBERED}", rung.name()));
                    NETLINK.to_owned()
                }
                None if self.netlink.is_some() => NETLINK.to_owned(),
                None => NONE.to_owned(),
            };
            Feature { name: name.to_owned(), rung, refused }
        })
    }

    /// Reads the events that have come, or everything where events were lost.
    pub fn read(&mut self, table: &mut Table, now: Timestamp, faults: &mut Vec<String>) {
        self.hear(&mut Feed { table, flows: None, now }, faults);
    }

    /// The same for table and flows.
    pub(super) fn hear(&mut self, feed: &mut Feed<'_>, faults: &mut Vec<String>) {
        let now = Instant::now();
        let has_module_changed = self.module.has_changed(now);
        let have_hooks_changed = self.hooks.as_mut().is_some_and(|hooks| hooks.refresh(now));
        self.catch_up(feed, faults);
        let is_numbered = self.hooks.as_ref().is_some_and(Hooks::is_numbered);
        let by_hooks = self.hooks.is_some() && (self.netlink.is_none() || is_numbered);
        if has_module_changed {
            self.switch_on();
        }
        if has_module_changed || have_hooks_changed || by_hooks != self.by_hooks {
            self.by_hooks = by_hooks;
            if self.module.is_there() {
                // Of a module that is not, this too would make the kernel load it.
                self.listen();
            }
            // What came while the one was left and the other not yet listened to.
            self.lost = true;
        }
        if self.lost && self.failed.is_none_or(|failed| now.saturating_duration_since(failed) >= RETRY) {
            self.dump(feed, &mut Slice::default(), faults);
        }
    }

    /// Reads everything.
    pub(super) fn dump(&mut self, feed: &mut Feed<'_>, slice: &mut Slice, faults: &mut Vec<String>) {
        let Some(netlink) = self.netlink.as_mut() else { return };
        if !self.module.is_there() {
            // The question would make the kernel load what somebody has just unloaded.
            self.lost = true;
            return;
        }
        feed.begin_dump();
        match netlink.dump(&self.zones, |entry| feed.dumped(entry)) {
            Ok(()) => (self.lost, self.failed) = (false, None),
            Err(error) => {
                (self.lost, self.failed) = (true, Some(Instant::now()));
                faults.push(error.to_string());
            }
        }
        feed.count(slice);
        let whole = !self.lost;
        // What the dump had no more has ended before, and that was told of: with its time and last counters.
        self.catch_up(feed, faults);
        feed.end_dump(whole);
    }

    fn catch_up(&mut self, feed: &mut Feed<'_>, faults: &mut Vec<String>) {
        self.poll(faults);
        for events in [&mut self.events, &mut self.later] {
            events.retain(|event| self.zones.has(event.entry.zone));
        }
        feed.events(&self.events);
        feed.events(&self.later);
    }

    fn rungs(&self) -> Rungs {
        self.hooks.as_ref().map(|hooks| hooks.rungs().clone()).unwrap_or_default()
    }

    /// Single connections as they are now.
    pub(super) fn read_some(
        &mut self,
        scopes: &[conntrack::Scope],
        entries: &mut Vec<Option<conntrack::Entry>>,
        faults: &mut Vec<String>,
    ) {
        let before = entries.len();
        if let Some(netlink) = &mut self.netlink
            && let Err(error) = netlink.read(scopes, entries)
        {
            faults.push(error.to_string());
        }
        entries.resize(before + scopes.len(), None);
    }

    /// Whoever tells of the ends is asked first and fed last: each end then finds its beginning.
    fn poll(&mut self, faults: &mut Vec<String>) {
        self.events.clear();
        self.later.clear();
        let Self { hooks, netlink, events, later, lost, by_hooks, .. } = self;
        let mut from_netlink = |events: &mut Vec<Event>| match netlink.as_mut().map(|netlink| netlink.poll(events)) {
            Some(Ok(overrun)) => overrun,
            Some(Err(error)) => {
                faults.push(error.to_string());
                false
            }
            None => false,
        };
        let Some(hooks) = hooks else {
            *lost |= from_netlink(events);
            return;
        };
        if !*by_hooks {
            // To learn the numbers by; netlink tells all of it.
            hooks.poll(later);
            later.clear();
            *lost |= from_netlink(events);
            return;
        }
        let (first, second) = if hooks.rungs().end.on.is_some() {
            (hooks.poll(later), from_netlink(events))
        } else {
            (from_netlink(later), hooks.poll(events))
        };
        *lost |= first || second;
    }

    /// Listens to what is not taken from the hooks.
    fn listen(&mut self) {
        let rungs = self.rungs();
        let is_told = |standing: &Standing| self.by_hooks && standing.on.is_some();
        let groups = Groups { new: !is_told(&rungs.new), update: false, end: !is_told(&rungs.end) };
        match Conntrack::open(groups) {
            Ok(netlink) => (self.netlink, self.refused) = (Some(netlink), None),
            Err(error) => {
                tracing::warn!("translated connections are not joined: {error}");
                self.refused = Some(error.to_string());
            }
        }
        let [new, end] = self.features();
        for Feature { name, rung, refused } in [new, end] {
            let better = if refused.is_empty() { String::new() } else { format!(" ({})", refused.join("; ")) };
            tracing::info!("{name} by {rung}{better}");
        }
    }
}
