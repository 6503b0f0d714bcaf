//! The interfaces that are watched: attached as they come, forgotten as they go, with their counters.
//!
//! Takes link changes; drives [`Hooks`]. A gone interface's last counters stay listed for a minute, so that who reads them
//! now and then misses none.

use super::attach::Hooks;
use super::links::{Change, Events, Link, Links};
use super::load::Maps;
use super::pins::{Account, Pins};
use super::roles::{Decision, Roles};
use super::{Attachment, InterfaceReport, LinkCounters, Role, syscall};
use aya::Ebpf;
use flow_common::abi::{Count, HookCounters, InterfaceCounters, Reason, SLOTS};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// How often the order of the chains is checked, and a failed attach tried again.
const CHECK: Duration = Duration::from_secs(1);
/// Readings in a row of an interface that is never quiet.
const READINGS: usize = 16;
/// How long a gone interface stays listed.
const DEPARTED: Duration = Duration::from_secs(60);

/// All watched interfaces.
pub(super) struct Interfaces {
    links: Links,
    roles: Roles,
    wanted: Option<Attachment>,
    watched: BTreeMap<u32, Watched>,
    departed: Vec<(Instant, InterfaceReport)>,
    free_slots: Vec<u32>,
    /// What an agent before has left of interfaces that were not attached since, by index.
    left: BTreeMap<u32, (u32, Account)>,
    /// See [`Account::gone`], by index.
    gone: BTreeMap<u32, [i64; 2]>,
    checked: Instant,
    cpus: usize,
}

struct Watched {
    link: Link,
    role: Role,
    state: State,
}

enum State {
    Attached {
        hooks: Hooks,
        slot: u32,
        base: LinkCounters,
        /// The programs of an agent before counted up to ours.
        is_continued: bool,
    },
    Waiting(String),
}

impl Interfaces {
    /// Subscribes to changes; the first [`Interfaces::refresh`] attaches what is there.
    pub(super) fn open(
        roles: Roles,
        max_interfaces: u32,
        wanted: Option<Attachment>,
        pins: Option<&Pins>,
    ) -> io::Result<Self> {
        let accounts = pins.map(Pins::accounts).unwrap_or_default().iter();
        let left: BTreeMap<_, _> = accounts
            .filter_map(|(slot, account)| Some((u32::try_from(account.index).ok()?, (*slot, *account))))
            .collect();
        let is_free = |slot: &u32| left.values().all(|(taken, _)| taken != slot);
        Ok(Self {
            links: Links::open()?,
            roles,
            wanted,
            watched: BTreeMap::new(),
            departed: Vec::new(),
            free_slots: (1..=max_interfaces).rev().filter(is_free).collect(),
            gone: left.iter().map(|(index, (_, account))| (*index, account.gone)).collect(),
            left,
            checked: Instant::now(),
            cpus: aya::util::nr_cpus().map_err(|(_, error)| error)?,
        })
    }

    /// Takes every interface as new, but for what an agent before has left of it.
    pub(super) fn begin(&mut self, programs: &mut Ebpf, maps: &Maps) -> io::Result<()> {
        let links = self.links.dump()?;
        self.take(links, programs, maps);
        for (index, (slot, _)) in std::mem::take(&mut self.left) {
            self.release(index, slot, maps);
        }
        Ok(())
    }

    /// Whether an interface is attached.
    pub(super) fn has(&self, index: u32) -> bool {
        self.attached().any(|(attached, _)| attached == index)
    }

    /// Notes what an interface's points counted in entries that are gone.
    pub(super) fn note_gone(&mut self, index: u32, gone: [i64; 2], maps: &Maps) {
        if !self.watched.contains_key(&index) {
            return;
        }
        let sum = self.gone.entry(index).or_default();
        for (sum, more) in sum.iter_mut().zip(gone) {
            *sum += more;
        }
        self.remember(index, maps);
    }

    /// What the points of each interface counted in entries that were gone before this agent; see [`Account::gone`].
    pub(super) fn gone(&self) -> &BTreeMap<u32, [i64; 2]> {
        &self.gone
    }

    /// Leaves to the next agent what is known of an interface.
    fn remember(&self, index: u32, maps: &Maps) {
        if let (Some(pins), Some(Watched { state: State::Attached { slot, base, .. }, .. })) =
            (&maps.pins, self.watched.get(&index))
        {
            let gone = self.gone.get(&index).copied().unwrap_or_default();
            let unseen = [base.rx_packets, base.tx_packets];
            pins.remember(*slot, &Account { index: u64::from(index), unseen, gone });
        }
    }

    /// Follows the changes since the last call; true if there was any that matters.
    pub(super) fn refresh(&mut self, programs: &mut Ebpf, maps: &Maps) -> io::Result<bool> {
        let due = self.checked.elapsed() >= CHECK;
        let changes = match self.links.changes()? {
            Events::Changes(changes) => changes,
            Events::Lost => {
                self.forget_dead(maps);
                self.begin(programs, maps)?;
                return Ok(true);
            }
        };
        let mut changed = false;
        let mut look = due && self.watched.values().any(|watched| matches!(watched.state, State::Waiting(_)));
        for change in changes {
            match change {
                // A pair's other end that leaves the namespace is gone for us, and shows nothing else.
                Change::Gone(index) => {
                    changed |= self.forget(index, maps);
                    look = true;
                }
                Change::Present(link) => look |= self.is_news(&link),
            }
        }
        if look {
            let links = self.links.dump()?;
            changed |= self.take(links, programs, maps);
        }
        if due {
            self.checked = Instant::now();
            self.departed.retain(|(at, _)| at.elapsed() < DEPARTED);
            changed |= self.return_to_heads(programs, maps)?;
        }
        Ok(changed)
    }

    /// Whether a link differs from what is known in anything that decides.
    fn is_news(&self, link: &Link) -> bool {
        match (self.watched.get(&link.index), self.roles.decide(link)) {
            (None, Decision::Ignore) => false,
            (None, _) => true,
            (Some(known), _) => {
                matches!(known.state, State::Waiting(_))
                    || (&known.link.name, known.link.peer_elsewhere) != (&link.name, link.peer_elsewhere)
            }
        }
    }

    /// Compares all links with what is watched.
    fn take(&mut self, links: Vec<Link>, programs: &mut Ebpf, maps: &Maps) -> bool {
        let there: Vec<u32> = links.iter().map(|link| link.index).collect();
        let gone: Vec<u32> = self.watched.keys().filter(|index| !there.contains(index)).copied().collect();
        let mut changed = !gone.is_empty();
        for index in gone {
            self.forget(index, maps);
        }
        let before: Vec<u32> = self.attached().map(|(index, _)| index).collect();
        for link in links {
            changed |= self.settle(link, programs, maps);
        }
        let fresh: Vec<(u32, u32)> = self.attached().filter(|(index, _)| !before.contains(index)).collect();
        let begun: Vec<(u32, u32)> =
            { fresh.iter() }.filter(|(index, _)| !self.is_continued(*index)).copied().collect();
        self.count_from_attach(&begun, maps);
        fresh.iter().for_each(|(index, _)| self.remember(*index, maps));
        changed
    }

    fn is_continued(&self, index: u32) -> bool {
        let state = self.watched.get(&index).map(|watched| &watched.state);
        matches!(state, Some(State::Attached { is_continued: true, .. }))
    }

    /// Indexes and slots of the attached interfaces.
    fn attached(&self) -> impl Iterator<Item = (u32, u32)> {
        self.watched.iter().filter_map(|(index, watched)| match watched.state {
            State::Attached { slot, .. } => Some((*index, slot)),
            State::Waiting(_) => None,
        })
    }

    /// What an interface carried after it was looked at and before it was attached belongs to what it carried before.
    fn count_from_attach(&mut self, fresh: &[(u32, u32)], maps: &Maps) {
        for (index, slot) in fresh {
            // What cannot be read leaves the base as it was first seen.
            let Ok([received, sent]) = self.unseen(*index, *slot, maps) else { continue };
            if let Some(Watched { state: State::Attached { base, .. }, .. }) = self.watched.get_mut(index) {
                (base.rx_packets, base.tx_packets) = (received, sent);
            }
        }
    }

    /// Packets that a link received and sent and the programs did not see. Both cannot be read at one moment: they are read until nothing
    /// passed meanwhile, or up to [`READINGS`] times.
    fn unseen(&mut self, index: u32, slot: u32, maps: &Maps) -> io::Result<[u64; 2]> {
        let mut last = None;
        for _ in 0..READINGS {
            let link = self.links.one(index)?.ok_or(io::ErrorKind::NotFound)?.counters;
            let seen = self.counters(slot, maps).map(|hook| hook.seen.packets);
            if last.replace((link, seen)) == Some((link, seen)) {
                break;
            }
        }
        let (link, seen) = last.unwrap_or_default();
        Ok([link.rx_packets.saturating_sub(seen[0]), link.tx_packets.saturating_sub(seen[1])])
    }

    /// Does with one link what its decision says; true if that changed anything.
    fn settle(&mut self, link: Link, programs: &mut Ebpf, maps: &Maps) -> bool {
        let decision = self.roles.decide(&link);
        let known = self.watched.get_mut(&link.index);
        let role = match decision {
            Decision::Ignore => return known.is_some() && self.forget(link.index, maps),
            Decision::Wait(role) | Decision::Unknown(role) | Decision::Attach { role, .. } => role,
        };
        if let Some(known) = known
            && matches!(known.state, State::Attached { .. })
            && known.role == role
        {
            known.link = link;
            return false;
        }
        let was_waiting = known_reason(self.watched.get(&link.index));
        self.forget(link.index, maps);
        let state = match decision {
            Decision::Attach { ethernet, .. } => {
                self.attach(&link, role, ethernet, programs, maps).unwrap_or_else(State::Waiting)
            }
            Decision::Unknown(_) => State::Waiting(format!("its link layer (ARPHRD {}) is not understood", link.layer)),
            _ => State::Waiting("waits for its other end to move into another network namespace".to_owned()),
        };
        let reason = if let State::Waiting(reason) = &state { Some(reason.clone()) } else { None };
        self.watched.insert(link.index, Watched { link, role, state });
        reason.is_none() || reason != was_waiting
    }

    fn attach(
        &mut self,
        link: &Link,
        role: Role,
        ethernet: bool,
        programs: &mut Ebpf,
        maps: &Maps,
    ) -> Result<State, String> {
        let shared = |other: &&u32| **other % SLOTS == link.index % SLOTS;
        let other = self.watched.iter().filter(|(_, w)| matches!(w.state, State::Attached { .. })).map(|(i, _)| i);
        if let Some(other) = { other }.find(shared) {
            return Err(format!("its index {} shares its counters with interface {other}", link.index));
        }
        let left = self.left.remove(&link.index);
        let Some(slot) = left.map(|(slot, _)| slot).or_else(|| self.free_slots.pop()) else {
            return Err("more interfaces than maxInterfaces: raise it".to_owned());
        };
        let mut zero = vec![InterfaceCounters::default(); self.cpus];
        let prepared = match left {
            Some(_) => Ok(()),
            None => syscall::update_per_cpu(maps.counters.as_fd(), slot, &mut zero)
                .and_then(|()| syscall::update(maps.slots.as_fd(), &(link.index % SLOTS), slot)),
        };
        let attached = match prepared {
            Ok(()) => self.attach_or_take_over(link, (role, ethernet), programs, maps),
            Err(error) => Err(format!("its counters cannot be set: {error}")),
        };
        if attached.is_err() {
            self.release(link.index, slot, maps);
        }
        let (hooks, was_counting) = attached?;
        let base = left.map_or(link.counters, |(_, account)| {
            let [rx_packets, tx_packets] = account.unseen;
            LinkCounters { rx_packets, tx_packets, ..link.counters }
        });
        Ok(State::Attached { hooks, slot, base, is_continued: left.is_some() && was_counting })
    }

    /// The programs of one interface, and whether an agent before has left its own there up to now.
    fn attach_or_take_over(
        &self,
        link: &Link,
        kind: (Role, bool),
        programs: &mut Ebpf,
        maps: &Maps,
    ) -> Result<(Hooks, bool), String> {
        if self.wanted != Some(Attachment::Clsact)
            && let Some(pins) = &maps.pins
            && let Ok(Some(hooks)) = Hooks::take_over(programs, link, kind, pins)
        {
            return Ok((hooks, true));
        }
        let hooks = Hooks::attach(programs, link, kind, self.wanted, maps.pins.as_ref());
        Ok((hooks.map_err(|error| error.to_string())?, false))
    }

    /// Forgets those of which nobody told that they went: another interface with the same index would pass for them.
    fn forget_dead(&mut self, maps: &Maps) {
        let is_dead = |index: u32, watched: &Watched| match &watched.state {
            State::Attached { hooks, .. } => hooks.are_dead(index),
            State::Waiting(_) => false,
        };
        let dead = self.watched.iter().filter(|(index, watched)| is_dead(**index, watched)).map(|(index, _)| *index);
        for index in dead.collect::<Vec<u32>>() {
            self.forget(index, maps);
        }
    }

    /// Forgets an interface; true if it was watched.
    fn forget(&mut self, index: u32, maps: &Maps) -> bool {
        let Some(watched) = self.watched.remove(&index) else { return false };
        let mut report = self.report(index, &watched, maps);
        if let State::Attached { hooks, slot, .. } = watched.state {
            hooks.detach();
            if let Some(pins) = &maps.pins {
                pins.forget_links(index);
            }
            self.release(index, slot, maps);
            report.attachment = Err("it has gone".to_owned());
            self.departed.push((Instant::now(), report));
        }
        true
    }

    /// Leaves every interface.
    pub(super) fn leave(&mut self) {
        for watched in std::mem::take(&mut self.watched).into_values() {
            if let State::Attached { hooks, .. } = watched.state {
                hooks.detach();
            }
        }
    }

    /// Attaches anew where another program came before ours, or a filter was removed. What passes unseen while that is done is added to
    /// what an interface carried before its attach.
    fn return_to_heads(&mut self, programs: &mut Ebpf, maps: &Maps) -> io::Result<bool> {
        let attached = self.watched.iter().filter_map(|(index, watched)| match &watched.state {
            State::Attached { hooks, slot, .. } if hooks.is_overtaken(*index) => Some((*index, *slot)),
            _ => None,
        });
        let overtaken: Vec<(u32, u32)> = attached.collect();
        for &(index, slot) in &overtaken {
            let Ok(before) = self.unseen(index, slot, maps) else { continue };
            let Some(Watched { link, state, .. }) = self.watched.get_mut(&index) else { continue };
            let State::Attached { hooks, .. } = state else { continue };
            if hooks.attachment() == Attachment::Clsact {
                tracing::warn!("{}: somebody removed our filters; what passed since is not counted", link.name);
            }
            if let Err(error) = hooks.lead_again(programs, link, maps.pins.as_ref()) {
                *state = State::Waiting(error.to_string());
                self.release(index, slot, maps);
                continue;
            }
            let after = self.unseen(index, slot, maps).unwrap_or(before);
            if let Some(Watched { state: State::Attached { base, .. }, .. }) = self.watched.get_mut(&index) {
                base.rx_packets += after[0].saturating_sub(before[0]);
                base.tx_packets += after[1].saturating_sub(before[1]);
            }
            self.remember(index, maps);
        }
        Ok(!overtaken.is_empty())
    }

    /// Gives a slot back. What still arrives for the index is nobody's.
    fn release(&mut self, index: u32, slot: u32, maps: &Maps) {
        let _ = syscall::update(maps.slots.as_fd(), &(index % SLOTS), 0_u32);
        self.free_slots.insert(0, slot);
        self.gone.remove(&index);
        if let Some(pins) = &maps.pins {
            pins.remember(slot, &Account::default());
        }
    }

    /// Every watched interface, and those that went within the last minute.
    pub(super) fn reports(&mut self, maps: &Maps) -> Vec<InterfaceReport> {
        for link in self.links.dump().unwrap_or_default() {
            if let Some(watched) = self.watched.get_mut(&link.index) {
                watched.link.counters = link.counters;
            }
        }
        let present = self.watched.iter().map(|(index, watched)| self.report(*index, watched, maps));
        present.chain(self.departed.iter().map(|(_, report)| report.clone())).collect()
    }

    fn report(&self, index: u32, watched: &Watched, maps: &Maps) -> InterfaceReport {
        let (attachment, link_base, hooks) = match &watched.state {
            State::Attached { hooks, slot, base, .. } => (Ok(hooks.attachment()), *base, self.counters(*slot, maps)),
            State::Waiting(reason) => (Err(reason.clone()), watched.link.counters, Default::default()),
        };
        InterfaceReport {
            name: watched.link.name.clone(),
            index,
            role: watched.role,
            attachment,
            link: watched.link.counters,
            link_base,
            hooks,
        }
    }

    /// Sum over the CPUs.
    fn counters(&self, slot: u32, maps: &Maps) -> [HookCounters; 2] {
        let mut cpus = vec![InterfaceCounters::default(); self.cpus];
        // A slot within the map is always there.
        let _ = syscall::lookup_per_cpu(maps.counters.as_fd(), slot, &mut cpus);
        let mut sums = [HookCounters::default(); 2];
        for cpu in &cpus {
            for (sum, hook) in sums.iter_mut().zip(&cpu.hook) {
                add(sum, hook);
            }
        }
        for sum in &mut sums {
            let takeover = sum.lost[Reason::Takeover as usize];
            sum.annotated.packets = sum.annotated.packets.saturating_sub(takeover.packets);
            sum.annotated.bytes = sum.annotated.bytes.saturating_sub(takeover.bytes);
        }
        sums
    }
}

fn known_reason(watched: Option<&Watched>) -> Option<String> {
    match watched.map(|watched| &watched.state) {
        Some(State::Waiting(reason)) => Some(reason.clone()),
        _ => None,
    }
}

fn add(sum: &mut HookCounters, hook: &HookCounters) {
    let count = |sum: &mut Count, more: &Count| {
        sum.packets = sum.packets.wrapping_add(more.packets);
        sum.bytes = sum.bytes.wrapping_add(more.bytes);
    };
    count(&mut sum.seen, &hook.seen);
    count(&mut sum.annotated, &hook.annotated);
    for (sum, more) in sum.lost.iter_mut().zip(&hook.lost) {
        count(sum, more);
    }
    sum.segments = sum.segments.wrapping_add(hook.segments);
    sum.events_lost += hook.events_lost;
    sum.ends_lost += hook.ends_lost;
    sum.fragments_alone += hook.fragments_alone;
}
