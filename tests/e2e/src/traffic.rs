//! Traffic: real programs started in a host's namespace, and what they say they did.
//!
//! Takes who asks whom for what; gives a `Report` or, for what stays open, a `Session`. Counts on the wire are
//! truth.rs's.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use interop::beside;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use serde::{Deserialize, Serialize};

use crate::cage::Namespace;
use crate::topology::Protocol;
use crate::truth::Direction;

/// What a server says once all its ports listen.
pub const READY: &str = "ready";

/// What became of a piece of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The other side answered.
    Answered,
    /// The other side refused the connection.
    Refused,
    /// Nobody answered in time.
    Unanswered,
}

/// What a client did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The protocol.
    pub protocol: Protocol,
    /// The client's own end. For ICMP the port is the identifier.
    pub from: SocketAddr,
    /// Whom it asked, before any translation.
    pub to: SocketAddr,
    /// When it began, in milliseconds of the wall clock.
    pub started_ms: u64,
    /// When it had done what it reports.
    pub ended_ms: u64,
    /// Requests that were answered.
    pub exchanges: u32,
    /// Bytes given to the kernel.
    pub sent: u64,
    /// Bytes taken from the kernel.
    pub received: u64,
    /// What became of it.
    pub outcome: Outcome,
}

impl Report {
    /// Nothing done yet.
    pub fn new(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Self {
        let started_ms = now_ms();
        let outcome = Outcome::Answered;
        Self { protocol, from, to, started_ms, ended_ms: started_ms, exchanges: 0, sent: 0, received: 0, outcome }
    }

    /// The flow's forward direction as the client's cable shows it.
    pub fn direction(&self) -> Direction {
        Direction { protocol: self.protocol, src: self.from, dst: self.to }
    }
}

/// The wall clock.
pub fn now_ms() -> u64 {
    // A clock before 1970 or far beyond gives 0 and the greatest number: a report's times are for comparing only.
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Whether this kernel knows SCTP's sockets.
pub fn kernel_has_sctp() -> bool {
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).is_ok()
}

/// What a client shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.1 requests on one connection, each answered with so many bytes.
    Http {
        /// How many requests.
        requests: u32,
        /// Bytes of an answer's body.
        bytes: u64,
    },
    /// One transfer of so many bytes over TCP.
    Bulk {
        /// Bytes to the server.
        bytes: u64,
    },
    /// Questions and answers of the same length over TCP, UDP or SCTP.
    Echo {
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// How many questions.
        exchanges: u32,
        /// Bytes of each.
        bytes: u64,
    },
    /// One UDP question and answer from each of so many ports, from the client's on.
    Flood {
        /// How many ports.
        flows: u32,
    },
    /// One UDP datagram from each of so many ports, from the client's on, as fast as they go; nobody waits for an answer.
    Datagrams {
        /// How many ports.
        flows: u32,
    },
    /// One TCP connection after the other, from each of so many ports, from the client's on.
    Connects {
        /// How many ports.
        flows: u32,
    },
    /// The first SYN of a TCP connection from each of so many ports, from the client's on; nobody waits for an answer.
    Syns {
        /// How many ports.
        flows: u32,
    },
    /// A TCP connection and its end.
    Connect {
        /// How long to wait for an answer.
        patience_ms: u64,
    },
    /// Debian's ping.
    Ping {
        /// How many requests.
        count: u32,
        /// Bytes of payload.
        bytes: u64,
    },
}

impl Kind {
    /// The protocol its packets have.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http { .. }
            | Self::Bulk { .. }
            | Self::Connects { .. }
            | Self::Syns { .. }
            | Self::Connect { .. } => Protocol::Tcp,
            Self::Echo { protocol, .. } => protocol,
            Self::Flood { .. } | Self::Datagrams { .. } => Protocol::Udp,
            Self::Ping { .. } => Protocol::Icmp,
        }
    }

    fn command(self, from: SocketAddr, to: SocketAddr) -> Result<Command> {
        if let Self::Ping { count, bytes } = self {
            let mut command = Command::new("ping");
            command.args(["-c", &count.to_string(), "-s", &bytes.to_string(), "-i", "0.05", "-W", "5"]);
            command.args(["-e", &from.port().to_string(), "-I", &from.ip().to_string(), &to.ip().to_string()]);
            return Ok(command);
        }
        let mut command = Command::new(beside("traffic")?);
        let (kind, exchanges, bytes) = match self {
            Self::Http { requests, bytes } => ("http", requests, bytes),
            Self::Bulk { bytes } => ("bulk", 1, bytes),
            Self::Echo { protocol, exchanges, bytes } => (protocol.name(), exchanges, bytes),
            Self::Flood { flows } => ("flood", flows, 100),
            Self::Datagrams { flows } => ("datagrams", flows, 100),
            Self::Connects { flows } => ("connects", flows, 0),
            Self::Syns { flows } => ("syns", flows, 0),
            Self::Connect { .. } | Self::Ping { .. } => ("connect", 1, 0),
        };
        command.args(["ask", kind, "--from", &from.to_string(), "--to", &to.to_string()]);
        command.args(["--exchanges", &exchanges.to_string(), "--bytes", &bytes.to_string()]);
        if let Self::Connect { patience_ms } = self {
            command.args(["--patience-ms", &patience_ms.to_string()]);
        }
        Ok(command)
    }
}

/// Does it, to its end.
pub fn ask(namespace: &Namespace, kind: Kind, from: SocketAddr, to: SocketAddr) -> Result<Report> {
    let mut report = Report::new(kind.protocol(), from, to);
    let mut command = kind.command(from, to)?;
    let output = namespace
        .spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?
        .wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{kind:?} from {from} to {to} in {} failed: {}", namespace.name(), said.trim());
    }
    let Kind::Ping { count, bytes } = kind else {
        let printed = String::from_utf8_lossy(&output.stdout);
        return serde_json::from_str(printed.lines().last().unwrap_or_default()).context("the client's report");
    };
    report.exchanges = count;
    report.sent = u64::from(count) * (bytes + 8);
    report.received = report.sent;
    report.ended_ms = now_ms();
    Ok(report)
}

/// A connection that stays open until it is closed or dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    questions: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
    latest: Report,
}

impl Session {
    /// Connects and does the first exchanges.
    pub fn open(namespace: &Namespace, kind: Kind, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        ensure!(!matches!(kind, Kind::Ping { .. }), "ping cannot be held open");
        let mut command = kind.command(from, to)?;
        let mut child = namespace
            .spawn(command.arg("--hold").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
        let questions = child.stdin.take();
        let reports = BufReader::new(child.stdout.take().context("the client's output")?);
        let mut session = Self { child, questions, reports, latest: Report::new(kind.protocol(), from, to) };
        session.read()?;
        Ok(session)
    }

    /// Further exchanges; the report is of all so far.
    pub fn exchange(&mut self, exchanges: u32) -> Result<&Report> {
        let questions = self.questions.as_mut().context("the session is closed")?;
        writeln!(questions, "{exchanges}").context("the client has gone")?;
        self.read()?;
        Ok(&self.latest)
    }

    /// What was done so far.
    pub fn report(&self) -> &Report {
        &self.latest
    }

    /// Ends the connection in good order.
    pub fn close(mut self) -> Result<Report> {
        self.questions.take();
        self.read()?;
        ensure!(self.child.wait()?.success(), "the client failed while closing");
        Ok(self.latest.clone())
    }

    fn read(&mut self) -> Result<()> {
        let mut line = String::new();
        self.reports.read_line(&mut line)?;
        self.latest = serde_json::from_str(&line).with_context(|| format!("the client's report, not {line:?}"))?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.questions.take();
        // It ends by itself at the end of its input; this is for one that hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the lab's servers in a namespace and waits until they listen.
pub(crate) fn serve(namespace: &Namespace) -> Result<Child> {
    let mut command = Command::new(beside("traffic")?);
    let mut child = namespace.spawn(command.arg("serve").stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the servers' output")?).read_line(&mut line)?;
    if line.trim() != READY {
        // The end of its process-id namespace waits until somebody has waited for it.
        let _ = child.kill();
        let _ = child.wait();
        bail!("the servers in {} did not start", namespace.name());
    }
    Ok(child)
}
