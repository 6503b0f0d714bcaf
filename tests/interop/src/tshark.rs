//! tshark, which takes the packets of a loopback port apart.

use std::net::UdpSocket;
use std::sync::mpsc::Receiver;

use anyhow::{Context, Result};

use crate::process::{PATIENCE, Process, piped, piped_command};
use crate::wait::eventually;

/// What it is shown until it shows it.
const PROBE: &[u8] = b"is somebody there";

/// tshark, capturing.
#[derive(Debug)]
pub struct Tshark {
    lines: Receiver<String>,
    _process: Process,
}

impl Tshark {
    /// Starts it for a port of "tcp" or "udp" of the loopback, where somebody listens already.
    pub fn start(protocol: &str, port: u16) -> Result<Tshark> {
        let mut command = piped_command("tshark");
        command.args(["-l", "-n", "-i", "lo", "-f", &format!("dst port {port}"), "-V"]);
        command.args(["-d", &format!("{protocol}.port=={port},cflow")]);
        let mut process = Process::spawn(&mut command)?;
        let lines = Process::lines(piped(process.0.stdout.take())?);
        let log = Process::lines(piped(process.0.stderr.take())?);
        // It says that it captures before it does: probes, as datagrams whatever the protocol, until it shows one.
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        eventually(PATIENCE, || {
            // Over TCP nobody listens there, which the next call may say.
            let _ = socket.send_to(PROBE, ("127.0.0.1", port));
            lines.try_iter().next().map(drop).context("tshark does not capture")
        })
        .with_context(|| log.try_iter().collect::<Vec<String>>().join("\n"))?;
        Ok(Tshark { lines, _process: process })
    }

    /// The packets as text, up to the line that holds this.
    pub fn text_until(&self, last: &str) -> Result<String> {
        let mut text = String::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).with_context(|| format!("no {last:?} in:\n{text}"))?;
            text += &line;
            text.push('\n');
            if line.contains(last) {
                return Ok(text);
            }
        }
    }
}
