//! flow-aggregator as shipped, as a process: its configuration, its log, its sinks' metrics, its end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::{PATIENCE, Process, beside};
use crate::wait::eventually;

/// The process, which is killed with its value.
#[derive(Debug)]
pub struct Aggregator {
    process: Process,
    folder: tempfile::TempDir,
    /// Where it receives by TCP.
    pub addr: SocketAddr,
    admin: SocketAddr,
}

impl Aggregator {
    /// Starts it with these settings beside ports of the loopback and with this environment, and waits until it listens.
    pub fn start(settings: &str, environment: &[(&str, &str)]) -> Result<Aggregator> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("flow-aggregator.conf");
        std::fs::write(&file, configuration(settings))?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(beside("flow-aggregator")?);
        command.args(["run", "--config"]).arg(file).env_remove("RUST_LOG").envs(environment.iter().copied());
        let process = Process::spawn(command.stdin(Stdio::null()).stderr(log))?;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut aggregator = Aggregator { process, folder, addr: nowhere, admin: nowhere };
        aggregator.addr = aggregator.told("receiving by tcp on ")?;
        aggregator.admin = aggregator.told("metrics and health on ")?;
        Ok(aggregator)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A metric of the ClickHouse sink.
    pub fn sink(&self, metric: &str) -> Result<u64> {
        clickhouse_metric(self.admin, metric)
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Ends it in order, and gives its log.
    pub fn end(mut self) -> Result<String> {
        let status = self.process.end().with_context(|| self.log())?;
        ensure!(status.success(), "{status}: {}", self.log());
        Ok(self.log())
    }

    /// An address that the log tells behind these words.
    fn told(&self, before: &str) -> Result<SocketAddr> {
        eventually(PATIENCE, || {
            let log = self.log();
            // A line that is being written may end in the address.
            let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let found = lines.filter_map(|line| line.split(before).nth(1)?.split_whitespace().next()).next();
            Ok(found.with_context(|| format!("no {before:?} in its log: {log}"))?.parse()?)
        })
    }
}

/// A configuration with these settings beside ports of the loopback: agents come by TCP, and there is no API.
pub fn configuration(settings: &str) -> String {
    format!(
        "aggregatorTransportProtocol: tcp\nlistenAddr: \"127.0.0.1:0\"\nadminAddr: \"127.0.0.1:0\"\n\
         apiServer: {{apiPort: \"\"}}\n{settings}"
    )
}

/// A metric of the ClickHouse sink, from the port at which the aggregator serves metrics. Beside busy servers a request may take longer
/// than the port waits for it, and is not answered then: it is asked again.
pub fn clickhouse_metric(admin: SocketAddr, metric: &str) -> Result<u64> {
    eventually(PATIENCE, || ask(admin, metric))
}

fn ask(admin: SocketAddr, metric: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let name = format!("flow_aggregator_sink_{metric}{{sink=\"clickhouse\"}} ");
    let value = answer.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| answer.clone())?;
    Ok(value.parse()?)
}
