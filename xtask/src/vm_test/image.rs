//! A virtual machine's only file system: busybox, the host's network tools with their libraries, the modules of the kernel that a Node
//! would have loaded, the programs under test, and the list of what to run.

use super::archive::Archive;
use super::kernels::Kernel;
use super::programs::{Program, Run};
use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the machine runs first.
const INIT: &str = include_str!("init.sh");

/// Programs of this machine that the tests use. A shell of its own, because busybox's prefers its own ip, ping and unshare to those.
const TOOLS: [&str; 10] = ["sh", "ip", "tc", "nft", "conntrack", "ping", "unshare", "nsenter", "setpriv", "kmod"];
/// Names under which kmod does the work of each.
const KMOD: [&str; 4] = ["modprobe", "insmod", "rmmod", "lsmod"];
/// What names protocols and ports for nft and conntrack.
const NAMES: [&str; 2] = ["/etc/protocols", "/etc/services"];
/// Folders that are there before anything is mounted.
const FOLDERS: [&str; 13] = [
    "bin",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "lib64",
    "proc",
    "product",
    "product/deps",
    "results",
    "run",
    "sys",
    "tmp",
];

/// Modules that a Node has loaded, or that the lab's topologies and rules need.
const MODULES: [&str; 33] = [
    "virtio_pci",
    "virtio_blk",
    "veth",
    "dummy",
    "tun",
    "bridge",
    "8021q",
    "sch_ingress",
    "sch_tbf",
    "cls_bpf",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    // A module of its own to 5.17.
    "nft_counter",
    "nft_objref",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_limit",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_numgen",
    "nf_flow_table",
    "nft_flow_offload",
    "sctp",
];

/// Writes the archive for a kernel.
pub(super) fn write(path: &Path, kernel: &Kernel, programs: &[Program], runs: &[Run]) -> Result<()> {
    let mut archive = Archive::create(path)?;
    for folder in FOLDERS {
        archive.folder(folder)?;
    }
    for (name, target) in [("sbin", "bin"), ("usr", ".")] {
        archive.link(name, target)?;
    }
    archive.program("init", INIT.as_bytes())?;
    tools(&mut archive)?;
    modules(&mut archive, kernel)?;
    for name in NAMES.iter().filter(|name| Path::new(name).exists()) {
        archive.copy(name.trim_start_matches('/'), Path::new(name))?;
    }
    for program in programs {
        let folder = if program.is_test { "product/deps" } else { "product" };
        archive.copy(&format!("{folder}/{}", program.name), &program.file)?;
    }
    archive.data("runs", runs.iter().map(|run| run.line() + "\n").collect::<String>().as_bytes())?;
    archive.finish()
}

fn tools(archive: &mut Archive) -> Result<()> {
    let mut libraries = BTreeSet::new();
    let mut copy = |archive: &mut Archive, name: &str| -> Result<()> {
        let path = shell::which(name).with_context(|| format!("{name} is not installed"))?;
        libraries.extend(libraries_of(&path));
        archive.copy(&format!("bin/{name}"), &path)
    };
    copy(archive, "busybox")?;
    for tool in TOOLS {
        copy(archive, tool)?;
    }
    for name in KMOD {
        archive.link(&format!("bin/{name}"), "kmod")?;
    }
    let applets = shell::output(Command::new("busybox").arg("--list")).context("busybox does not run")?;
    for applet in
        applets.lines().filter(|applet| *applet != "busybox" && !TOOLS.contains(applet) && !KMOD.contains(applet))
    {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    let mut folders: BTreeSet<PathBuf> = FOLDERS.map(PathBuf::from).into();
    for library in libraries {
        let name = library.trim_start_matches('/').trim_start_matches("usr/");
        folder(archive, Path::new(name).parent(), &mut folders)?;
        archive.copy(name, Path::new(&library))?;
    }
    Ok(())
}

/// A folder and those that it is in, each once.
fn folder(archive: &mut Archive, path: Option<&Path>, there: &mut BTreeSet<PathBuf>) -> Result<()> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty() && !there.contains(*path)) else { return Ok(()) };
    folder(archive, path.parent(), there)?;
    there.insert(path.to_owned());
    archive.folder(&path.to_string_lossy())
}

/// The paths of a program's libraries and of their loader; none of a static one.
fn libraries_of(program: &Path) -> Vec<String> {
    let listing = shell::output(Command::new("ldd").arg(program)).unwrap_or_default();
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    listing.lines().filter_map(path).collect()
}

/// The wanted modules and what they depend on, unpacked, with the lists that modprobe reads.
fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let modprobe = shell::which("modprobe").context("modprobe is not installed")?;
    let mut files = BTreeSet::new();
    let mut wanted = Vec::new();
    for module in MODULES {
        let mut show = Command::new(&modprobe);
        // Without this machine's options for modules.
        show.args(["-C", "/dev/null", "-d"]).arg(&kernel.folder);
        show.args(["-S", &kernel.release, "--show-depends", module]);
        // A kernel without it may have it built in, or is one that the tests tell of.
        let Some(listing) = shell::output(&mut show) else { continue };
        files.extend(listing.lines().filter_map(|line| Some(line.strip_prefix("insmod ")?.trim().to_owned())));
        wanted.push(module);
    }
    ensure!(!files.is_empty(), "{kernel} has none of the modules that the tests need");
    let tree = std::env::temp_dir().join(format!("flow-modules-{}-{}", kernel.release, std::process::id()));
    let result = unpack(&tree, kernel, &files).and_then(|()| copy_tree(archive, &tree, kernel));
    let removed = std::fs::remove_dir_all(&tree);
    result?;
    removed?;
    archive.data("modules", wanted.join("\n").as_bytes())
}

/// Modules without compression, which costs much under emulation, in a tree that depmod has read.
fn unpack(tree: &Path, kernel: &Kernel, files: &BTreeSet<String>) -> Result<()> {
    let folder = tree.join("lib/modules").join(&kernel.release);
    std::fs::create_dir_all(&folder)?;
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let list = kernel.folder.join("lib/modules").join(&kernel.release).join(list);
        if let Some(name) = list.file_name().filter(|_| list.exists()) {
            std::fs::copy(&list, folder.join(name))?;
        }
    }
    for file in files {
        let file = Path::new(file);
        let name = file.file_name().context("a module's name")?.to_string_lossy();
        let content = match name.strip_suffix(".xz") {
            Some(_) => Command::new("xz").arg("-dc").arg(file).output()?.stdout,
            None => std::fs::read(file)?,
        };
        ensure!(!content.is_empty(), "{} cannot be unpacked", file.display());
        std::fs::write(folder.join(name.trim_end_matches(".xz")), content)?;
    }
    let depmod = shell::which("depmod").context("depmod is not installed")?;
    let status = Command::new(depmod).arg("-b").arg(tree).arg(&kernel.release).status()?;
    if !status.success() {
        bail!("depmod ended with {status}");
    }
    Ok(())
}

fn copy_tree(archive: &mut Archive, tree: &Path, kernel: &Kernel) -> Result<()> {
    let name = format!("lib/modules/{}", kernel.release);
    archive.folder(&name)?;
    for entry in std::fs::read_dir(tree.join(&name))? {
        let entry = entry?;
        archive.copy(&format!("{name}/{}", entry.file_name().to_string_lossy()), &entry.path())?;
    }
    Ok(())
}
