//! Collectors and exporters that are not ours, as processes on the loopback: go-ipfix's (built from the Go module beside
//! this crate), nfdump's nfcapd, tshark, and ClickHouse servers, old and modern. What they say comes back as values; what they receive is the tests'.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

mod clickhouse;
mod go;
mod nfcapd;
mod relay;
mod tshark;

pub use clickhouse::{Age, ClickHouse, beside, free_port};
pub use go::{Certificates, Collector, Exporter, Record};
pub use nfcapd::Nfcapd;
pub use relay::{Cut, Relay};
pub use tshark::Tshark;

/// How long a foreign program may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child that does not outlive its value.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn spawn(command: &mut Command) -> Result<Process> {
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| {
            format!("{} does not start; `cargo xtask setup` installs what is missing", program.display())
        })?;
        Ok(Process(child))
    }

    /// Lines of its standard output or error, as they come.
    fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
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
    fn end(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).context("ending a process")?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.0.try_wait()?.is_none() {
            ensure!(begun.elapsed() < PATIENCE, "process {} does not end", self.0.id());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or to be ended by force.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_so() {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Bytes that wait to be read at this UDP port of the loopback; `None` while nobody listens there.
fn waiting_at_udp_port(port: u16) -> Option<u64> {
    let sockets = std::fs::read_to_string("/proc/net/udp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let socket = sockets.lines().find(|line| line.split_whitespace().nth(1) == Some(&local))?;
    let (_, waiting) = socket.split_whitespace().nth(4)?.split_once(':')?;
    u64::from_str_radix(waiting, 16).ok()
}

/// A UDP port of the loopback that was free a moment ago.
fn free_udp_port() -> Result<u16> {
    Ok(std::net::UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The folder with the Go programs, built once a process.
fn go_programs() -> Result<&'static PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let target = folder.join("../../target/interop");
        std::fs::create_dir_all(&target)?;
        let mut command = Command::new("go");
        command.args(["build", "-o"]).arg(&target).args(["./collector", "./exporter"]).current_dir(&folder);
        let output = command.output().context("`go` does not start: `cargo xtask setup` installs it or says how")?;
        if !output.status.success() {
            bail!("go build: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(target)
    };
    BUILT
        .get_or_init(|| build().map_err(|error: anyhow::Error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// The child's piped end.
fn piped<T>(end: Option<T>) -> Result<T> {
    end.context("the child's end was not piped")
}

/// A command whose three ends are piped.
fn piped_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
