//! nfdump's collector, which takes IPFIX over UDP and writes files that nfdump shows.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{PATIENCE, Process, free_port, piped, piped_command};
use crate::wait::eventually;

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
        let port = free_port()?;
        let mut command = piped_command("nfcapd");
        command.args(["-b", "127.0.0.1", "-p", &port.to_string(), "-w"]).arg(folder.path());
        let mut process = Process::spawn(&mut command)?;
        let log = Process::lines(piped(process.0.stderr.take())?);
        let _ = process.0.stdout.take();
        eventually(PATIENCE, || waiting_at_udp_port(port).context("nfcapd does not listen"))?;
        Ok(Nfcapd { addr: SocketAddr::from(([127, 0, 0, 1], port)), folder, log, process })
    }

    /// Lets it read what waits, ends it, and gives the flows it has, and what it logged.
    pub fn flows(mut self) -> Result<(Vec<Value>, String)> {
        let port = self.addr.port();
        eventually(PATIENCE, || {
            let waiting = waiting_at_udp_port(port);
            ensure!(waiting == Some(0), "nfcapd does not read: {waiting:?} bytes wait");
            Ok(())
        })?;
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

/// Bytes that wait to be read at this UDP port of the loopback; `None` while nobody listens there.
fn waiting_at_udp_port(port: u16) -> Option<u64> {
    let sockets = std::fs::read_to_string("/proc/net/udp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let socket = sockets.lines().find(|line| line.split_whitespace().nth(1) == Some(&local))?;
    let (_, waiting) = socket.split_whitespace().nth(4)?.split_once(':')?;
    u64::from_str_radix(waiting, 16).ok()
}
