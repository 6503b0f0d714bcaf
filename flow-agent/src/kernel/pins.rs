//! What stays in the kernel between two agents, by names in bpffs: the maps, the programs' links, and what the one tells the next.
//!
//! Takes a folder and the shape of the maps; gives the places of both, and what the agent before left there. Each network namespace has a
//! folder of its own, in it each shape one. A folder is one agent's at a time.

use super::clock::now;
use super::namespace;
use super::syscall::{self, Plain, TcxHook};
use flow_common::abi::{self, Key6};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::time::ClockId;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The maps that are kept.
pub(super) const MAPS: [&str; 9] =
    ["flows4", "flows6", "slots", "counters", "ethertypes", "fragments", "events", "ends", "lease"];
/// What only agents read: an [`Account`] by slot, an [`Identity`] by flow.
const MEMORY: &str = "memory";
const IDENTITIES: &str = "identities";
/// Of [`Account`].
const VERSION: u32 = 1;

/// Why nothing is kept.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not a place for it.
    #[error("{} is in no bpffs: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NoBpffs(PathBuf),
    /// Another one runs.
    #[error("another flow-agent has its programs kept in {}: end it, or set another bpf.pinPath", .0.display())]
    Taken(PathBuf),
    /// Anything else.
    #[error("{}: {error}", path.display())]
    Refused {
        /// What was to be made or read.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Sizes that maps have from their beginning on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) max_flows: u32,
    pub(super) max_interfaces: u32,
    pub(super) ring_bytes: u32,
}

/// What an agent tells the next one: of an interface at its slot; at slot 0 of itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Index of the interface; 0 if there is none.
    pub(super) index: u64,
    /// What it carried unseen: packets received and sent. Slot 0: when the maps began (nanoseconds since 1970), and when their agent was
    /// last there (of the monotonic clock).
    pub(super) unseen: [u64; 2],
    /// Packets and bytes that its points counted in entries that are gone from the maps, and more or less by what entries that are there
    /// have under another owner than the present one.
    pub(super) gone: [i64; 2],
}

/// As what a flow has been told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// Its number; 0 if another entry's counters stand for these.
    pub(super) flow_id: u64,
    /// Of the entry; another one's connection is another.
    pub(super) generation: u32,
    /// 1 if its originator is the key's end 1.
    pub(super) reversed: u32,
    /// See [`super::Identified::began`].
    pub(super) began: [u64; 4],
}

// SAFETY: integers without padding.
unsafe impl Plain for Account {}
// SAFETY: integers without padding.
unsafe impl Plain for Identity {}
const _: () = assert!(size_of::<Identity>() == 48);
const _: () = assert!(size_of::<Account>() == 40);

/// A folder that is ours for as long as this lives.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    /// Of other shapes and versions.
    others: Vec<PathBuf>,
    memory: OwnedFd,
    identities: OwnedFd,
    accounts: Vec<(u32, Account)>,
    inherited: Option<Inheritance>,
    _lock: File,
}

/// What the agent before has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inheritance {
    /// When the maps began: nanoseconds since 1970.
    pub born_ns: u64,
    /// When it was last there: nanoseconds since 1970.
    pub alive_ns: u64,
}

impl Pins {
    /// Takes the folder of this network namespace below `root`. What is not to be adopted in it has no maps any more afterwards.
    pub(super) fn open(root: &Path, shape: Shape) -> Result<Self, PinError> {
        let home = home(root)?;
        let Shape { max_flows, max_interfaces, ring_bytes } = shape;
        let name = format!("v{}-{VERSION}-{max_flows}-{max_interfaces}-{ring_bytes}", abi::VERSION);
        let folder = home.join(name);
        fs::create_dir_all(&folder).map_err(refused(&folder))?;
        let lock = lock(&home)?;
        let others = folders(&home)?.into_iter().filter(|other| *other != folder).collect();
        let [memory_at, identities_at] = [MEMORY, IDENTITIES].map(|name| folder.join(name));
        if let (Ok(memory), Ok(identities)) = (syscall::pinned(&memory_at), syscall::pinned(&identities_at)) {
            let accounts = accounts(&memory, max_interfaces).map_err(refused(&memory_at))?;
            let inherited = inherited(&memory).filter(|_| MAPS.iter().all(|map| folder.join(map).exists()));
            if inherited.is_some() {
                return Ok(Self { folder, others, memory, identities, accounts, inherited, _lock: lock });
            }
        }
        for name in MAPS.into_iter().chain([MEMORY, IDENTITIES]) {
            remove(&folder.join(name))?;
        }
        let memory = syscall::array::<Account>(max_interfaces.saturating_add(1)).map_err(refused(&memory_at))?;
        syscall::pin(memory.as_fd(), &memory_at).map_err(refused(&memory_at))?;
        // Of both flow maps.
        let identities =
            syscall::hash::<Key6, Identity>(max_flows.saturating_mul(2)).map_err(refused(&identities_at))?;
        syscall::pin(identities.as_fd(), &identities_at).map_err(refused(&identities_at))?;
        let pins = Self { folder, others, memory, identities, accounts: Vec::new(), inherited: None, _lock: lock };
        pins.remember(0, &Account { unseen: [now(ClockId::Realtime), 0], ..Account::default() });
        Ok(pins)
    }

    /// What is adopted; none if everything begins anew.
    pub fn inherited(&self) -> Option<Inheritance> {
        self.inherited
    }

    /// What is adopted of the interfaces, with their slots.
    pub(super) fn accounts(&self) -> &[(u32, Account)] {
        &self.accounts
    }

    /// Where a map is kept.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Says that the agent is there.
    pub(super) fn live(&self) {
        let mut own: Account = syscall::lookup(self.memory.as_fd(), &0_u32).ok().flatten().unwrap_or_default();
        own.unseen[1] = now(ClockId::Monotonic);
        self.remember(0, &own);
    }

    /// Leaves an account to the next agent.
    pub(super) fn remember(&self, slot: u32, account: &Account) {
        // An array has all its keys, so there is nothing that could be refused.
        let _ = syscall::update(self.memory.as_fd(), &slot, *account);
    }

    /// Leaves to the next agent as what a flow has been told of. Without room it is another flow to that one.
    pub(super) fn identify(&self, key: Key6, identity: Identity) {
        let _ = syscall::update(self.identities.as_fd(), &key, identity);
    }

    /// As what the agent before has told of a flow.
    pub(super) fn identity(&self, key: Key6) -> Option<Identity> {
        syscall::lookup(self.identities.as_fd(), &key).ok().flatten()
    }

    /// The maps have the flow no more.
    pub(super) fn forget(&self, key: Key6) {
        let _ = syscall::delete(self.identities.as_fd(), &key);
    }

    /// The kept link of an interface's hook, whoever kept it.
    pub(super) fn link(&self, index: u32, hook: TcxHook) -> Option<OwnedFd> {
        let folders = std::iter::once(&self.folder).chain(&self.others);
        let kept = folders.filter_map(|folder| syscall::pinned(&folder.join(link_name(index, hook))).ok());
        // An index may be another interface's by now.
        { kept }.find(|link| syscall::link_interface(link.as_fd()).is_ok_and(|there| there == index))
    }

    /// Keeps a link from now on instead of the one before.
    pub(super) fn keep_link(&self, index: u32, hook: TcxHook, link: BorrowedFd<'_>) -> io::Result<()> {
        let path = self.folder.join(link_name(index, hook));
        let _ = fs::remove_file(&path);
        syscall::pin(link, &path)
    }

    /// Keeps an interface's links no more.
    pub(super) fn forget_links(&self, index: u32) {
        for hook in TcxHook::BOTH {
            let _ = fs::remove_file(self.folder.join(link_name(index, hook)));
        }
    }

    /// Lets go what was kept in other folders, and of interfaces that are not among these.
    pub(super) fn tidy(&mut self, there: impl Fn(u32) -> bool) {
        for other in std::mem::take(&mut self.others) {
            // What cannot be removed is tried again by the next agent.
            let _ = clear(&other);
        }
        for path in files(&self.folder).unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let index = name.strip_prefix("link-").and_then(|rest| rest.split('-').next()?.parse().ok());
            if index.is_some_and(|index| !there(index)) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Lets everything go that is kept for this network namespace below `root`; gives how many things that were.
pub(super) fn release(root: &Path) -> Result<usize, PinError> {
    let home = home(root)?;
    if !home.exists() {
        return Ok(0);
    }
    let _lock = lock(&home)?;
    let mut count = 0;
    for folder in folders(&home)? {
        count += clear(&folder)?;
    }
    fs::remove_dir(&home).map_err(refused(&home))?;
    // Others may have theirs there.
    let _ = fs::remove_dir(root);
    Ok(count)
}

/// The folder of this network namespace, if `root` is in a bpffs.
fn home(root: &Path) -> Result<PathBuf, PinError> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let kind = statfs(there).map_err(|error| refused(there)(error.into()))?.f_type;
    if kind.cast_unsigned() != BPF_FS_MAGIC {
        return Err(PinError::NoBpffs(root.to_owned()));
    }
    let number = namespace::number().map_err(refused(Path::new("/proc/thread-self/ns/net")))?;
    Ok(root.join(format!("net-{number}")))
}

fn lock(home: &Path) -> Result<File, PinError> {
    let folder = File::open(home).map_err(refused(home))?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(_) => Err(PinError::Taken(home.to_owned())),
    }
}

fn inherited(memory: &OwnedFd) -> Option<Inheritance> {
    let own: Account = syscall::lookup(memory.as_fd(), &0_u32).ok()??;
    let [born_ns, alive_ns] = own.unseen;
    let away_ns = now(ClockId::Monotonic).checked_sub(alive_ns)?;
    // Its programs fall silent when the lease is over: what they counted is not all any more.
    let counts = alive_ns > 0 && away_ns < u64::from(abi::LEASE_MS) * 1_000_000;
    counts.then(|| Inheritance { born_ns, alive_ns: now(ClockId::Realtime).saturating_sub(away_ns) })
}

fn accounts(memory: &OwnedFd, max_interfaces: u32) -> io::Result<Vec<(u32, Account)>> {
    let mut accounts = Vec::new();
    for slot in 1..=max_interfaces {
        let account = syscall::lookup::<u32, Account>(memory.as_fd(), &slot)?;
        accounts.extend(account.filter(|account| account.index != 0).map(|account| (slot, account)));
    }
    Ok(accounts)
}

fn link_name(index: u32, hook: TcxHook) -> String {
    match hook {
        TcxHook::Ingress => format!("link-{index}-ingress"),
        TcxHook::Egress => format!("link-{index}-egress"),
    }
}

fn folders(home: &Path) -> Result<Vec<PathBuf>, PinError> {
    Ok(files(home).map_err(refused(home))?.into_iter().filter(|path| path.is_dir()).collect())
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Removes a folder and what is in it; gives how many things that were.
fn clear(folder: &Path) -> Result<usize, PinError> {
    let files = files(folder).map_err(refused(folder))?;
    for file in &files {
        remove(file)?;
    }
    fs::remove_dir(folder).map_err(refused(folder))?;
    Ok(files.len())
}

fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(path)(error)),
        _ => Ok(()),
    }
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |error| PinError::Refused { path, error }
}
