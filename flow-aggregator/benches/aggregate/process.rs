//! The aggregator as shipped, a process of its own, and what the kernel and its admin port tell of it.

use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(300);
/// A look costs the process the writing of all its metrics.
const STEP: Duration = Duration::from_millis(100);

pub(crate) struct Aggregator {
    child: Child,
    /// Where it takes records.
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Aggregator {
    /// Starts it with these further settings, and waits until this sink is open.
    pub(crate) fn start(program: &Path, settings: &str, sink: &str) -> Result<Aggregator> {
        let folder = tempfile::tempdir()?;
        let (listen, admin) = (free_port()?, free_port()?);
        let file = folder.path().join("flow-aggregator.conf");
        let ports = format!("listenAddr: \"{listen}\"\nadminAddr: \"{admin}\"\napiServer: {{apiPort: \"\"}}\n");
        std::fs::write(&file, ports + settings)?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(&file).stdin(Stdio::null()).stderr(log);
        let aggregator = Aggregator { child: command.spawn()?, listen, admin, _folder: folder };
        let open = format!("sink_connected{{sink=\"{sink}\"}}");
        until("the aggregator comes up", || Ok(aggregator.metric(&open).is_ok_and(|open| open == 1)))?;
        Ok(aggregator)
    }

    /// The value of the metric with this name and these labels.
    pub(crate) fn metric(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let begin = format!("flow_aggregator_{name} ");
        Ok(answer.lines().find_map(|line| line.strip_prefix(&begin)).with_context(|| answer.clone())?.parse()?)
    }

    /// CPU seconds so far, of all its threads, also of those that have ended.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // utime and stime are the 12th and 13th behind the name.
        let (_, fields) = text.rsplit_once(')').context("no name")?;
        let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Bytes of its memory by this line of /proc/PID/status: `VmRSS` is resident now, `VmHWM` was at most.
    pub(crate) fn memory(&self, line: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value =
            status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).context("no such line")?;
        Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }
}

impl Drop for Aggregator {
    fn drop(&mut self) {
        // Ended already, or to be ended by force.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// A port of the loopback that was free a moment ago.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
