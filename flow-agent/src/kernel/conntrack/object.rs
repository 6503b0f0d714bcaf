//! The object with the conntrack programs: makes its maps, and loads its programs one by one in whatever form a hook wants.
//!
//! aya loads whole objects, names no module's function and knows no link on several kprobes; its parser does all that is
//! hard, and the few calls that remain are made here.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya_obj::Object;
use flow_common::abi::{ConntrackCounters, ConntrackLayout};

use super::super::syscall;
use super::calls::{self, Form};
use super::ring::Ring;

/// What `build.rs` took in; empty where the programs were not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/conntrack.o"));

const RODATA: &str = ".rodata";

/// Why there are no maps.
#[derive(Debug, thiserror::Error)]
pub(super) enum ObjectError {
    #[error("this agent was built without its kernel programs: run `cargo xtask build`")]
    NoObject,
    #[error("the kernel programs lack `{0}`: build agent and programs together with `cargo xtask build`")]
    Incomplete(&'static str),
    #[error("the kernel programs cannot be read: {0}")]
    Unreadable(String),
    #[error("not permitted to make maps: this takes CAP_BPF, and CAP_SYS_RESOURCE below 5.11")]
    NotPermitted,
    #[error("the kernel refused the map `{name}`: {error}")]
    Map { name: String, error: io::Error },
}

/// The maps, which outlive every program.
pub(super) struct Maps {
    fds: HashMap<String, OwnedFd>,
    new: Ring,
    end: Ring,
}

/// Programs with a layout in them, ready to be loaded.
pub(super) struct Programs {
    object: Object,
    /// The layout; programs that are loaded keep it alive.
    _rodata: OwnedFd,
}

impl Maps {
    /// Makes them; each ring has room for so many bytes.
    pub(super) fn new(ring_bytes: [u32; 2]) -> Result<Self, ObjectError> {
        let object = parse()?;
        let mut fds = HashMap::new();
        for (name, map) in object.maps.iter().filter(|(name, _)| *name != RODATA) {
            let entries = match name.as_str() {
                "conntrack_new" => room(ring_bytes[0]),
                "conntrack_end" => room(ring_bytes[1]),
                _ => map.max_entries(),
            };
            let fd = syscall::create_map(name, map.map_type(), [map.key_size(), map.value_size(), entries], 0)
                .map_err(|error| refused(name, error))?;
            fds.insert(name.clone(), fd);
        }
        let (new, end) = (ring(&fds, "conntrack_new")?, ring(&fds, "conntrack_end")?);
        counters(&fds)?;
        Ok(Self { fds, new, end })
    }

    /// The ring of ends and that of beginnings, in this order.
    pub(super) fn rings(&mut self) -> [&mut Ring; 2] {
        [&mut self.end, &mut self.new]
    }

    /// What was told and lost on every CPU.
    pub(super) fn counters(&self) -> io::Result<ConntrackCounters> {
        let Some(map) = self.fds.get("conntrack_counters") else { return Ok(ConntrackCounters::default()) };
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let mut values = vec![ConntrackCounters::default(); cpus];
        syscall::lookup_per_cpu(map.as_fd(), 0, &mut values)?;
        Ok(values.iter().fold(ConntrackCounters::default(), |sum, of| ConntrackCounters {
            told: [0, 1].map(|kind| sum.told[kind] + of.told[kind]),
            lost: [0, 1].map(|kind| sum.lost[kind] + of.lost[kind]),
        }))
    }
}

impl Programs {
    /// Puts a layout into the programs.
    pub(super) fn new(maps: &Maps, layout: &ConntrackLayout) -> Result<Self, ObjectError> {
        let mut object = parse()?;
        let unreadable = |error: &dyn std::error::Error| ObjectError::Unreadable(error.to_string());
        let bytes = calls::bytes(layout);
        object.patch_map_data(HashMap::from([("LAYOUT", (bytes, true))])).map_err(|error| unreadable(&error))?;
        let definitions: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        let data = definitions.iter().find(|(name, _)| name == RODATA).ok_or(ObjectError::Incomplete(RODATA))?;
        let rodata = syscall::constants("conntrack", data.1.data()).map_err(|error| refused(RODATA, error))?;
        let fd = |name: &str| if name == RODATA { Some(&rodata) } else { maps.fds.get(name) };
        let relocations =
            definitions.iter().filter_map(|(name, map)| Some((name.as_str(), fd(name)?.as_raw_fd(), map)));
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(relocations, &text).map_err(|error| unreadable(&error))?;
        object.relocate_calls(&text).map_err(|error| unreadable(&error))?;
        Ok(Self { object, _rodata: rodata })
    }

    /// Loads one.
    pub(super) fn load(&self, name: &'static str, form: &Form<'_>) -> Result<OwnedFd, calls::Refusal> {
        let program = self.object.programs.get(name);
        let function = program.and_then(|program| self.object.functions.get(&program.function_key()));
        let Some((program, function)) = program.zip(function) else {
            return Err(calls::Refusal { error: io::ErrorKind::NotFound.into(), log: String::new() });
        };
        calls::load_program(name, &function.instructions, &program.license, form)
    }
}

fn parse() -> Result<Object, ObjectError> {
    if OBJECT.is_empty() {
        return Err(ObjectError::NoObject);
    }
    Object::parse(OBJECT).map_err(|error| ObjectError::Unreadable(error.to_string()))
}

/// A power of two, and a page at least.
fn room(bytes: u32) -> u32 {
    bytes.max(4_096).checked_next_power_of_two().unwrap_or(1 << 31)
}

fn ring(fds: &HashMap<String, OwnedFd>, name: &'static str) -> Result<Ring, ObjectError> {
    let map = fds.get(name).ok_or(ObjectError::Incomplete(name))?;
    let map = map.try_clone().map_err(|error| refused(name, error))?;
    Ring::new(map).map_err(|error| ObjectError::Unreadable(error.to_string()))
}

fn counters(fds: &HashMap<String, OwnedFd>) -> Result<(), ObjectError> {
    fds.get("conntrack_counters").map(drop).ok_or(ObjectError::Incomplete("conntrack_counters"))
}

fn refused(name: &str, error: io::Error) -> ObjectError {
    match error.raw_os_error() {
        Some(libc::EPERM) => ObjectError::NotPermitted,
        _ => ObjectError::Map { name: name.to_owned(), error },
    }
}
