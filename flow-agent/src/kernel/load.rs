//! Loads the kernel programs and opens their maps; every failure a sentence with its remedy.

use super::clock::Tick;
use super::pins::{self, Pins};
use super::{KernelConfig, LoadError, RunStatistics, syscall};
use aya::maps::{Map, MapData, MapError, RingBuf};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use flow_common::abi::{LEASE_MS, SILENCE_MS};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

/// What `build.rs` took in; empty where the programs were not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flow-ebpf.o"));

/// Programs by role, link layer and hook.
pub(super) const PROGRAMS: [&str; 8] = [
    "pod_ingress",
    "pod_egress",
    "uplink_ingress",
    "uplink_egress",
    "pod_ingress_l3",
    "pod_egress_l3",
    "uplink_ingress_l3",
    "uplink_egress_l3",
];
/// Ethertypes that are counted one by one.
const ETHERTYPES: u32 = 256;
/// First fragments remembered at one time.
pub(super) const FRAGMENTS: u32 = 8_192;

/// Loaded programs and open maps.
pub(super) struct Loaded {
    pub(super) programs: Ebpf,
    pub(super) maps: Maps,
    pub(super) tick: Tick,
    /// Ticks that count as silence.
    pub(super) silence: u32,
    /// Entries of each flow map.
    pub(super) max_flows: u32,
}

impl Loaded {
    /// Tells the programs, and the next agent, that this one is there.
    pub(super) fn renew(&self) {
        // An array has its key, so there is nothing that could be refused.
        let _ = syscall::update(self.maps.lease.as_fd(), &0_u32, self.tick.ahead(LEASE_MS));
        if let Some(pins) = &self.maps.pins {
            pins.live();
        }
    }

    /// Run times of every program.
    pub(super) fn run_statistics(&self) -> Vec<RunStatistics> {
        let infos = self.programs.programs().filter_map(|(name, program)| Some((name, program.info().ok()?)));
        let statistics = infos.map(|(name, info)| RunStatistics {
            program: name.to_owned(),
            runs: info.run_count(),
            run_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
        });
        statistics.collect()
    }
}

/// The maps by name.
pub(super) struct Maps {
    pub(super) flows4: OwnedFd,
    pub(super) flows6: OwnedFd,
    pub(super) slots: OwnedFd,
    pub(super) counters: OwnedFd,
    pub(super) ethertypes: OwnedFd,
    pub(super) events: RingBuf<MapData>,
    pub(super) ends: RingBuf<MapData>,
    pub(super) lease: OwnedFd,
    /// Where they are kept from one agent to the next.
    pub(super) pins: Option<Pins>,
}

/// Loads everything; attaches nothing. Maps that an agent before has left in `pins` are used on.
pub(super) fn load(config: &KernelConfig, pins: Option<Pins>) -> Result<Loaded, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    raise_memory_limit();
    let tick = measure_tick()?;
    let silence = tick.ticks(SILENCE_MS);
    let ring = ring_bytes(config);
    let mut loader = EbpfLoader::new();
    for name in pins::MAPS {
        if let Some(pins) = &pins {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut programs = loader
        .map_max_entries("flows4", config.max_flows)
        .map_max_entries("flows6", config.max_flows)
        // Slot 0 is for what is not known.
        .map_max_entries("counters", config.max_interfaces.saturating_add(1))
        .map_max_entries("ethertypes", ETHERTYPES)
        .map_max_entries("fragments", FRAGMENTS)
        .map_max_entries("events", ring)
        .map_max_entries("ends", ring)
        .override_global("SILENCE", &silence, true)
        .load(OBJECT)?;
    for name in PROGRAMS {
        let program = program(&mut programs, name)?;
        verified(|| program.load()).map_err(|error| refused(name, error))?;
    }
    let maps = Maps::take(&mut programs, pins)?;
    Ok(Loaded { programs, maps, tick, silence, max_flows: config.max_flows })
}

/// Of each ring: what the kernel takes.
pub(super) fn ring_bytes(config: &KernelConfig) -> u32 {
    config.ring_bytes.max(4_096).checked_next_power_of_two().unwrap_or(1 << 31)
}

/// Loads a program, however often a signal makes the verifier give up.
pub(super) fn verified(load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    syscall::uninterrupted(load, |error| match error {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    })
}

/// One of the object's programs.
pub(super) fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    let program = programs.program_mut(name).ok_or(LoadError::Incomplete { name })?;
    program.try_into().map_err(|_| LoadError::Incomplete { name })
}

/// The tick is a constant of the programs, so it is measured before they are loaded: with the object's smallest program and
/// maps of one entry.
fn measure_tick() -> Result<Tick, LoadError> {
    let mut programs = EbpfLoader::new().load(OBJECT)?;
    let clock = program(&mut programs, "clock")?;
    verified(|| clock.load()).map_err(|error| refused("clock", error))?;
    let clocks = take(&mut programs, "clocks")?;
    let clock = program(&mut programs, "clock")?;
    Tick::measure(clock, clocks.as_fd()).map_err(LoadError::Clock)
}

impl Maps {
    fn take(programs: &mut Ebpf, pins: Option<Pins>) -> Result<Self, LoadError> {
        Ok(Self {
            flows4: take(programs, "flows4")?,
            flows6: take(programs, "flows6")?,
            slots: take(programs, "slots")?,
            counters: take(programs, "counters")?,
            ethertypes: take(programs, "ethertypes")?,
            events: ring(programs, "events")?,
            ends: ring(programs, "ends")?,
            lease: take(programs, "lease")?,
            pins,
        })
    }
}

pub(super) fn take(programs: &mut Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    match programs.take_map(name) {
        Some(Map::HashMap(map) | Map::Array(map) | Map::PerCpuArray(map)) => {
            map.fd().as_fd().try_clone_to_owned().map_err(|error| LoadError::Map { name: name.to_owned(), error })
        }
        _ => Err(LoadError::Incomplete { name }),
    }
}

pub(super) fn ring(programs: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
    let map = programs.take_map(name).ok_or(LoadError::Incomplete { name })?;
    RingBuf::try_from(map).map_err(LoadError::from)
}

/// Below kernel 5.11 maps are charged against RLIMIT_MEMLOCK; above it the call changes nothing. Where it is refused, the
/// creation of the maps tells.
pub(super) fn raise_memory_limit() {
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
}

fn refused(name: &'static str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => match io_error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if verifier_log.to_string().is_empty() => LoadError::NotPermitted,
            Some(libc::EINVAL) if verifier_log.to_string().is_empty() => LoadError::NoTc,
            _ => LoadError::Refused { name, error: io_error, log: last_lines(&verifier_log.to_string()) },
        },
        other => LoadError::Other(other.into()),
    }
}

/// The verifier's reason is at the end of its words.
pub(super) fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(6)..).unwrap_or_default().join("\n")
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        match error {
            EbpfError::MapError(error) => error.into(),
            other => Self::Other(other),
        }
    }
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::CreateError { name, io_error } => match io_error.raw_os_error() {
                Some(libc::EPERM) if is_privileged() => Self::MemoryLimit { name },
                Some(libc::EPERM) => Self::NotPermitted,
                Some(libc::ENOSYS) => Self::NoBpf,
                Some(libc::ENOMEM) => Self::NoMemory { name },
                _ => Self::Map { name, error: io_error },
            },
            other => Self::Other(other.into()),
        }
    }
}

/// Whether the effective capabilities have CAP_BPF or CAP_SYS_ADMIN, so that a refusal has another reason.
fn is_privileged() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const BPF: u64 = 1 << 39;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(effective.trim(), 16).is_ok_and(|bits| bits & (SYS_ADMIN | BPF) != 0)
}

/// Turns the cause of a refused map into an error of the running agent.
pub(super) fn map_error(call: &'static str, map: &'static str) -> impl FnOnce(io::Error) -> super::MapError {
    move |source| super::MapError { call, map, source }
}
