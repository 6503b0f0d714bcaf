//! go-ipfix's collector and exporter.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::OnceLock;
use std::sync::mpsc::Receiver;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::process::{PATIENCE, Process, piped, piped_command};

/// Files of an authority, a server and a client, for TLS between localhost and itself.
#[derive(Debug)]
pub struct Certificates {
    folder: tempfile::TempDir,
}

/// A data record as go-ipfix's collector read it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Observation domain of its message.
    pub domain: u32,
    /// When its message was sent.
    pub export_time: u32,
    /// Names and values, in the order of the wire.
    pub elements: Vec<(String, Value)>,
}

/// go-ipfix's collector.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub addr: SocketAddr,
    lines: Receiver<String>,
    log: Receiver<String>,
    _process: Process,
}

/// go-ipfix's exporter.
#[derive(Debug)]
pub struct Exporter {
    input: ChildStdin,
    log: Receiver<String>,
    process: Process,
}

impl Certificates {
    /// New ones.
    pub fn new() -> Result<Certificates> {
        let folder = tempfile::tempdir()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        std::fs::write(folder.path().join("ca.crt"), ca.pem())?;
        let issuer = rcgen::Issuer::new(params, ca_key);
        for name in ["server", "client"] {
            let key = rcgen::KeyPair::generate()?;
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
            std::fs::write(folder.path().join(name).with_extension("crt"), certificate.pem())?;
            std::fs::write(folder.path().join(name).with_extension("key"), key.serialize_pem())?;
        }
        Ok(Certificates { folder })
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of ca.crt, server.crt, server.key, client.crt, client.key.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }
}

impl Record {
    /// The value of the element with this name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.elements.iter().find(|(element, _)| element == name).map(|(_, value)| value)
    }
}

impl Collector {
    /// Starts it on a port of the loopback. A strict one refuses templates with elements its registry lacks.
    pub fn start(protocol: &str, strict: bool, certificates: Option<&Certificates>) -> Result<Collector> {
        let mut command = piped_command(go_programs()?.join("collector"));
        command.args(["-protocol", protocol]);
        if !strict {
            command.arg("-lenient");
        }
        if let Some(certificates) = certificates {
            for (flag, file) in [("-cert", "server.crt"), ("-key", "server.key"), ("-ca", "ca.crt")] {
                command.arg(flag).arg(certificates.path(file));
            }
        }
        let mut process = Process::spawn(&mut command)?;
        let log = Process::lines(piped(process.0.stderr.take())?);
        let lines = Process::lines(piped(process.0.stdout.take())?);
        let first =
            lines.recv_timeout(PATIENCE).with_context(|| format!("the collector says nothing: {}", all(&log)))?;
        let listening: Value = serde_json::from_str(&first)?;
        let addr = listening["listening"].as_str().context("no address")?.parse()?;
        Ok(Collector { addr, lines, log, _process: process })
    }

    /// The next records, this many of them.
    pub fn records(&self, count: usize) -> Result<Vec<Record>> {
        (0..count).map(|number| self.record().with_context(|| format!("record {number} of {count}"))).collect()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        all(&self.log)
    }

    /// The next line of its log that holds this text.
    pub fn logged(&self, text: &str) -> Result<String> {
        loop {
            let line = self.log.recv_timeout(PATIENCE).with_context(|| format!("no {text:?} in its log"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    fn record(&self) -> Result<Record> {
        let line = self.lines.recv_timeout(PATIENCE).with_context(|| format!("its log: {}", self.log()))?;
        serde_json::from_str(&line).with_context(|| line.clone())
    }
}

impl Exporter {
    /// Starts it towards a collector of ours. `server_name` is the name in the collector's certificate.
    pub fn start(
        protocol: &str,
        collector: SocketAddr,
        domain: u32,
        tls: Option<(&Path, &Path, &Path, &str)>,
    ) -> Result<Exporter> {
        let mut command = piped_command(go_programs()?.join("exporter"));
        command.args(["-protocol", protocol, "-address", &collector.to_string(), "-domain", &domain.to_string()]);
        if let Some((ca, cert, key, server_name)) = tls {
            command.arg("-ca").arg(ca).arg("-cert").arg(cert).arg("-key").arg(key).args(["-name", server_name]);
        }
        let mut process = Process::spawn(&mut command)?;
        let log = Process::lines(piped(process.0.stderr.take())?);
        let input = piped(process.0.stdin.take())?;
        Ok(Exporter { input, log, process })
    }

    /// Sends a record of these names and values, and its template where that is new.
    pub fn send(&mut self, elements: &[(&str, Value)]) -> Result<()> {
        let mut line = serde_json::to_vec(elements)?;
        line.push(b'\n');
        self.input.write_all(&line).with_context(|| format!("its log: {}", all(&self.log)))
    }

    /// Ends it once everything is sent.
    pub fn finish(self) -> Result<()> {
        let Exporter { input, log, mut process } = self;
        drop(input);
        let status = process.wait()?;
        ensure!(status.success(), "{status}: {}", all(&log));
        Ok(())
    }
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

/// What came so far.
fn all(lines: &Receiver<String>) -> String {
    lines.try_iter().collect::<Vec<String>>().join("\n")
}
