//! Programs on the kernel's connection tracking: they tell of every connection of this network namespace as it begins and as
//! it ends, with all that the kernel knows of it.
//!
//! Gives events as the kernel had them in memory, and the layout to decode them by; decodes nothing. Tries the ways there are to
//! attach, best first, and says which it stands on and why not on a better one. Follows the module: waits for it, never loads it,
//! and attaches anew after it was loaded again. Nothing is pinned: a program on a module's function keeps the module from being
//! unloaded for as long as it is loaded, which for a pinned one is for good.

use std::io;
use std::time::Instant;

use flow_common::abi::{ConntrackCounters, ConntrackEvent};

use super::btf::Btf;
use super::{load, namespace};

mod attach;
mod calls;
mod layout;
mod module;
mod object;
mod ring;
mod symbols;

use attach::Hook;
pub use module::ConntrackModule;
use object::{Maps, Programs};
use symbols::Symbols;

/// The module's name.
const MODULE: &str = "nf_conntrack";

/// What [`ConntrackHooks::open`] needs to know.
#[derive(Clone, Copy, Debug)]
pub struct HooksConfig {
    /// Bytes of the ring of beginnings; rounded up to a power of two.
    pub new_ring_bytes: u32,
    /// Bytes of the ring of ends. The kernel ends connections in bursts of tens of thousands.
    pub end_ring_bytes: u32,
    /// Try this rung only.
    pub only: Option<Rung>,
}

/// A way to attach, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// At the entry or exit of a function by its type: no interrupt, no search for what was passed.
    Tracing,
    /// A link on kprobes, from 5.18 on where the kernel has fprobes: needs no CAP_SYS_ADMIN.
    KprobeMulti,
    /// A kprobe of its own by perf_event_open.
    Kprobe,
}

impl Rung {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Tracing, Self::KprobeMulti, Self::Kprobe];

    /// Stable name: a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracing => "tracing",
            Self::KprobeMulti => "kprobe-multi",
            Self::Kprobe => "kprobe",
        }
    }
}

/// Where the hooks for one kind of event stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The rung and the function that the programs are attached to; none: no event of this kind comes from here.
    pub on: Option<(Rung, &'static str)>,
    /// Why not on the better rungs, or on none: a sentence each, best first.
    pub refused: Vec<String>,
}

/// Where all hooks stand; either may be refused without the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rungs {
    /// Of beginnings.
    pub new: Standing,
    /// Of ends.
    pub end: Standing,
}

/// Offsets in bytes by which a [`ConntrackEvent`] is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnLayout {
    /// `nf_conn.timeout`, ticks.
    pub timeout: u32,
    /// `nf_conn.zone.id` and `.dir`, where the kernel has zones.
    pub zone: Option<(u32, u32)>,
    /// `nf_conn.tuplehash[..].tuple` of the originator and of the responder.
    pub tuples: [u32; 2],
    /// `nf_conn.status`.
    pub status: u32,
    /// `nf_conn.ct_net.net`.
    pub net: u32,
    /// `nf_conn.master`.
    pub master: u32,
    /// `nf_conn.mark`, where the kernel has marks.
    pub mark: Option<u32>,
    /// `nf_conn.proto.tcp.state`.
    pub tcp_state: u32,
    /// Size of a `nf_conntrack_tuple`; in it:
    pub tuple_bytes: u32,
    /// `src.u3`.
    pub src_addr: u32,
    /// `src.u`.
    pub src_port: u32,
    /// `src.l3num`.
    pub family: u32,
    /// `dst.u3`.
    pub dst_addr: u32,
    /// `dst.u`.
    pub dst_port: u32,
    /// `dst.protonum`.
    pub protocol: u32,
}

/// The hooks. Dropping it detaches them.
pub struct ConntrackHooks {
    config: HooksConfig,
    namespace: u32,
    maps: Option<Maps>,
    rungs: Rungs,
    layout: Option<ConnLayout>,
    /// Of beginnings and of ends; they detach when they are dropped.
    attached: [Vec<Hook>; 2],
    /// What hooks missed that are not there any more.
    missed: [u64; 2],
    /// The load of the module that they are attached to.
    module: ConntrackModule,
    counters: ConntrackCounters,
}

impl ConntrackHooks {
    /// Attaches what the kernel takes, for the network namespace of this thread. Fails never: [`Self::rungs`] tells where the
    /// hooks stand, and what stands in the way.
    pub fn open(config: HooksConfig) -> Self {
        let mut hooks = Self {
            config,
            namespace: 0,
            maps: None,
            rungs: Rungs::default(),
            layout: None,
            attached: [Vec::new(), Vec::new()],
            missed: [0; 2],
            module: ConntrackModule::here(),
            counters: ConntrackCounters::default(),
        };
        hooks.prepare().and_then(|()| hooks.attach()).unwrap_or_else(|sentence| hooks.stand_on_none(&sentence));
        hooks
    }

    /// Where the hooks stand.
    pub fn rungs(&self) -> &Rungs {
        &self.rungs
    }

    /// By what to decode the events; none while nothing is attached.
    pub fn layout(&self) -> Option<&ConnLayout> {
        self.layout.as_ref()
    }

    /// Appends what has come, the ends first. Gives the time, by the monotonic clock, until when these and earlier events are all that
    /// happened: whoever leaves the younger ones aside and sorts the others by their times has them in order.
    pub fn poll(&mut self, events: &mut Vec<ConntrackEvent>) -> u64 {
        let Some(maps) = &mut self.maps else { return 0 };
        ring::read(maps.rings(), events)
    }

    /// Events told and lost since the opening. After a loss only a dump of the kernel's table tells what they said.
    pub fn counters(&mut self) -> ConntrackCounters {
        if let Some(Ok(counters)) = self.maps.as_ref().map(Maps::counters) {
            self.counters = counters;
            let missed = self.missed_so_far();
            self.counters.lost.iter_mut().zip(missed).for_each(|(lost, missed)| *lost += missed);
        }
        self.counters
    }

    /// Events that the kernel ran no program for.
    fn missed_so_far(&self) -> [u64; 2] {
        [0, 1].map(|kind| self.missed[kind] + self.attached[kind].iter().map(Hook::missed).sum::<u64>())
    }

    /// Looks for the module, once a second at most: attaches when it has come, and anew after it was loaded again, where the old
    /// hooks are silent for ever. True if that changed where the hooks stand; what happened in between only a dump tells.
    pub fn refresh(&mut self, now: Instant) -> bool {
        if !self.module.has_changed(now) || self.maps.is_none() {
            return false;
        }
        self.missed = self.missed_so_far();
        self.attached = [Vec::new(), Vec::new()];
        self.attach().unwrap_or_else(|sentence| self.stand_on_none(&sentence));
        true
    }

    /// What is the same for every load of the module.
    fn prepare(&mut self) -> Result<(), String> {
        let namespace = namespace::number();
        self.namespace = namespace.map_err(|error| format!("this network namespace has no number: {error}"))?;
        load::raise_memory_limit();
        let maps = Maps::new([self.config.new_ring_bytes, self.config.end_ring_bytes]);
        self.maps = Some(maps.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn attach(&mut self) -> Result<(), String> {
        let symbols = Symbols::read().map_err(|error| format!("/proc/kallsyms cannot be read: {error}"))?;
        if !symbols.confirm {
            return Err(format!("the module {MODULE} is not loaded: no connection is tracked"));
        }
        let btf = Btf::of_kernel(Some(MODULE)).map_err(|error| error.to_string())?;
        let (layout, decoder) =
            layout::resolve(&btf, self.namespace, symbols.seed).map_err(|error| error.to_string())?;
        let maps = self.maps.as_ref().ok_or_else(|| "there are no maps".to_owned())?;
        let programs = Programs::new(maps, &layout).map_err(|error| error.to_string())?;
        let rungs = Rung::ALL.into_iter().filter(|rung| self.config.only.is_none_or(|only| only == *rung));
        let ground = attach::Ground { programs: &programs, btf: &btf, symbols: &symbols };
        // The ends first: a beginning then never lacks its end.
        let (end, end_hooks) = ground.stand(rungs.clone(), attach::END);
        let (new, new_hooks) = ground.stand(rungs, attach::NEW);
        self.attached = [new_hooks, end_hooks];
        self.rungs = Rungs { new, end };
        self.layout = Some(decoder);
        Ok(())
    }

    fn stand_on_none(&mut self, sentence: &str) {
        let standing = Standing { on: None, refused: vec![sentence.to_owned()] };
        self.rungs = Rungs { new: standing.clone(), end: standing };
    }
}

/// A sentence of an error that everything has: its number's words.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        // The kernel's own number for "not supported", which the C library has no words for.
        Some(524) => "not supported".to_owned(),
        _ => error.to_string(),
    }
}
