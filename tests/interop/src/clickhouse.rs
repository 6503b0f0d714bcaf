//! ClickHouse servers on the loopback: Debian's of 2018, which speaks TLS itself, and a modern one out of libchdb.so.
//! Each has its data in a folder of its own, survives `kill -9` and can be started again on it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Certificates;
use crate::process::{PATIENCE, Process, beside, free_port};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Debian's, 18.16.
    Old,
    /// 26.7.
    Modern,
}

/// A server.
#[derive(Debug)]
pub struct ClickHouse {
    age: Age,
    folder: PathBuf,
    /// http, tcp, https, tls; the latter two of the old one alone.
    ports: [u16; 4],
    process: Option<Process>,
    /// The folder, where it is its own.
    _own: Option<tempfile::TempDir>,
}

/// What users.xml says: `default` without a password, `flow` with one, and `flow_aggregator` with the documented rights alone.
const USERS: &str = include_str!("clickhouse/users.xml");
const OLD: &str = include_str!("clickhouse/old.xml");
const MODERN: &str = include_str!("clickhouse/modern.xml");
/// Of a server that is in no cluster but its own.
const ALONE: &str = "<remote_servers><test><shard><replica><host>127.0.0.1</host><port>{PORT_TCP}</port></replica></shard></test></remote_servers>";
/// The program that becomes a server.
const STARTER: &str = "clickhouse";
/// Tells the program `clickhouse` to end when whoever started it does.
const END_WITH_PARENT: &str = "CLICKHOUSE_END_WITH_PARENT";
/// Opens its ports, then sleeps for longer than any test.
const LISTEN: &str = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; SELECT sleepEachRow(1) FROM numbers(36000) SETTINGS max_block_size = 1";

impl ClickHouse {
    /// Starts one in a folder of its own. The old one shows `certificates` on its ports for TLS.
    pub fn start(age: Age, certificates: &Certificates) -> Result<ClickHouse> {
        let mut server = ClickHouse::new(age)?;
        server.configure(Some(certificates), ALONE)?;
        server.start_again()?;
        Ok(server)
    }

    /// One that is not configured yet, in a folder of its own.
    pub(crate) fn new(age: Age) -> Result<ClickHouse> {
        let own = tempfile::tempdir()?;
        let server = ClickHouse::at(age, own.path())?;
        Ok(ClickHouse { _own: Some(own), ..server })
    }

    fn at(age: Age, folder: &Path) -> Result<ClickHouse> {
        let mut ports = [0; 4];
        for port in &mut ports {
            *port = free_port()?;
        }
        Ok(ClickHouse { age, folder: folder.to_owned(), ports, process: None, _own: None })
    }

    /// Writes the configuration of one into a folder, for somebody else to start it by [`command`](Self::command).
    pub fn prepare(age: Age, folder: &Path, certificates: Option<&Certificates>) -> Result<ClickHouse> {
        let server = ClickHouse::at(age, folder)?;
        server.configure(certificates, ALONE)?;
        Ok(server)
    }

    /// Writes its configuration; `cluster` is the part that tells of other servers.
    pub(crate) fn configure(&self, certificates: Option<&Certificates>, cluster: &str) -> Result<()> {
        let folder = &self.folder;
        let certificates = certificates.map_or(folder.as_path(), Certificates::folder);
        let text = if self.age == Age::Old { OLD } else { MODERN };
        let mut text = text
            .replace("DIR", &folder.to_string_lossy())
            .replace("CERTIFICATES", &certificates.to_string_lossy())
            .replace("{CLUSTER}", cluster);
        for (name, port) in ["PORT_HTTP", "PORT_TCP", "PORT_SECURE_HTTP", "PORT_SECURE_TCP"].iter().zip(self.ports) {
            text = text.replace(&format!("{{{name}}}"), &port.to_string());
        }
        std::fs::write(folder.join("config.xml"), text)?;
        Ok(std::fs::write(folder.join("users.xml"), USERS)?)
    }

    /// Starts it on the data that it has, and waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = Some(Process::spawn(self.command()?.env(END_WITH_PARENT, "1"))?);
        let begun = Instant::now();
        while self.ask("SELECT 1").is_err() {
            let ended =
                self.process.as_mut().is_some_and(|process| process.0.try_wait().is_ok_and(|end| end.is_some()));
            ensure!(!ended && begun.elapsed() < PATIENCE, "the server does not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What starts it.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(beside(STARTER)?);
        match self.age {
            Age::Old => command.arg("/usr/sbin/clickhouse-server").arg("--config-file=config.xml"),
            Age::Modern => command
                .arg(library()?)
                .args(["--config-file", "config.xml", "--path", "data", "--listen_host", "127.0.0.1"])
                .args(["--http_port", &self.ports[0].to_string(), "--tcp_port", &self.ports[1].to_string()])
                .args(["--query", LISTEN]),
        };
        let log = std::fs::File::options().append(true).create(true).open(self.folder.join("output.log"))?;
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Kills it, as the kernel kills what takes too much memory.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again if it has ended by itself: libchdb's server does so, unlike ClickHouse's own, a moment after a
    /// connection of the native protocol ended with an exception before its first query.
    pub fn revive(&mut self) -> Result<()> {
        let running = match &mut self.process {
            Some(process) => process.0.try_wait()?.is_none(),
            None => false,
        };
        if running { Ok(()) } else { self.start_again() }
    }

    /// Where it listens for the native protocol or HTTP in the clear, or (the old one) for either by TLS.
    pub fn addr(&self, scheme: &str) -> SocketAddr {
        let at = ["http", "tcp", "https", "tls"].iter().position(|known| *known == scheme).unwrap_or_default();
        SocketAddr::from(([127, 0, 0, 1], self.ports[at]))
    }

    /// Asks over HTTP, as `default`, in the database `default`; tab-separated lines come back.
    pub fn ask(&self, sql: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.addr("http"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = "POST /?wait_end_of_query=1 HTTP/1.0\r\nConnection: close\r\n";
        write!(stream, "{head}Content-Length: {}\r\n\r\n{sql}", sql.len())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "{sql}: {body}");
        let chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
        ensure!(!chunked, "an answer in chunks to a request of HTTP/1.0");
        Ok(body.trim_end().to_owned())
    }

    /// The one number that the question has for an answer.
    pub fn number(&self, sql: &str) -> Result<u64> {
        let answer = self.ask(sql)?;
        answer.parse().with_context(|| format!("{sql}: {answer}"))
    }

    /// What it wrote while it came up.
    pub fn log(&self) -> String {
        ["output.log", "log/error.log"]
            .iter()
            .filter_map(|file| std::fs::read_to_string(self.folder.join(file)).ok())
            .collect()
    }
}

/// Begins a command whose program ends when whoever started it does; what follows are its path and arguments.
pub(crate) fn ending_with_parent() -> Result<Command> {
    let mut command = Command::new(beside(STARTER)?);
    command.env(END_WITH_PARENT, "1");
    Ok(command)
}

/// Where `cargo xtask setup` put the modern server.
fn library() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/lib/libchdb.so");
    ensure!(path.exists(), "{} is missing: `cargo xtask setup` fetches it", path.display());
    Ok(path.canonicalize()?)
}
