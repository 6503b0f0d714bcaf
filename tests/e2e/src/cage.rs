//! Where the lab lives: one process-id namespace with a keeper as its first process, a scratch folder, and anonymous
//! network namespaces.
//!
//! Takes programs to run, gives processes inside. Nothing is named in the machine's own namespaces, so two labs never
//! meet, and nothing can be left behind: the keeper waits on a pipe that only this process holds, so however this
//! process ends, SIGKILL included, the keeper ends, the kernel kills every process in its namespace, the network
//! namespaces go with their last user, and the keeper's parent removes the scratch folder.
//!
//! Deliberately not here: what the namespaces are wired to (wiring.rs).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Prints the shell's own process id as /proc has it, then waits for the end of its input.
const WAIT_FOR_EOF: &str = "read -r pid rest </proc/self/stat; echo $pid; exec cat >/dev/null";

/// The process-id namespace and the scratch folder of one lab.
#[derive(Debug)]
pub struct Cage {
    id: String,
    scratch: PathBuf,
    keeper: Child,
    lifeline: Option<ChildStdin>,
    processes: Arc<OwnedFd>,
}

impl Cage {
    /// A new, empty cage. Needs root.
    pub fn new() -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the lab makes network namespaces, which needs root: run it as root or through sudo"
        );
        let scratch = tempfile::Builder::new().prefix("flow-lab-").tempdir().context("a scratch folder")?.keep();
        let id = scratch.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut keeper = Command::new("sh")
            .arg("-c")
            .arg(format!("unshare --pid --fork --kill-child sh -c '{WAIT_FOR_EOF}'; rm -rf -- \"$1\""))
            .arg(&id)
            .arg(&scratch)
            // Its own process group: Ctrl-C on the terminal is for us, the keeper cleans up after us.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare (package util-linux)")?;
        let lifeline = keeper.stdin.take();
        let pid = first_line(keeper.stdout.take()).context("the keeper of the lab's processes did not start")?;
        let processes = File::open(format!("/proc/{pid}/ns/pid")).context("the lab's process-id namespace")?;
        Ok(Self { id, scratch, keeper, lifeline, processes: Arc::new(processes.into()) })
    }

    /// A word that no other lab on this machine has.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process whose end is the lab's end.
    pub fn keeper(&self) -> u32 {
        self.keeper.id()
    }

    /// A folder that lives as long as the cage.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A new network namespace with nothing in it but a loopback device that is down.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", WAIT_FOR_EOF])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare (package util-linux)")?;
        let lifeline = holder.stdin.take();
        let pid = first_line(holder.stdout.take()).with_context(|| format!("no network namespace for {name}"))?;
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        drop(lifeline);
        holder.wait()?;
        Ok(Namespace { name: name.to_owned(), network: network.into(), processes: Arc::clone(&self.processes) })
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        self.lifeline.take();
        // Fails only if somebody else has waited for it; it is gone then as well.
        let _ = self.keeper.wait();
    }
}

/// One network namespace of the lab.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    network: OwnedFd,
    processes: Arc<OwnedFd>,
}

impl Namespace {
    /// What it stands for: a Node, a Pod, a host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other programs of this machine can open the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }

    /// Calls `work` on a thread inside: sockets it opens and processes it starts belong to the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = || -> Result<T> {
            move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
            move_into_link_name_space(self.processes.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
            Ok(work())
        };
        match std::thread::scope(|scope| scope.spawn(entered).join()) {
            Ok(result) => result.with_context(|| format!("cannot enter the namespace of {}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a program inside. Whoever takes it ends it.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.within(|| command.process_group(0).spawn())?
            .with_context(|| format!("cannot start {program} in {}", self.name))
    }

    /// Runs a program inside to its end and gives what it printed; its failure is an error with its words.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.feed(program, args, "")
    }

    /// As `run`, with `input` on its standard input.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let mut child = self.spawn(
            Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()),
        )?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).or_else(ignore_broken_pipe)?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} in {} failed ({}): {}", args.join(" "), self.name, output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a kernel parameter of the namespace, named with slashes below /proc/sys/net.
    pub fn set(&self, parameter: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{parameter}");
        self.within(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot set {path} to {value} in {}", self.name))
    }
}

/// A program that ended before it read all of its input has said why by its exit status.
fn ignore_broken_pipe(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

fn first_line(stdout: Option<ChildStdout>) -> Result<u32> {
    let mut line = String::new();
    BufReader::new(stdout.context("no output")?).read_line(&mut line)?;
    line.trim().parse().with_context(|| format!("expected a process id, not {line:?}"))
}
