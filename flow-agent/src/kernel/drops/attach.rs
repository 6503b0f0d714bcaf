//! Loads the drop programs and attaches one, in the first form that the kernel takes. What it refuses is kept as the reason for
//! the next form.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::HashMap;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, Pod};
use flow_common::abi::drop::{Offsets, Places};

use super::reasons::Reasons;
use super::{Attached, DropsConfig, places};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::syscall;
use crate::kernel::{LoadError, load, namespace};

/// What `build.rs` took in; empty where the programs were not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drop.o"));

/// Reasons from which something can follow.
const REASONS: u32 = 256;

const TRACEPOINT: &str = "kfree_skb";

/// The forms of the program, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// By the tracepoint's types.
    BtfTracepoint,
    /// By the raw tracepoint.
    RawTracepoint,
    /// By the tracepoint's types, without reasons: netfilter's drops alone, known by their place.
    BtfTracepointByPlace,
    /// By the raw tracepoint, without reasons.
    RawTracepointByPlace,
}

impl Rung {
    const ALL: [Self; 4] =
        [Self::BtfTracepoint, Self::RawTracepoint, Self::BtfTracepointByPlace, Self::RawTracepointByPlace];

    /// The program's name in the object.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::BtfTracepoint => "drop_btf",
            Self::RawTracepoint => "drop_raw",
            Self::BtfTracepointByPlace => "place_btf",
            Self::RawTracepointByPlace => "place_raw",
        }
    }

    /// Whether it tells reasons.
    pub fn has_reasons(self) -> bool {
        matches!(self, Self::BtfTracepoint | Self::RawTracepoint)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::BtfTracepoint => "BTF tracepoint",
            Self::RawTracepoint => "raw tracepoint",
            Self::BtfTracepointByPlace => "BTF tracepoint without reasons",
            Self::RawTracepointByPlace => "raw tracepoint without reasons",
        })
    }
}

/// In which form the programs run, and why in no better one.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The form; none if there are no drops to be had.
    pub rung: Option<Rung>,
    /// Better forms and why they do not run.
    pub refused: Vec<(Rung, String)>,
    /// Why none runs, if none does.
    pub failure: Option<String>,
}

/// Why there are no drops.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("{0}")]
    Types(#[from] BtfError),
    #[error("the kernel's types lack {0}")]
    Member(&'static str),
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error("this thread's network namespace cannot be read: {0}")]
    Namespace(std::io::Error),
    #[error("the kernel takes the drop programs in no form: {0}")]
    NoForm(String),
}

/// Why a form does not run.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this kernel gives no reasons: it needs 5.17")]
    NoReasons,
    #[error("the addresses of the kernel's functions cannot be read: it needs CAP_SYSLOG")]
    NoPlaces,
    #[error("not permitted: it needs CAP_BPF and CAP_PERFMON")]
    NotPermitted,
    #[error("the programs lack it: build agent and programs together with `cargo xtask build`")]
    Incomplete,
    #[error("{0}")]
    Types(#[from] aya::BtfError),
    #[error("{0}")]
    Kernel(String),
}

/// [`Offsets`] as aya takes a constant.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Constant(Offsets);

// SAFETY: integers only, no padding, and any bytes are a value.
unsafe impl Pod for Constant {}

/// Loads and attaches; notes in the report which form runs.
pub(super) fn open(config: &DropsConfig, sites: u32, report: &mut Report) -> Result<(Attached, Reasons), OpenError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject.into());
    }
    load::raise_memory_limit();
    let btf = Btf::of_kernel(Some("openvswitch"))?;
    let reasons = Reasons::of(&btf);
    let places = places::netfilter(Path::new(places::SYMBOLS));
    let mut offsets = offsets(&btf)?;
    if let Ok(with_conntrack) = btf.with_module("nf_conntrack") {
        add_connection(&with_conntrack, &mut offsets);
    }
    let mut programs = load(config, sites, &offsets, &reasons, places)?;
    for rung in Rung::ALL {
        let possible = match rung {
            _ if rung.has_reasons() => reasons.not_specified.map(drop).ok_or(Refusal::NoReasons),
            _ => places.map(drop).ok_or(Refusal::NoPlaces),
        };
        match possible.and_then(|()| attach(&mut programs, rung)) {
            Ok(()) => {
                report.rung = Some(rung);
                break;
            }
            Err(refusal) => report.refused.push((rung, refusal.to_string())),
        }
    }
    if report.rung.is_none() {
        let all: Vec<String> = report.refused.iter().map(|(rung, why)| format!("{rung}: {why}")).collect();
        return Err(OpenError::NoForm(all.join("; ")));
    }
    Ok((attached(programs)?, reasons))
}

/// Runs of a program that the kernel left out.
pub(super) fn missed(program: &Program) -> u64 {
    let fd = match program {
        Program::BtfTracePoint(program) => program.fd(),
        Program::RawTracePoint(program) => program.fd(),
        _ => return 0,
    };
    fd.ok().and_then(|fd| syscall::missed_runs(fd.as_fd()).ok()).unwrap_or_default()
}

fn load(
    config: &DropsConfig,
    sites: u32,
    offsets: &Offsets,
    reasons: &Reasons,
    places: Option<Places>,
) -> Result<Ebpf, OpenError> {
    let ring = config.ring_bytes.max(4_096).checked_next_power_of_two().unwrap_or(1 << 31);
    // Everything is a reason's where there is none: those programs are not attached then.
    let not_specified = reasons.not_specified.unwrap_or(u32::MAX);
    let namespace = namespace::number().map_err(OpenError::Namespace)?;
    let mut programs = EbpfLoader::new()
        .map_max_entries("sites", sites)
        .map_max_entries("reasons", REASONS)
        .map_max_entries("dropped", config.max_flows)
        .map_max_entries("drops", ring)
        .override_global("OFFSETS", &Constant(*offsets), true)
        .override_global("NOT_SPECIFIED", &not_specified, true)
        .override_global("NAMESPACE", &namespace, true)
        .override_global("PLACES", &places.unwrap_or_default(), true)
        .load(OBJECT)
        .map_err(LoadError::from)?;
    // The map stays where it is: programs are loaded with it later.
    let map = programs.map_mut("reasons").ok_or(LoadError::Incomplete { name: "reasons" })?;
    let mut map = HashMap::<_, u32, u32>::try_from(map).map_err(LoadError::from)?;
    for (reason, class) in reasons.wanted() {
        map.insert(reason, class, 0).map_err(LoadError::from)?;
    }
    Ok(programs)
}

fn attach(programs: &mut Ebpf, rung: Rung) -> Result<(), Refusal> {
    match programs.program_mut(rung.program()).ok_or(Refusal::Incomplete)? {
        Program::BtfTracePoint(program) => {
            let types = aya::Btf::from_sys_fs()?;
            load::verified(|| program.load(TRACEPOINT, &types)).map_err(|error| refusal(&error))?;
            program.attach().map_err(|error| refusal(&error))?;
        }
        Program::RawTracePoint(program) => {
            load::verified(|| program.load()).map_err(|error| refusal(&error))?;
            program.attach(TRACEPOINT).map_err(|error| refusal(&error))?;
        }
        _ => return Err(Refusal::Incomplete),
    }
    Ok(())
}

fn refusal(error: &ProgramError) -> Refusal {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = load::last_lines(&verifier_log.to_string());
            match io_error.raw_os_error() {
                Some(libc::EPERM) if log.is_empty() => Refusal::NotPermitted,
                _ => Refusal::Kernel(format!("{io_error} {log}").trim_end().to_owned()),
            }
        }
        ProgramError::SyscallError(error) => Refusal::Kernel(error.to_string()),
        other => Refusal::Kernel(other.to_string()),
    }
}

fn attached(mut programs: Ebpf) -> Result<Attached, OpenError> {
    let counters: OwnedFd = load::take(&mut programs, "drop_counters")?;
    Ok(Attached {
        sites: load::take(&mut programs, "sites")?,
        dropped: load::take(&mut programs, "dropped")?,
        counters,
        ring: load::ring(&mut programs, "drops")?,
        cpus: aya::util::nr_cpus().map_err(|(_, error)| OpenError::Namespace(error))?,
        programs,
    })
}

/// Where the kernel's structures have what the programs read.
fn offsets(btf: &Btf) -> Result<Offsets, OpenError> {
    let of =
        |structure, path, name| btf.member(structure, path).map(|member| member.offset).ok_or(OpenError::Member(name));
    Ok(Offsets {
        skb_head: of("sk_buff", "head", "sk_buff.head")?,
        skb_data: of("sk_buff", "data", "sk_buff.data")?,
        skb_len: of("sk_buff", "len", "sk_buff.len")?,
        skb_data_len: of("sk_buff", "data_len", "sk_buff.data_len")?,
        skb_protocol: of("sk_buff", "protocol", "sk_buff.protocol")?,
        skb_network_header: of("sk_buff", "network_header", "sk_buff.network_header")?,
        skb_dev: of("sk_buff", "dev", "sk_buff.dev")?,
        skb_dst: of("sk_buff", "_skb_refdst", "sk_buff._skb_refdst")?,
        dev_ifindex: of("net_device", "ifindex", "net_device.ifindex")?,
        dev_net: of("net_device", "nd_net.net", "net_device.nd_net")?,
        dst_dev: of("dst_entry", "dev", "dst_entry.dev")?,
        net_inum: of("net", "ns.inum", "net.ns")?,
        ..Offsets::default()
    })
}

/// Adds where a connection has its ends; nothing where the types do not tell.
fn add_connection(btf: &Btf, offsets: &mut Offsets) -> Option<()> {
    let of = |structure, path| btf.member(structure, path).map(|member| member.offset);
    let conn = |path| of("nf_conn", path);
    *offsets = Offsets {
        skb_conn: of("sk_buff", "_nfct")?,
        conn_status: conn("status")?,
        conn_src_addr: conn("tuplehash[0].tuple.src.u3")?,
        conn_src_port: conn("tuplehash[0].tuple.src.u")?,
        conn_dst_addr: conn("tuplehash[0].tuple.dst.u3")?,
        conn_dst_port: conn("tuplehash[0].tuple.dst.u")?,
        ..*offsets
    };
    Some(())
}
