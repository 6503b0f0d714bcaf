//! What the hooks tell of the router's connections against what netlink tells, each connection with its own.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use flow_agent::conntrack::{Conntrack, Entry, Event, Groups, Hooks, Kind, Tuple};
use flow_agent::kernel::{HooksConfig, Rung};

use crate::lab;

/// Hooks leave the youngest for the next look.
pub(crate) const SETTLED: Duration = Duration::from_millis(20);

/// A ring that has room for what these tests do.
pub(crate) fn config(only: Option<Rung>) -> HooksConfig {
    HooksConfig { new_ring_bytes: 8 << 20, end_ring_bytes: 8 << 20, only }
}

/// Hooks on a rung of their own, and what they told.
pub(crate) struct Witness {
    pub(crate) rung: Rung,
    pub(crate) hooks: Hooks,
    pub(crate) events: Vec<Event>,
    /// Whether nothing of it was lost; known once [`Observation::agree`] has looked.
    pub(crate) is_whole: bool,
}

/// Netlink, and hooks on every rung that the kernel takes, all at once.
pub(crate) struct Observation {
    netlink: Conntrack,
    pub(crate) told: Vec<Event>,
    pub(crate) witnesses: Vec<Witness>,
}

impl Observation {
    pub(crate) fn begin() -> Self {
        let witnesses = Rung::ALL.map(|rung| Witness {
            rung,
            hooks: Hooks::open(config(Some(rung))),
            events: Vec::new(),
            is_whole: false,
        });
        let standing = |witness: &Witness| {
            let rungs = witness.hooks.rungs();
            rungs.new.on.is_some() || rungs.end.on.is_some()
        };
        let witnesses = witnesses.into_iter().filter(standing).collect();
        let netlink = Conntrack::open(Groups::NEW_AND_END).expect("netlink");
        Self { netlink, told: Vec::new(), witnesses }
    }

    /// Takes what has come.
    pub(crate) fn poll(&mut self) {
        assert!(!self.netlink.poll(&mut self.told).expect("netlink"), "netlink lost events: it is no reference");
        for witness in &mut self.witnesses {
            // What is lost is looked at in the end.
            witness.hooks.poll(&mut witness.events);
        }
    }

    /// Takes it until netlink has told of so many ends.
    pub(crate) fn until_ended(&mut self, count: usize, limit: Duration) -> bool {
        let ended = lab::within(limit, || {
            self.poll();
            self.told.iter().filter(|event| event.kind == Kind::Destroy).count() >= count
        });
        if !ended {
            return false;
        }
        // Netlink tells of an end before all programs have run.
        lab::within(Duration::from_secs(1), || {
            self.poll();
            self.witnesses.iter_mut().all(|witness| {
                let lost = witness.hooks.statistics().lost[1];
                let is_told = of(&witness.events, Kind::Destroy).count() as u64 + lost >= count as u64;
                is_told || witness.hooks.rungs().end.on.is_none()
            })
        });
        std::thread::sleep(SETTLED);
        self.poll();
        true
    }

    /// Takes it while other threads work.
    pub(crate) fn during(&mut self, work: &[std::thread::JoinHandle<()>]) {
        while work.iter().any(|thread| !thread.is_finished()) {
            self.poll();
            std::thread::sleep(Duration::from_millis(2));
        }
        self.poll();
    }

    /// Every connection that netlink told of, told by each witness with the same words, in order. The kernel runs no program of a probe
    /// while another one runs on that CPU, and counts that: of many, few are missing so, and none that is not counted. By tracing none is.
    pub(crate) fn agree(&mut self, count: usize) {
        for kind in [Kind::New, Kind::Destroy] {
            let of_kind: Vec<&Entry> = of(&self.told, kind).collect();
            assert_eq!(of_kind.len(), count, "netlink, {kind:?}: {of_kind:#?}");
        }
        for witness in &mut self.witnesses {
            let (name, rungs) = (witness.rung.name(), witness.hooks.rungs().clone());
            let statistics = witness.hooks.statistics();
            println!("{name}: {:?}, {:?}, {statistics:?}", rungs.new.on, rungs.end.on);
            assert_eq!(statistics.malformed, 0, "{name}");
            let kinds = [(Kind::New, &rungs.new), (Kind::Destroy, &rungs.end)];
            for ((kind, standing), lost) in kinds.into_iter().zip(statistics.lost) {
                let expected = if standing.on.is_some() { count } else { 0 };
                let missing = expected.checked_sub(of(&witness.events, kind).count());
                assert!(missing.is_some_and(|missing| missing as u64 <= lost), "{name}, {kind:?}: {missing:?} missing");
                // One that is missed may count twice, at the function's call and at its return.
                let bound = if witness.rung == Rung::Tracing { 0 } else { (count as u64 / 50).max(4) };
                assert!(lost <= bound, "{name}, {kind:?}: {lost} lost");
                agree(name, &self.told, &witness.events, kind);
            }
            witness.is_whole = statistics.lost == [0, 0];
            if witness.is_whole {
                in_order(name, &witness.events);
            }
        }
    }
}

fn of(events: &[Event], kind: Kind) -> impl Iterator<Item = &Entry> {
    events.iter().filter(move |event| event.kind == kind).map(|event| &event.entry)
}

/// Ports and the kernel's numbers are used again. Ends tell when the connection began; of beginnings the first with a tuple and a number
/// is the first with them, the second the second.
fn agree(name: &str, told: &[Event], witnessed: &[Event], kind: Kind) {
    let key = |entry: &Entry| (entry.original, entry.zone, entry.id);
    let mut known: HashMap<(Tuple, u16, u32), VecDeque<&Entry>> = HashMap::new();
    of(told, kind).for_each(|entry| known.entry(key(entry)).or_default().push_back(entry));
    for entry in of(witnessed, kind) {
        let other = known.get_mut(&key(entry)).and_then(|known| {
            let is_it = |other: &&Entry| other.start.is_none_or(|start| entry.start == Some(start));
            known.remove(known.iter().position(is_it)?)
        });
        let other = other.unwrap_or_else(|| panic!("{name}: {kind:?} of what netlink has not: {entry:?}"));
        same(name, other, entry);
    }
}

/// Whatever netlink says, the hooks say.
fn same(name: &str, netlink: &Entry, hooks: &Entry) {
    let context = || format!("{name}:\n{netlink:?}\n{hooks:?}");
    assert_eq!((netlink.reply, netlink.mark), (hooks.reply, hooks.mark), "{}", context());
    assert_eq!(netlink.status, hooks.status, "{}", context());
    let said = |netlink: bool, same: bool| assert!(!netlink || same, "{}", context());
    said(netlink.counters.is_some(), netlink.counters == hooks.counters);
    said(netlink.tcp_state.is_some(), netlink.tcp_state == hooks.tcp_state);
    said(netlink.labels.is_some(), netlink.labels == hooks.labels);
    said(netlink.start.is_some(), netlink.start == hooks.start);
    if let (Some(netlink), hooks) = (netlink.timeout, hooks.timeout) {
        // The end of a second may lie between the two.
        assert!(netlink.abs_diff(hooks.unwrap_or(0)) <= 1, "{}", context());
    }
    if let (Some(netlink), Some(hooks)) = (netlink.stop, hooks.stop) {
        // On a kprobe it is worked out a moment before the kernel does so, by a tick that emulated machines let lag; otherwise it is the
        // kernel's own.
        let is_own = name == Rung::Tracing.name();
        let least = if is_own { Duration::ZERO } else { Duration::from_millis(20) * lab::patience().pow(2) };
        let apart = netlink.since(hooks).max(hooks.since(netlink));
        assert!(apart <= least, "{apart:?}: {}", context());
    }
    assert_eq!(netlink.stop.is_some(), hooks.stop.is_some(), "{}", context());
}

/// Each end after its beginning, where there are both.
fn in_order(name: &str, events: &[Event]) {
    if !events.iter().any(|event| event.kind == Kind::New) {
        return;
    }
    let mut live = HashMap::new();
    for Event { kind, entry } in events {
        // Of ten thousand, two may well have the same number at one time.
        let key = (entry.original, entry.zone, entry.id);
        let before = if *kind == Kind::New { live.insert(key, *entry) } else { live.remove(&key) };
        assert_eq!(before.is_some(), *kind == Kind::Destroy, "{name}: {kind:?} out of order: {entry:?}");
    }
}

/// Waits until some hooks have told of something.
pub(crate) fn wait_for(hooks: &mut Hooks, what: &str, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let mut events = Vec::new();
    let mut found = None;
    lab::until(what, || {
        events.clear();
        hooks.poll(&mut events);
        hooks.refresh(Instant::now());
        found = found.or_else(|| events.iter().copied().find(&mut wanted));
        found.is_some()
    });
    found.expect("waited for")
}
