//! The bpf() commands that aya has no call for: whole values and batches of maps into our own buffers, TCX links by interface index,
//! the chain of programs on a hook.
//!
//! Every function is one system call. Keys and values are the plain types of [`flow_common::abi`].

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const MAP_FREEZE: libc::c_long = 22;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const ENABLE_STATS: libc::c_long = 32;

const MAP_TYPE_ARRAY: u32 = 2;

/// Data that the kernel may read and write as bytes.
///
/// # Safety
/// Any bit pattern is a value, and there is no padding.
pub(super) unsafe trait Plain: Copy + Default {}

// SAFETY: integers only; their sizes are asserted to be the sum of the fields'.
unsafe impl Plain for flow_common::abi::Key4 {}
// SAFETY: as above.
unsafe impl Plain for flow_common::abi::Key6 {}
// SAFETY: as above.
unsafe impl Plain for flow_common::abi::Flow {}
// SAFETY: as above.
unsafe impl Plain for flow_common::abi::Count {}
// SAFETY: as above.
unsafe impl Plain for flow_common::abi::InterfaceCounters {}
// SAFETY: as above.
unsafe impl Plain for flow_common::abi::ConntrackCounters {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: integers.
unsafe impl Plain for [u64; 2] {}

/// `bpf_attr` for the element commands.
#[repr(C)]
struct Element {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `bpf_attr` for the batch commands.
#[repr(C)]
struct Batch {
    before: u64,
    after: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    element_flags: u64,
    flags: u64,
}

/// `bpf_attr` for BPF_LINK_CREATE on a network device.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// `bpf_attr` for BPF_PROG_QUERY on a network device.
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// `bpf_attr` for BPF_MAP_CREATE; what it leaves out is 0.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    sizes: [u32; 3],
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// `bpf_attr` for BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
struct Object {
    path: u64,
    fd: RawFd,
    flags: u32,
}

/// `bpf_attr` for BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link: RawFd,
    program: RawFd,
    flags: u32,
    old_program: u32,
}

/// `struct bpf_link_info` of a TCX link.
#[repr(C)]
#[derive(Default)]
struct LinkInformation {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

/// `struct bpf_link_info` of a link on many kprobes.
#[repr(C)]
#[derive(Default)]
struct ProbesInformation {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    addresses: u64,
    count: u32,
    flags: u32,
    missed: u64,
}

/// `bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct Information {
    object: RawFd,
    length: u32,
    information: u64,
}

/// `struct bpf_prog_info` up to `recursion_misses`; nothing before that is read.
#[repr(C)]
#[derive(Default)]
struct ProgramInformation {
    before: [u64; 26],
    missed: u64,
}

/// One call; gives what it returned.
pub(super) fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every attribute type here is laid out as the kernel's, and the pointers in it are valid for what the command
    // reads and writes: that is each caller's to see to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Loads a program. The verifier gives up where a signal comes for the thread that loads (EAGAIN): here they wait, or another thread takes
/// them. Where one got through, it is tried again. `number` is the system's of an error.
pub(super) fn uninterrupted<T, E>(
    mut load: impl FnMut() -> Result<T, E>,
    number: impl Fn(&E) -> Option<i32>,
) -> Result<T, E> {
    const ATTEMPTS: u32 = 10;
    let _blocked = Blocked::all();
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if number(&error) == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    load()
}

/// No signal comes for this thread as long as it lives.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Self {
        // SAFETY: both sets are this function's own, and the first is filled before it is read.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

fn element<K, V>(map: BorrowedFd<'_>, key: &K, value: *mut V) -> Element {
    let (key, value) = (std::ptr::from_ref(key) as u64, value as u64);
    Element { map: map.as_raw_fd(), padding: 0, key, value, flags: 0 }
}

/// Makes absence a value.
fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The value of a key.
pub(super) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let there = found(bpf(MAP_LOOKUP_ELEM, &mut element(map, key, &raw mut value)))?;
    Ok(there.then_some(value))
}

/// The values of a key of a per-CPU map, one for each possible CPU; `values` must have room for them all.
pub(super) fn lookup_per_cpu<V: Plain>(map: BorrowedFd<'_>, key: u32, values: &mut [V]) -> io::Result<()> {
    bpf(MAP_LOOKUP_ELEM, &mut element(map, &key, values.as_mut_ptr())).map(drop)
}

/// Sets the values of a key of a per-CPU map.
pub(super) fn update_per_cpu<V: Plain>(map: BorrowedFd<'_>, key: u32, values: &mut [V]) -> io::Result<()> {
    bpf(MAP_UPDATE_ELEM, &mut element(map, &key, values.as_mut_ptr())).map(drop)
}

/// Sets a value.
pub(super) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, mut value: V) -> io::Result<()> {
    bpf(MAP_UPDATE_ELEM, &mut element(map, key, &raw mut value)).map(drop)
}

/// Removes a key and gives its last value; none if it was not there.
pub(super) fn take<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let there = found(bpf(MAP_LOOKUP_AND_DELETE_ELEM, &mut element(map, key, &raw mut value)))?;
    Ok(there.then_some(value))
}

/// Removes a key; false if it was not there.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    found(bpf(MAP_DELETE_ELEM, &mut element(map, key, std::ptr::null_mut::<u32>())))
}

/// The key after `key`, or the first.
pub(super) fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::default();
    let key = key.map_or(0, |key| std::ptr::from_ref(key) as u64);
    let mut attributes = Element { map: map.as_raw_fd(), padding: 0, key, value: &raw mut next as u64, flags: 0 };
    Ok(found(bpf(MAP_GET_NEXT_KEY, &mut attributes))?.then_some(next))
}

/// Appends up to `count` entries of a hash, from a cursor on (none: the beginning), and moves it. False once the end is
/// reached. ENOSPC: a bucket holds more than `count`.
pub(super) fn lookup_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    cursor: &mut Option<u32>,
    count: u32,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<bool> {
    let room = count as usize;
    keys.reserve(room);
    values.reserve(room);
    let before = cursor.unwrap_or(0);
    let mut after = 0_u32;
    let mut attributes = Batch {
        before: if cursor.is_some() { &raw const before as u64 } else { 0 },
        after: &raw mut after as u64,
        keys: keys.spare_capacity_mut().as_mut_ptr() as u64,
        values: values.spare_capacity_mut().as_mut_ptr() as u64,
        count,
        map: map.as_raw_fd(),
        element_flags: 0,
        flags: 0,
    };
    let more = found(bpf(MAP_LOOKUP_BATCH, &mut attributes))?;
    let given = (attributes.count as usize).min(room);
    // SAFETY: room was reserved, the kernel has written `given` of each, and any bytes are a key and a value.
    unsafe {
        keys.set_len(keys.len() + given);
        values.set_len(values.len() + given);
    }
    *cursor = Some(after);
    Ok(more)
}

/// A hook in the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum TcxHook {
    /// BPF_TCX_INGRESS.
    Ingress = 46,
    /// BPF_TCX_EGRESS.
    Egress = 47,
}

impl TcxHook {
    /// In the order of hooks everywhere.
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// Puts a program at the head of a TCX chain; it leaves it when the link is closed.
pub(super) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, hook: TcxHook) -> io::Result<OwnedFd> {
    /// BPF_F_BEFORE without a relative: before all.
    const BEFORE: u32 = 1 << 3;
    let mut attributes = LinkCreate {
        program: program.as_raw_fd(),
        ifindex,
        attach_type: hook as u32,
        flags: BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    let fd = bpf(LINK_CREATE, &mut attributes)?;
    owned(fd)
}

/// The id of the first program of a TCX chain, if there is any.
pub(super) fn tcx_head(ifindex: u32, hook: TcxHook) -> io::Result<Option<u32>> {
    let mut programs = [0_u32; 64];
    let mut attributes = Query {
        ifindex,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: 64,
        padding: 0,
        program_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    bpf(PROG_QUERY, &mut attributes)?;
    Ok((attributes.count > 0).then_some(programs[0]))
}

/// Runs another program from now on where this link's does; not a packet passes between.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (link.as_raw_fd(), program.as_raw_fd());
    bpf(LINK_UPDATE, &mut LinkUpdate { link, program, flags: 0, old_program: 0 }).map(drop)
}

/// The interface that a TCX link is on; 0 if that has gone.
pub(super) fn link_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(information::<LinkInformation>(link)?.ifindex)
}

/// An array map that only user space knows.
pub(super) fn array<V: Plain>(entries: u32) -> io::Result<OwnedFd> {
    create_map("", MAP_TYPE_ARRAY, [4, size_of::<V>() as u32, entries], 0)
}

/// A hash map that only user space knows; takes memory for what is in it.
pub(super) fn hash<K: Plain, V: Plain>(entries: u32) -> io::Result<OwnedFd> {
    const HASH: u32 = 1;
    const NO_PREALLOC: u32 = 1;
    create_map("", HASH, [size_of::<K>() as u32, size_of::<V>() as u32, entries], NO_PREALLOC)
}

/// A map of one value that nobody can change any more: the verifier takes its bytes for constants.
pub(super) fn constants(name: &str, data: &[u8]) -> io::Result<OwnedFd> {
    const READ_ONLY_FOR_PROGRAMS: u32 = 1 << 7;
    let size = u32::try_from(data.len()).map_err(io::Error::other)?;
    let map = create_map(name, MAP_TYPE_ARRAY, [4, size, 1], READ_ONLY_FOR_PROGRAMS)?;
    bpf(MAP_UPDATE_ELEM, &mut element(map.as_fd(), &0_u32, data.as_ptr().cast_mut()))?;
    bpf(MAP_FREEZE, &mut map.as_raw_fd())?;
    Ok(map)
}

/// A map of a type with a size of keys, one of values, and a number of entries.
pub(super) fn create_map(name: &str, map_type: u32, sizes: [u32; 3], flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate { map_type, sizes, flags, inner: 0, numa_node: 0, name: short(name) };
    owned(bpf(MAP_CREATE, &mut attributes)?)
}

/// What the kernel keeps of the name of a map or program.
pub(super) fn short(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    short
}

/// Keeps an object under a name in bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = name(path)?;
    bpf(OBJ_PIN, &mut Object { path: path.as_ptr() as u64, fd: object.as_raw_fd(), flags: 0 }).map(drop)
}

/// The object that is kept under a name in bpffs.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = name(path)?;
    owned(bpf(OBJ_GET, &mut Object { path: path.as_ptr() as u64, fd: 0, flags: 0 })?)
}

fn name(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Runs of a program that the kernel left out because it ran on that CPU already; 0 where the kernel does not count them.
pub(super) fn missed_runs(program: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(information::<ProgramInformation>(program)?.missed)
}

/// Calls that a link on many kprobes did not see, for lack of a place to note their return; 0 where the kernel does not count them
/// (below 6.7).
pub(super) fn missed_calls(link: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(information::<ProbesInformation>(link)?.missed)
}

/// What the kernel tells of an object, as far as `T` has room for it.
pub(super) fn inform<T>(object: BorrowedFd<'_>, information: &mut T) -> io::Result<()> {
    let length = size_of::<T>() as u32;
    let information = std::ptr::from_mut(information) as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut Information { object: object.as_raw_fd(), length, information }).map(drop)
}

/// The same, of what needs to be told nothing.
fn information<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut information = T::default();
    inform(object, &mut information)?;
    Ok(information)
}

/// Turns the kernel's run-time statistics on for as long as the result lives.
pub(super) fn enable_statistics() -> io::Result<OwnedFd> {
    owned(bpf(ENABLE_STATS, &mut 0_u32)?)
}

/// The file descriptor that a call returned.
pub(super) fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_a_signal_broke_off_is_tried_again_and_a_refusal_is_not() {
        let attempts = |numbers: &[i32]| {
            let mut given = numbers.iter().chain(std::iter::repeat(&libc::EAGAIN));
            let mut count = 0;
            let loaded = uninterrupted(
                || {
                    count += 1;
                    match given.next() {
                        None | Some(0) => Ok(()),
                        Some(number) => Err(*number),
                    }
                },
                |number| Some(*number),
            );
            (count, loaded)
        };
        assert_eq!(attempts(&[0]), (1, Ok(())));
        assert_eq!(attempts(&[libc::EAGAIN, libc::EAGAIN, 0]), (3, Ok(())));
        assert_eq!(attempts(&[libc::EAGAIN, libc::EPERM]), (2, Err(libc::EPERM)));
        assert_eq!(attempts(&[]), (10, Err(libc::EAGAIN)));
    }
}
