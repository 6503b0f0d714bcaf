//! The product running in the lab: an agent in each Node, the aggregator on a host of its own, certificates of their own
//! making, and TLS between them.
//!
//! Takes the lab and what a test wants configured otherwise; gives processes that can be killed and started again, what
//! the agents say of themselves, and the joined flows. Judges nothing.

use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use interop::beside;
use serde::{Deserialize, Serialize};

use crate::joined::Joined;
use crate::lab::Lab;
use crate::topology::{Family, Host, Node, collector};
use crate::truth::Count;
use crate::wait::eventually;

/// How long a part may take to be ready: the verifier works through the programs in that time.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long the aggregator waits for the other half.
const CORRELATION: Duration = Duration::from_secs(8);
/// Where the aggregator answers for its health.
const ADMIN_PORT: u16 = 10_349;

/// What the lab configures otherwise than by default, as lines of the configuration files.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Further keys of flow-agent.conf.
    pub agent: String,
    /// A folder in a bpffs where the agents' programs stay from one to the next; without it they go with their agents.
    pub pins: Option<PathBuf>,
    /// Further keys of flow-aggregator.conf.
    pub aggregator: String,
    /// A Node whose agent exports late: its halves always come second.
    pub late: Option<Node>,
    /// The only capabilities that the agents have, without `CAP_` and in small letters; none: all.
    pub capabilities: Option<&'static [&'static str]>,
    /// How the agents send.
    pub transport: Transport,
    /// The aggregator has no objects of its own: it knows what the agents say and nothing else.
    pub blind: bool,
}

impl Settings {
    /// Whether connection tracking is to count: as configured, or because the programs will be refused.
    fn counts_by_tracking(&self) -> bool {
        let may_load = |held: &[&str]| ["bpf", "perfmon"].iter().all(|capability| held.contains(capability));
        self.agent.contains("source: conntrack") || self.capabilities.is_some_and(|held| !may_load(held))
    }
}

/// What the agents are deployed with: kernels below 5.11 count maps against a limit that CAP_SYS_RESOURCE raises.
pub fn default_capabilities() -> Result<&'static [&'static str]> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers: Vec<u32> = release.split('.').map_while(|number| number.parse().ok()).collect();
    let is_old = numbers.get(..2).is_some_and(|series| series < [5, 11].as_slice());
    let all = &["bpf", "perfmon", "net_admin", "syslog", "sys_resource"];
    Ok(if is_old { all } else { &all[..4] })
}

/// How the agents send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// TLS, each side showing a certificate.
    #[default]
    Tls,
    /// TCP in clear.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The keys of either side's configuration.
    fn tls(self, certs: &Path, side: &str) -> String {
        let certs = certs.display();
        match self {
            Self::Tls => format!("tls: {{ca: {certs}/ca.crt, cert: {certs}/{side}.crt, key: {certs}/{side}.key}}\n"),
            Self::Tcp | Self::Udp => String::new(),
        }
    }
}

/// The product's processes.
#[derive(Debug)]
pub struct Product<'lab> {
    lab: &'lab Lab,
    settings: Settings,
    aggregator: Mutex<Option<Child>>,
    agents: Mutex<HashMap<Node, Child>>,
    joined: Joined,
}

impl<'lab> Product<'lab> {
    /// Makes certificates and configurations, starts all three and waits until they work together.
    pub fn start(lab: &'lab Lab, settings: Settings) -> Result<Self> {
        let certs = lab.path("certs");
        let host = collector(Family::V4).to_string();
        let mut init = Command::new(beside("flow-aggregator")?);
        init.args(["certs", "init"]).arg(&certs).args(["--san", &host]);
        let made = init.output()?;
        ensure!(made.status.success(), "certs init failed: {}", String::from_utf8_lossy(&made.stderr));
        let product = Self {
            lab,
            settings,
            aggregator: Mutex::default(),
            agents: Mutex::default(),
            joined: Joined::new(lab.path("joined.json")),
        };
        product.start_aggregator()?;
        for node in Node::ALL {
            product.start_agent(node)?;
        }
        for node in Node::ALL {
            product.wait_for_agent(node)?;
        }
        Ok(product)
    }

    /// The joined flows.
    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    /// Starts the aggregator and waits until it listens.
    pub fn start_aggregator(&self) -> Result<()> {
        let text = format!(
            "{tls}aggregatorTransportProtocol: {transport}
flowLogger: {{enable: true, path: {log}}}
apiServer: {{folder: {api}}}
activeFlowRecordTimeout: 1s
inactiveFlowRecordTimeout: 90s
correlationTimeout: {correlation}s
{objects}{further}",
            tls = self.settings.transport.tls(&self.lab.path("certs"), "server"),
            transport = self.settings.transport.name(),
            log = self.joined.path().display(),
            api = self.lab.path("api").display(),
            correlation = CORRELATION.as_secs(),
            objects = if self.settings.blind { String::new() } else { self.objects() },
            further = self.settings.aggregator
        );
        let child = self.launch("flow-aggregator", "flow-aggregator", &Host::Collector, &text)?;
        *lock(&self.aggregator) = Some(child);
        let namespace = self.lab.namespace(&Host::Collector)?;
        let health = SocketAddr::from((Ipv6Addr::LOCALHOST, ADMIN_PORT));
        let runs = || self.still_runs(lock(&self.aggregator).as_mut(), "flow-aggregator");
        let listens = || -> Result<()> {
            namespace.within(|| TcpStream::connect(health))?.context("the aggregator does not listen")?;
            Ok(())
        };
        self.until_ready(runs, listens)
    }

    /// Waits until a part does its work; one that has ended never will.
    fn until_ready(&self, runs: impl Fn() -> Result<()>, works: impl Fn() -> Result<()>) -> Result<()> {
        let ready = eventually(READY_WITHIN, || match runs() {
            Ok(()) => works().map(Ok),
            ended => Ok(ended),
        });
        ready.flatten().map_err(|error| self.with_logs(error))
    }

    /// Starts a Node's agent; `wait_for_agent` says when it works.
    pub fn start_agent(&self, node: Node) -> Result<()> {
        // The late one still sends well within the time that the aggregator waits for a half.
        let [active, idle] = if self.settings.late == Some(node) { [3, 4] } else { [1, 2] };
        let text = format!(
            "nodeName: {name}
flowExporter:
  flowCollectorAddr: \"{collector}:4739:{transport}\"
  flowPollInterval: 1s
  activeFlowExportTimeout: {active}s
  idleFlowExportTimeout: {idle}s
{tls}{objects}apiSocket: {socket}
bpf: {pins}
{further}",
            name = node.name(),
            pins = self.pins(),
            collector = collector(Family::V4),
            transport = self.settings.transport.name(),
            tls = self.settings.transport.tls(&self.lab.path("certs"), "client"),
            objects = self.objects(),
            socket = self.socket(node).display(),
            further = self.settings.agent,
        );
        let child = self.launch("flow-agent", &agent(node), &Host::Node(node), &text)?;
        lock(&self.agents).insert(node, child);
        Ok(())
    }

    fn pins(&self) -> String {
        match &self.settings.pins {
            Some(path) => format!("{{pin: auto, pinPath: {}}}", path.display()),
            None => "{pin: never}".to_owned(),
        }
    }

    /// Waits until a Node's agent has its collector and, unless connection tracking is to count, has attached every Pod's interface and
    /// both uplinks.
    pub fn wait_for_agent(&self, node: Node) -> Result<()> {
        let runs = || self.still_runs(lock(&self.agents).get_mut(&node), &agent(node));
        let works = || -> Result<()> {
            let facts = self.facts(node)?;
            ensure!(facts.export.peer.is_some(), "{} has no collector: {:?}", agent(node), facts.export);
            if self.settings.counts_by_tracking() {
                return Ok(());
            }
            let links = self.lab.interfaces(node)?;
            for link in links.keys().filter(|link| link.starts_with("veth") || link.starts_with("eth")) {
                let attached = facts.interfaces.iter().any(|it| it.name == *link && it.attached.is_some());
                ensure!(attached, "{link} of {} is not attached: {:?}", node.name(), facts.interfaces);
            }
            Ok(())
        };
        self.until_ready(runs, works)
    }

    /// Fails if one of the processes has ended by itself.
    pub fn all_run(&self) -> Result<()> {
        self.still_runs(lock(&self.aggregator).as_mut(), "flow-aggregator")?;
        for node in Node::ALL {
            self.still_runs(lock(&self.agents).get_mut(&node), &agent(node))?;
        }
        Ok(())
    }

    /// Fails unless every packet of every attached interface, as its own counters have it, was seen by the programs and is in a record,
    /// annotated, or counted with a reason.
    pub fn adds_up(&self) -> Result<()> {
        for node in Node::ALL {
            for interface in self.facts(node)?.interfaces.into_iter().filter(|it| it.attached.is_some()) {
                ensure!(interface.own == interface.seen_by_hook, "{} {interface:#?}", node.name());
                ensure!(interface.seen == interface.told(), "{} {interface:#?}", node.name());
            }
        }
        Ok(())
    }

    /// Stops a Node's agent as it is, or lets it go on.
    pub fn hold_agent(&self, node: Node, held: bool) -> Result<()> {
        let signal = if held { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        Ok(rustix::process::kill_process(self.agent_process(node)?, signal)?)
    }

    /// The most memory that a Node's agent ever had, in bytes: its own and what is mapped of the rings.
    pub fn agent_memory(&self, node: Node) -> Result<u64> {
        let path = format!("/proc/{}/status", self.agent_process(node)?.as_raw_nonzero());
        let status = std::fs::read_to_string(path)?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(peak.context("no VmHWM")?.parse::<u64>()? * 1024)
    }

    fn agent_process(&self, node: Node) -> Result<rustix::process::Pid> {
        let agents = lock(&self.agents);
        let child = agents.get(&node).with_context(|| format!("{} does not run", agent(node)))?;
        Ok(rustix::process::Pid::from_child(child))
    }

    /// kill -9 of a Node's agent.
    pub fn kill_agent(&self, node: Node) -> Result<()> {
        kill(lock(&self.agents).remove(&node))
    }

    /// kill -9 of the aggregator.
    pub fn kill_aggregator(&self) -> Result<()> {
        kill(lock(&self.aggregator).take())
    }

    /// Asks a Node's agent to end in order, and waits until it has.
    pub fn stop_agent(&self, node: Node) -> Result<()> {
        let child = lock(&self.agents).remove(&node);
        let mut child = child.with_context(|| format!("{} does not run", agent(node)))?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        ensure!(status.success(), "{} ended with {status}", agent(node));
        Ok(())
    }

    /// What an agent says of itself: `flow-agent doctor`.
    pub fn facts(&self, node: Node) -> Result<Facts> {
        Ok(self.diagnosis(node)?.facts)
    }

    /// Drops on both Nodes that the kernel ran no program for, amid another's.
    pub fn missed_drops(&self) -> Result<u64> {
        let of = |node| Ok(self.facts(node)?.drops.unplaced[1]);
        Node::ALL.into_iter().map(of).sum()
    }

    /// What an agent says of itself, and what it makes of it.
    pub fn diagnosis(&self, node: Node) -> Result<Diagnosis> {
        let output = self.agent_cli(node, &["doctor", "-o", "json"])?;
        serde_json::from_str(&output).with_context(|| format!("doctor's JSON: {output}"))
    }

    /// The agent's command line against its running agent; gives what it prints, whatever its exit status.
    pub fn agent_cli(&self, node: Node, args: &[&str]) -> Result<String> {
        Ok(self.agent_says(node, args)?.1)
    }

    /// The same with the exit status.
    pub fn agent_says(&self, node: Node, args: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(beside("flow-agent")?);
        command.args(args).arg("--socket").arg(self.socket(node));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.lab.node(node)?.spawn(&mut command)?.wait_with_output()?;
        if output.stdout.is_empty() {
            bail!("flow-agent {} printed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// A page of a part's admin port, as text: `/metrics`, `/readyz`.
    pub fn page(&self, host: &Host, port: u16, path: &str) -> Result<String> {
        use std::io::{Read, Write};
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = self.lab.namespace(host)?.within(|| TcpStream::connect(addr))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The aggregator's metrics: name (with labels, if any) and value.
    pub fn aggregator_metrics(&self) -> Result<HashMap<String, f64>> {
        let page = self.page(&Host::Collector, ADMIN_PORT, "/metrics")?;
        let samples = page.lines().filter(|line| line.starts_with("flow_aggregator_"));
        Ok(samples
            .filter_map(|line| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?)))
            .collect())
    }

    /// What a part has logged so far.
    pub fn log(&self, part: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_path(part))?)
    }

    /// An error with the last lines of every part's log.
    pub fn with_logs(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = String::new();
        for part in ["flow-aggregator".to_owned(), agent(Node::A), agent(Node::B)] {
            let log = self.log(&part).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n  ");
            text += &format!("\n--- {part} logged:\n  {last}");
        }
        error.context(text)
    }

    /// The socket of a Node's agent.
    pub fn socket(&self, node: Node) -> PathBuf {
        self.lab.path(&format!("{}.sock", node.name()))
    }

    fn objects(&self) -> String {
        format!("kubernetes: {{objects: {}}}\n", self.lab.objects().display())
    }

    fn launch(&self, program: &str, name: &str, host: &Host, configuration: &str) -> Result<Child> {
        let path = self.lab.path(&format!("{name}.conf"));
        std::fs::write(&path, configuration)?;
        let log = File::options().append(true).create(true).open(self.log_path(name))?;
        let mut command = self.command(program)?;
        command.arg("run").arg("--config").arg(&path);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.lab.namespace(host)?.spawn(&mut command)
    }

    /// A program with the rights that the settings leave it.
    fn command(&self, program: &str) -> Result<Command> {
        let path = beside(program)?;
        let Some(capabilities) = self.settings.capabilities.filter(|_| program == "flow-agent") else {
            return Ok(Command::new(path));
        };
        let mut command = Command::new("setpriv");
        let set = capabilities.iter().fold("-all".to_owned(), |set, capability| format!("{set},+{capability}"));
        // Root's capabilities are at most the bounding set's.
        command.args(["--bounding-set", &set, "--inh-caps", &set, "--"]).arg(path);
        Ok(command)
    }

    fn log_path(&self, part: &str) -> PathBuf {
        self.lab.path(&format!("{part}.log"))
    }

    fn still_runs(&self, child: Option<&mut Child>, name: &str) -> Result<()> {
        match child.with_context(|| format!("{name} was not started"))?.try_wait()? {
            Some(status) => bail!("{name} ended with {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        let agents = std::mem::take(&mut *lock(&self.agents));
        for child in agents.into_values().map(Some).chain([lock(&self.aggregator).take()]) {
            // Fails only for one that has ended already.
            let _ = kill(child);
        }
    }
}

/// The name of a Node's agent in logs and files.
pub fn agent(node: Node) -> String {
    format!("flow-agent-{}", node.name())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(child: Option<Child>) -> Result<()> {
    let mut child = child.context("it does not run")?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// What `flow-agent doctor -o json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Diagnosis {
    /// What the agent knows.
    pub facts: Facts,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Something wrong.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Finding {
    /// What it is.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What the lab wants of an agent's facts.
#[derive(Clone, Debug, Deserialize)]
pub struct Facts {
    /// Interfaces that a pattern names.
    pub interfaces: Vec<Interface>,
    /// Its flows.
    pub flows: Flows,
    /// What the kernel dropped.
    pub drops: Drops,
    /// The way to the collector.
    pub export: Export,
    /// Where names come from.
    pub objects: Objects,
}

/// The connection table.
#[derive(Clone, Debug, Deserialize)]
pub struct Flows {
    /// Live ones.
    pub live: u64,
    /// Ended early for lack of room.
    pub evicted: u64,
}

/// What the kernel dropped.
#[derive(Clone, Debug, Deserialize)]
pub struct Drops {
    /// Drops that are in no place's sum: no room, or left out by the kernel amid another.
    pub unplaced: [u64; 2],
}

/// The way to the collector.
#[derive(Clone, Debug, Deserialize)]
pub struct Export {
    /// The address that is connected.
    pub peer: Option<String>,
    /// Why not.
    pub failure: Option<String>,
    /// Flow records sent.
    pub records: u64,
    /// Ended flows in the spool that were never sent.
    pub unsent: u64,
    /// Ended flows that left the spool unsent.
    pub lost_flows: u64,
}

/// Where names come from.
#[derive(Clone, Debug, Deserialize)]
pub struct Objects {
    /// What was refused at the last look.
    pub refused: Vec<String>,
    /// Pods known.
    pub pods: u64,
}

/// One interface and where its packets are.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How it is attached.
    pub attached: Option<String>,
    /// Packets by its own counters since the attach: received and sent.
    pub own: [u64; 2],
    /// Packets by its own counters before the attach.
    pub before_attach: [u64; 2],
    /// Packets that the programs saw, by hook.
    pub seen_by_hook: [u64; 2],
    /// What they saw on both hooks.
    pub seen: Count,
    /// What went into records.
    pub accounted: Count,
    /// What another point or another translation's entry accounts for.
    pub annotated: Count,
    /// What is not yet in a record.
    pub waiting: Count,
    /// Events that found a ring full: of begun and of ended flows.
    pub events_lost: [u64; 2],
    /// What is in no record, by reason.
    pub lost: Vec<Loss>,
}

/// Packets in no record, and why.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Loss {
    /// The reason.
    pub reason: String,
    /// How much.
    pub tally: Count,
}

impl Interface {
    /// Everything that the programs saw, by where it went.
    pub fn told(&self) -> Count {
        self.accounted + self.annotated + self.waiting + self.lost.iter().map(|loss| loss.tally).sum()
    }
}
