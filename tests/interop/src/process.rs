//! Programs as processes that do not outlive whoever started them, and what they need first: where they are, and ports.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// How long a program may take for what it does at once.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A child that does not outlive its value.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Process> {
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| {
            format!("{} does not start; `cargo xtask setup` installs what is missing", program.display())
        })?;
        Ok(Process(child))
    }

    /// Lines of its standard output or error, as they come.
    pub(crate) fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        receiver
    }

    /// Asks it to end, and waits until it did.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).context("ending a process")?;
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let id = self.0.id();
        eventually(PATIENCE, || self.0.try_wait()?.with_context(|| format!("process {id} does not end")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or to be ended by force.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The path of a program that cargo built into the folder of the running one.
pub fn beside(program: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("the path of the running program")?;
    let mut folder = me.parent().context("the folder of the running program")?;
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(program);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace{}` first",
        path.display(),
        if folder.ends_with("release") { " --release" } else { "" }
    );
    Ok(path)
}

/// A port of the loopback that is free, by TCP and by UDP, and not of those that the kernel gives to whoever asks for any. Each call gives
/// another one.
pub(crate) fn free_port() -> Result<u16> {
    const FIRST: u32 = 20_000;
    const PORTS: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes begin elsewhere.
    let begin = std::process::id().wrapping_mul(199);
    let mut ports = std::iter::repeat_with(|| begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS + FIRST);
    let is_free = |port: &u16| {
        let addr = ("127.0.0.1", *port);
        TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok()
    };
    let port = ports.by_ref().take(PORTS as usize).filter_map(|port| port.try_into().ok()).find(is_free);
    port.context("no port is free")
}

/// The child's piped end.
pub(crate) fn piped<T>(end: Option<T>) -> Result<T> {
    end.context("the child's end was not piped")
}

/// A command whose three ends are piped.
pub(crate) fn piped_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
