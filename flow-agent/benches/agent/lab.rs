//! Two network namespaces joined by a veth, and the processes in them. All of it goes with the value.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{sender, sink};

/// Where the collector listens, in the namespace of the agent.
const COLLECTOR: &str = "127.0.0.1:4739";

/// The namespaces, and a folder for files.
pub(super) struct Lab {
    node: String,
    peer: String,
    pub(super) folder: TempDir,
}

impl Lab {
    /// Packets from the peer enter the Node by its veth and leave it by another one, which is not observed, back to the peer: dropped on the
    /// Node they would be denied connections.
    pub(super) fn set_up(conntrack: bool) -> Result<Self> {
        let id = std::process::id();
        let (node, peer) = (format!("flow-bench-{id}-node"), format!("flow-bench-{id}-peer"));
        let lab = Self { node, peer, folder: tempfile::tempdir()? };
        let Self { node, peer, .. } = &lab;
        for name in [node, peer] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            // Nothing but what the sender sends passes.
            let quiet = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
            let status =
                Command::new("ip").args(["netns", "exec", name, "sh", "-c", &format!("echo 1 > {quiet}")]).status();
            ensure!(status?.success(), "IPv6 could not be turned off in {name}");
        }
        ip(&format!("-n {node} link add veth0 type veth peer name eth0 netns {peer}"))?;
        ip(&format!("-n {node} addr add 10.88.0.1/24 dev veth0"))?;
        ip(&format!("-n {peer} addr add 10.88.0.2/24 dev eth0"))?;
        ip(&format!("-n {node} link set veth0 up"))?;
        ip(&format!("-n {node} link add sink0 type veth peer name sink1 netns {peer}"))?;
        ip(&format!("-n {node} addr add 10.89.0.1/24 dev sink0"))?;
        ip(&format!("-n {peer} addr add 10.89.0.2/24 dev sink1"))?;
        ip(&format!("-n {node} link set sink0 up"))?;
        ip(&format!("-n {peer} link set sink1 up"))?;
        ip(&format!("-n {node} route add default via 10.89.0.2"))?;
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        let status = Command::new("ip").args(["netns", "exec", node, "sh", "-c", forward]).status();
        ensure!(status?.success(), "forwarding could not be turned on in {node}");
        ip(&format!("-n {peer} link set eth0 up"))?;
        ip(&format!("-n {peer} route add default via 10.88.0.1"))?;
        if conntrack {
            let rules =
                "table ip bench { chain in { type filter hook prerouting priority 0; ct state invalid drop; }; }";
            let status = Command::new("ip").args(["netns", "exec", node, "nft", rules]).status();
            ensure!(status.context("cannot run nft")?.success(), "nft refused the rules");
        }
        certificates(lab.folder.path())?;
        Ok(lab)
    }

    /// Sends packets from the peer; the process ends when the plan does.
    pub(super) fn send(&self, plan: &sender::Plan) -> Result<Child> {
        let mut command = self.command(&self.peer, &std::env::current_exe()?);
        command.arg("send").args(plan.arguments()).stdout(Stdio::piped());
        command.spawn().context("cannot start the sender")
    }

    fn command(&self, namespace: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.node, &self.peer] {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// How many packets the sender sent.
pub(super) fn finish(sending: Child) -> Result<u64> {
    let output = sending.wait_with_output()?;
    ensure!(output.status.success(), "the sender failed");
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The agent's process.
pub(super) struct Agent(Child);

impl Agent {
    /// Starts it with the default configuration and waits until it observes.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let (socket, file) = (lab.file("api.sock"), lab.file("flow-agent.conf"));
        let text = format!(
            "flowExporter: {{flowCollectorAddr: \"{COLLECTOR}\"}}\napiSocket: {socket}\nbpf: {{pin: never}}\ntls: {{ca: {}, cert: {}, key: {}}}\n",
            lab.file("ca.crt"),
            lab.file("client.crt"),
            lab.file("client.key")
        );
        fs::write(&file, text)?;
        let mut command = lab.command(&lab.node, Path::new(env!("CARGO_BIN_EXE_flow-agent")));
        let mut agent = Self(command.args(["run", "--config", &file]).spawn().context("cannot start the agent")?);
        let patience = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string("/proc/net/unix").is_ok_and(|_| is_attached(lab)) {
            ensure!(Instant::now() < patience, "the agent attached nothing within 30 s");
            if let Some(status) = agent.0.try_wait()? {
                bail!("the agent ended: {status}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(agent)
    }

    /// CPU time of all threads, system calls and their softirqs included.
    pub(super) fn cpu_ns(&self) -> Result<f64> {
        let mut sum = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split_whitespace().next().context("schedstat is empty")?.parse::<f64>()?;
        }
        Ok(sum)
    }

    /// The most that ever was resident, without the kernel's rings, of which each page is mapped twice.
    pub(super) fn peak_mib(&self) -> Result<f64> {
        let kib = |text: &str| text.trim().trim_end_matches(" kB").parse::<f64>();
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let peak = kib(status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?)?;
        let mut rings = 0.0;
        let mut is_ring = false;
        for line in fs::read_to_string(format!("/proc/{}/smaps", self.0.id()))?.lines() {
            match line.strip_prefix("Rss:") {
                Some(resident) if is_ring => rings += kib(resident)?,
                Some(_) => {}
                // A mapping begins with its addresses and ends with its name.
                None if line.contains('-') => is_ring = line.ends_with("anon_inode:bpf-map"),
                None => {}
            }
        }
        Ok((peak - rings) / 1_024.0)
    }

    /// Packets that it says are in no record for want of room. Of those that are no flow's some are neighbour discovery.
    pub(super) fn lost(lab: &Lab) -> Result<u64> {
        let diagnosis: serde_json::Value = serde_json::from_str(&doctor(lab)?)?;
        let facts = &diagnosis["facts"];
        let interfaces = facts["interfaces"].as_array().context("no interfaces")?;
        let losses = interfaces.iter().flat_map(|interface| interface["lost"].as_array()).flatten();
        let losses = losses.filter(|loss| loss["reason"] == "map_full");
        let packets = losses.map(|loss| &loss["tally"]["packets"]).chain([&facts["export"]["lost"]["packets"]]);
        packets.map(|packets| packets.as_u64().context("a number of packets")).sum()
    }

    /// Ends it in order: it hands over what it has.
    pub(super) fn stop(&mut self) -> Result<()> {
        terminate(&self.0)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The collector's process.
pub(super) struct Sink {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Sink {
    /// Starts it and waits until it listens.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let mut command = lab.command(&lab.node, &std::env::current_exe()?);
        command.args(["sink", COLLECTOR]).arg(lab.folder.path()).stdout(Stdio::piped()).stdin(Stdio::piped());
        let mut process = command.spawn().context("cannot start the collector")?;
        let lines = BufReader::new(process.stdout.take().context("the collector has no output")?);
        let mut sink = Self { process, lines };
        sink.heard()?;
        Ok(sink)
    }

    /// The sums now.
    pub(super) fn heard(&mut self) -> Result<sink::Sums> {
        use std::io::Write;
        let input = self.process.stdin.as_mut().context("the collector has no input")?;
        writeln!(input)?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        sink::Sums::parse(&line).with_context(|| format!("the collector said {line:?}"))
    }

    /// The sums once nothing has come any more for a second.
    pub(super) fn last(&mut self) -> Result<sink::Sums> {
        let mut heard = self.heard()?;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.heard()?;
            if now == heard {
                return Ok(now);
            }
            heard = now;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_attached(lab: &Lab) -> bool {
    doctor(lab).is_ok_and(|diagnosis| diagnosis.contains("\"attached\": \"t"))
}

fn doctor(lab: &Lab) -> Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow-agent"));
    let output = command.args(["doctor", "-o", "json", "--socket", &lab.file("api.sock")]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn terminate(process: &Child) -> Result<()> {
    let id = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).context("cannot end a process")
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip (Debian: iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {} (root is needed)", said.trim());
    Ok(())
}

/// A CA, and a pair for each end.
fn certificates(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.crt"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        fs::write(folder.join(format!("{name}.crt")), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
