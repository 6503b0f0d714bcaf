//! The system calls that load and attach the conntrack programs, one function each.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use aya_obj::generated::bpf_insn;
use flow_common::abi::ConntrackLayout;

use super::super::syscall::{bpf, inform, owned, short, uninterrupted};

const PROG_LOAD: libc::c_long = 5;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BTF_GET_FD_BY_ID: libc::c_long = 19;
const BTF_GET_NEXT_ID: libc::c_long = 23;
const LINK_CREATE: libc::c_long = 28;

const PROG_TYPE_KPROBE: u32 = 2;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_FENTRY: u32 = 24;
const TRACE_FEXIT: u32 = 25;
const TRACE_KPROBE_MULTI: u32 = 42;

/// Room for the verifier's words. A kernel that runs out of it says so instead of the reason.
const LOG: usize = 1 << 20;

/// What a program is loaded as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    /// For one kprobe.
    Kprobe,
    /// For a link on several kprobes.
    KprobeMulti,
    /// For the entry of a function, or its exit, by its number in the kernel's types, and by the module's types where it is the
    /// module's.
    Tracing { exit: bool, function: u32, module: Option<BorrowedFd<'a>> },
}

/// Why a program was not loaded.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: io::Error,
    /// The verifier's words.
    pub(super) log: String,
}

/// `bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
    btf: u32,
    function_record: u32,
    functions: u64,
    function_count: u32,
    line_record: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
    attach_btf: u32,
    padding: u32,
}

/// `bpf_attr` for BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
struct RawTracepoint {
    name: u64,
    program: RawFd,
    padding: u32,
}

/// `bpf_attr` for BPF_LINK_CREATE on kprobes.
#[repr(C)]
struct MultiLink {
    program: RawFd,
    target: u32,
    attach_type: u32,
    flags: u32,
    multi_flags: u32,
    count: u32,
    symbols: u64,
    addresses: u64,
    cookies: u64,
}

/// `bpf_attr` for the calls by id.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    types: u64,
    types_length: u32,
    id: u32,
    name: u64,
    name_length: u32,
    of_kernel: u32,
}

/// `struct perf_event_attr`, as far as it goes for probes.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    function: u64,
    offset: u64,
}

/// The layout as the programs have it.
pub(super) fn bytes(layout: &ConntrackLayout) -> &[u8] {
    // SAFETY: integers without padding, alive as long as the reference.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(layout).cast(), size_of::<ConntrackLayout>()) }
}

/// Loads a program; a second time for the verifier's words if it was refused.
pub(super) fn load_program(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    form: &Form<'_>,
) -> Result<OwnedFd, Refusal> {
    let (program_type, attach_type, attach_btf_id, attach_btf) = match form {
        Form::Kprobe => (PROG_TYPE_KPROBE, 0, 0, 0),
        Form::KprobeMulti => (PROG_TYPE_KPROBE, TRACE_KPROBE_MULTI, 0, 0),
        Form::Tracing { exit, function, module } => {
            let module = module.map_or(0, |fd| fd.as_raw_fd().cast_unsigned());
            (PROG_TYPE_TRACING, if *exit { TRACE_FEXIT } else { TRACE_FENTRY }, *function, module)
        }
    };
    let mut attributes = ProgramLoad {
        program_type,
        instruction_count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: short(name),
        ifindex: 0,
        attach_type,
        btf: 0,
        function_record: 0,
        functions: 0,
        function_count: 0,
        line_record: 0,
        lines: 0,
        line_count: 0,
        attach_btf_id,
        attach_btf,
        padding: 0,
    };
    let load = |attributes: &mut ProgramLoad| {
        uninterrupted(|| bpf(PROG_LOAD, attributes).and_then(owned), io::Error::raw_os_error)
    };
    let error = match load(&mut attributes) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG];
    (attributes.log_level, attributes.log_size, attributes.log) = (1, LOG as u32, log.as_mut_ptr() as u64);
    match load(&mut attributes) {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let end = memchr::memchr(0, &log).unwrap_or(log.len());
            Err(Refusal { error, log: String::from_utf8_lossy(log.get(..end).unwrap_or_default()).into_owned() })
        }
    }
}

/// Attaches a program that was loaded for a function's entry or exit.
pub(super) fn attach_tracing(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = RawTracepoint { name: 0, program: program.as_raw_fd(), padding: 0 };
    owned(bpf(RAW_TRACEPOINT_OPEN, &mut attributes)?)
}

/// Attaches a program to the entry or the return of a function, by a link on kprobes.
pub(super) fn attach_kprobe_multi(program: BorrowedFd<'_>, function: &str, on_return: bool) -> io::Result<OwnedFd> {
    let symbol = CString::new(function)?;
    let symbols = [symbol.as_ptr() as u64];
    let mut attributes = MultiLink {
        program: program.as_raw_fd(),
        target: 0,
        attach_type: TRACE_KPROBE_MULTI,
        flags: 0,
        multi_flags: u32::from(on_return),
        count: 1,
        symbols: symbols.as_ptr() as u64,
        addresses: 0,
        cookies: 0,
    };
    owned(bpf(LINK_CREATE, &mut attributes)?)
}

/// Attaches a program to the entry or the return of a function, by an event of its own.
pub(super) fn attach_kprobe(program: BorrowedFd<'_>, function: &str, on_return: bool) -> io::Result<OwnedFd> {
    const SET_BPF: libc::Ioctl = 0x4004_2408;
    const ENABLE: libc::Ioctl = 0x2400;
    const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
    let symbol = CString::new(function)?;
    let event = PerfEvent {
        kind: kprobe_number("type", "")?,
        size: size_of::<PerfEvent>() as u32,
        config: if on_return { 1 << kprobe_number("format/retprobe", "config:")? } else { 0 },
        function: symbol.as_ptr() as u64,
        ..PerfEvent::default()
    };
    // Of no task and CPU 0: the program runs wherever the probe is hit.
    let (task, cpu, group) = (-1, 0, -1);
    // SAFETY: the event is laid out as the kernel's, of the size it names; the symbol lives until the call has returned.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const event, task, cpu, group, CLOSE_ON_EXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = owned(fd)?;
    for (request, argument) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
        // SAFETY: these take an integer.
        if unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(fd)
}

/// A number that the kernel gives to its kprobes; not found where it has none.
fn kprobe_number(file: &str, prefix: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(Path::new("/sys/bus/event_source/devices/kprobe").join(file))?;
    text.trim().trim_start_matches(prefix).parse().map_err(io::Error::other)
}

/// The types of a module that is loaded, as the kernel holds them.
pub(super) fn module_types(module: &str) -> io::Result<OwnedFd> {
    let mut attributes = ById { id: 0, next: 0, flags: 0 };
    loop {
        bpf(BTF_GET_NEXT_ID, &mut attributes)?;
        attributes.id = attributes.next;
        let mut by_id = ById { id: attributes.id, next: 0, flags: 0 };
        // It may have gone meanwhile.
        let Ok(fd) = bpf(BTF_GET_FD_BY_ID, &mut by_id).and_then(owned) else { continue };
        let mut name = [0_u8; 64];
        let mut info = BtfInfo { name: name.as_mut_ptr() as u64, name_length: 64, ..BtfInfo::default() };
        inform(fd.as_fd(), &mut info)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if info.of_kernel != 0 && name == module.as_bytes() {
            return Ok(fd);
        }
    }
}
