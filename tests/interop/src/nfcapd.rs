//! nfdump's collector, which takes IPFIX over UDP and writes files that nfdump shows.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Process, free_udp_port, piped, piped_command, until, waiting_at_udp_port};

/// nfcapd, collecting.
#[derive(Debug)]
pub struct Nfcapd {
    /// Where it listens.
    pub addr: SocketAddr,
    folder: tempfile::TempDir,
    log: std::sync::mpsc::Receiver<String>,
    process: Process,
}

impl Nfcapd {
    /// Starts it on a port of the loopback.
    pub fn start() -> Result<Nfcapd> {
        let folder = tempfile::tempdir()?;
        let port = free_udp_port()?;
        let mut command = piped_command("nfcapd");
        command.args(["-b", "127.0.0.1", "-p", &port.to_string(), "-w"]).arg(folder.path());
        let mut process = Process::spawn(&mut command)?;
        let log = Process::lines(piped(process.0.stderr.take())?);
        let _ = process.0.stdout.take();
        until("nfcapd listens", || waiting_at_udp_port(port).is_some())?;
        Ok(Nfcapd { addr: SocketAddr::from(([127, 0, 0, 1], port)), folder, log, process })
    }

    /// Lets it read what waits, ends it, and gives the flows it has, and what it logged.
    pub fn flows(mut self) -> Result<(Vec<Value>, String)> {
        let port = self.addr.port();
        until("nfcapd reads", || waiting_at_udp_port(port) == Some(0))?;
        self.process.end()?;
        let output = Command::new("nfdump")
            .arg("-R")
            .arg(self.folder.path())
            .args(["-o", "json", "-q"])
            .output()
            .context("nfdump")?;
        ensure!(output.status.success(), "nfdump: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        // Without a headline it is a list without brackets.
        let flows = serde_json::from_str(&format!("[{text}]")).with_context(|| text.clone())?;
        Ok((flows, self.log.iter().collect::<Vec<String>>().join("\n")))
    }
}
