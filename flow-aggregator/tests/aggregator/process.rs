//! The aggregator's own binary as a process: its configuration file, its log, its metrics, its end.

use flow_common::net::Protocol;
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// Nothing here takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);

pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    file: PathBuf,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// What every configuration here begins with: free ports on the loopback interface, agents by TCP.
pub(crate) fn ports(settings: &str) -> String {
    ports_for(Protocol::Tcp, settings)
}

fn ports_for(protocol: Protocol, settings: &str) -> String {
    let api = if settings.contains("apiServer:") { "" } else { "apiServer: {apiPort: \"\"}\n" };
    format!(
        "aggregatorTransportProtocol: {protocol}\nlistenAddr: \"127.0.0.1:0\"\nadminAddr: \"127.0.0.1:0\"\n{settings}{api}"
    )
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow-aggregator"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

impl Process {
    /// Starts it with this file, which is written, unless it is a link: then it stands there already.
    pub(crate) fn start(file: &Path, settings: &str) -> Process {
        if !file.is_symlink() {
            fs::write(file, ports(settings)).unwrap();
        }
        Process::spawn(command(&["run", "--config", file.to_str().unwrap()]), file)
    }

    /// Starts it for agents by this protocol.
    pub(crate) fn receiving(protocol: Protocol, file: &Path, settings: &str) -> Process {
        fs::write(file, ports_for(protocol, settings)).unwrap();
        Process::spawn(command(&["run", "--config", file.to_str().unwrap()]), file)
    }

    /// Starts it with a file that is there, as this command does.
    pub(crate) fn spawn(mut command: Command, file: &Path) -> Process {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                written.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut process = Process { child, log, file: file.to_owned(), addr: nowhere, admin: nowhere };
        process.logged("receiving by ");
        let protocol = process.log().split("receiving by ").nth(1).unwrap()[..3].to_owned();
        process.addr = process.told(&format!("receiving by {protocol} on "));
        process.admin = process.told("metrics and health on ");
        process
    }

    /// An address that the log tells.
    pub(crate) fn told(&self, before: &str) -> SocketAddr {
        self.logged(before);
        let log = self.log();
        let rest = log.split(before).nth(1).unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until the log has this.
    pub(crate) fn logged(&self, text: &str) {
        self.wait(text, || self.log().contains(text));
    }

    /// Replaces the file as editors do.
    pub(crate) fn configure(&self, settings: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, ports(settings)).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// What the admin port answers, or why it does not.
    pub(crate) fn ask(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = || {
            let mut stream = TcpStream::connect(self.admin)?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            io::Result::Ok(answer)
        };
        let begin = Instant::now();
        loop {
            // On a machine that is busy the port may take the request for one that is too slow.
            match answer() {
                Ok(answer) if answer.starts_with("HTTP/1.1 ") && !answer.starts_with("HTTP/1.1 408") => return answer,
                told if begin.elapsed() > PATIENCE => return format!("no answer: {told:?}"),
                _ => thread::sleep(STEP),
            }
        }
    }

    /// A metric's value; `None` if there is none of this name and labels.
    pub(crate) fn metric(&self, name: &str) -> Option<u64> {
        let begin = format!("flow_aggregator_{name} ");
        self.ask("/metrics").lines().find_map(|line| line.strip_prefix(&begin)?.parse().ok())
    }

    /// Waits until a metric has this value.
    pub(crate) fn until(&self, name: &str, value: u64) {
        self.wait(&format!("{name} = {value}"), || self.metric(name) == Some(value));
    }

    pub(crate) fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < PATIENCE, "never came: {what}\n{}\n{}", self.log(), self.ask("/metrics"));
            thread::sleep(STEP);
        }
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end\n{}", self.log());
            thread::sleep(STEP);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended in order already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
