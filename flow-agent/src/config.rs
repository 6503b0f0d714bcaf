//! flow-agent.conf: every key the agent knows, declared once with its default and documentation.
//!
//! Takes the file's text, gives [`Config`], or every fault by line and key. docs/agent-config.md is made from the
//! declaration. Opens nothing that the keys name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flow_common::config::{self, Choice, Document, Loaded, Node, Problems, Setting, Settings, Unfit};
use flow_common::daemon::http;
use flow_common::net::{Address, Host, IPFIX_PORT, Protocol, TlsFiles};
use flow_common::settings;

settings! {
    /// What flow-agent.conf holds.
    pub struct Config {
        /// Feature gates of the cluster's network plugin. Only `FlowExporter` matters: `false` is the same as
        /// `flowExporter.enable: false`.
        "featureGates" => feature_gates: BTreeMap<String, bool> = BTreeMap::new(),
        /// Whether flows are observed and exported. `false` makes `flow-agent run` end at once, with success.
        "flowExporter.enable" => enable: bool = true,
        /// Where the records go: `HOST[:PORT][:PROTO]`. HOST is a DNS name, an IP (IPv6 in brackets) or
        /// `namespace/service`; PROTO is `tls`, `tcp` or `udp`. Without PORT it is 4739, without PROTO `tls`.
        "flowExporter.flowCollectorAddr" | "flowCollectorAddr" => collector: Collector = Collector::cluster(),
        /// The shortest time in which every flow is looked at again, and the time from one look at connection tracking to the next
        /// where that counts the packets; at least 1s. The two time-outs below are raised to it.
        "flowExporter.flowPollInterval" | "flowPollInterval" => poll_interval: Duration = Duration::from_secs(5),
        /// A flow that has packets is exported each time this much has passed.
        "flowExporter.activeFlowExportTimeout" | "activeFlowExportTimeout" => active_timeout: Duration =
            Duration::from_secs(5),
        /// A flow without a packet for this long is exported once more, as idle.
        "flowExporter.idleFlowExportTimeout" | "idleFlowExportTimeout" => idle_timeout: Duration =
            Duration::from_secs(15),
        /// Where the packets are counted: `ebpf` by programs at the interfaces, `conntrack` by the kernel's connection tracking alone
        /// (loads no program), `auto` by the programs and, where the kernel refuses them, by connection tracking.
        "source" => source: Source = Source::Auto,
        /// The only zones of connection tracking that are read, as the network plugin sets them (Antrea: 65520 for IPv4, 65521 for
        /// IPv6); empty: all. A connection in another one is as if it were not tracked.
        "conntrack.zones" => zones: Vec<u16> = Vec::new(),
        /// The name of this Node, as Kubernetes has it. Empty: the environment variable `NODE_NAME`, else the host name.
        "nodeName" => node_name: String = String::new(),
        /// Interfaces that are Pods' own ends: globs, `!glob` excludes. Of veths only those are attached whose other
        /// end is in another network namespace.
        "interfaces.pods" => pods: Vec<String> = patterns(&[
            "veth*", "cali*", "lxc*", "eni*", "gke*", "azv*", "tap*",
        ]),
        /// Interfaces that are ways to other Nodes and the world: globs, `!glob` excludes. Wins over `interfaces.pods`.
        "interfaces.uplinks" => uplinks: Vec<String> = patterns(&[
            "eth*", "en*", "!eni*", "bond*", "wl*", "ib*",
        ]),
        /// Interfaces that can be attached at one time. Each keeps two files open, the limit of which is raised at the start.
        "maxInterfaces" => max_interfaces: u32 = 1_024,
        /// Flows that can be live at one time, of IPv4 and of IPv6 each. Beyond it unanswered and then the longest
        /// quiet flows are ended early and counted.
        "maxFlows" => max_flows: u32 = 262_144,
        /// Bytes of the two rings each in which the kernel tells of new and of ended flows; rounded up to a power of two.
        "ringBytes" => ring_bytes: u32 = 2_097_152,
        /// Whether maps and programs stay in the kernel when the agent ends, and the next one goes on with them without missing a packet:
        /// `auto` where `bpf.pinPath` is in a bpffs, or `never`. Without an agent they fall silent after 10 minutes; `flow-agent detach`
        /// removes them. On kernels below 6.6 what passes while one agent follows the other goes unseen, and is counted.
        "bpf.pin" => pin: Pin = Pin::Auto,
        /// The folder in a bpffs where they are kept.
        "bpf.pinPath" => pin_path: PathBuf = PathBuf::from("/sys/fs/bpf/flow-agent"),
        /// A folder of Kubernetes manifests (Node, Namespace, Pod, Service, EndpointSlice) that names addresses.
        /// Changed files are read again.
        "kubernetes.objects" => objects: Option<PathBuf> = None,
        /// The CA that the collector's certificate must be signed by (PEM). Needed where PROTO is `tls`.
        "tls.ca" => tls_ca: Option<PathBuf> = None,
        /// The certificate shown to the collector (PEM). Needed where PROTO is `tls`. Renewed files are used from the next connection
        /// on, without a restart.
        "tls.cert" => tls_cert: Option<PathBuf> = None,
        /// The private key of `tls.cert` (PEM).
        "tls.key" => tls_key: Option<PathBuf> = None,
        /// Ended flows that wait for a collector that is away, or are kept for 90 s to be sent again. Beyond it the
        /// oldest sent ones leave first; unsent ones that leave count as lost.
        "spoolRecords" => spool_records: u32 = 65_536,
        /// Whether records carry millisecond times, TCP flags, ICMP type, flow id, drops, verdict and translated source
        /// beyond Antrea's 41 elements.
        "extendedRecords" => extended: bool = true,
        /// Whether the agent's accounting is sent as options data every minute. Without `extendedRecords` it never is.
        "accountingRecords" => accounting: bool = true,
        /// The unix socket of `flow-agent flows`, `top` and `doctor`; only root may use it.
        "apiSocket" => api_socket: PathBuf = PathBuf::from("/run/flow-agent.sock"),
        /// Where metrics and health are served; empty: nowhere.
        "adminAddr" => admin: Option<SocketAddr> = Some(SocketAddr::from(([127, 0, 0, 1], 10_359))),
        /// How much is logged: `error`, `warn`, `info`, `debug` or `trace`.
        "logLevel" => log_level: String = "info".to_owned(),
    }
}

/// The shortest `flowPollInterval`.
const SHORTEST_POLL: Duration = Duration::from_secs(1);

/// Files that may be open beside links and the admin port's connections: maps, programs, netlink, the API's clients.
const OTHER_FILES: u64 = 128;

/// The least `maxFlows`.
const FEWEST_FLOWS: u32 = 1_024;

/// Reads the text of `file`.
pub fn read(file: &str, text: &str) -> Result<Loaded<Config>, Problems> {
    config::read(file, text, settle)
}

/// docs/agent-config.md.
pub fn documentation() -> String {
    let preface = "`flow-agent.conf` is YAML. Every key may be left out. Other keys are refused with the nearest known one named;\n\
        `flow-agent config check --config FILE` says whether a file is good, `flow-agent config print` shows every value.\n\n\
        This page is made from the declaration in `flow-agent/src/config.rs`.";
    config::markdown("flow-agent.conf", preface, &Config::keys())
}

impl Config {
    /// Whether there is anything to do.
    pub fn enabled(&self) -> bool {
        self.enable && self.feature_gates.get("FlowExporter").copied().unwrap_or(true)
    }

    /// The files of TLS; `None` unless the collector is reached by TLS.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        if self.collector.address.protocol != Protocol::Tls {
            return None;
        }
        match (self.tls_ca.clone(), self.tls_cert.clone(), self.tls_key.clone()) {
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, cert, key }),
            _ => None,
        }
    }

    /// Files and sockets that may be open at one time: each interface has a link for either direction.
    pub fn open_files(&self) -> u64 {
        u64::from(self.max_interfaces) * 2 + http::CONNECTIONS as u64 + OTHER_FILES
    }

    /// Whether options data are sent.
    pub fn sends_accounting(&self) -> bool {
        self.extended && self.accounting
    }
}

/// Where the packets are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By the kernel programs, and where they are refused by connection tracking.
    Auto,
    /// By the kernel programs or not at all.
    Ebpf,
    /// By connection tracking.
    Conntrack,
}

impl Choice for Source {
    const FORM: &'static str = "auto, ebpf or conntrack";
    const ALL: &'static [(Self, &'static str)] =
        &[(Self::Auto, "auto"), (Self::Ebpf, "ebpf"), (Self::Conntrack, "conntrack")];
}

/// Whether maps and programs stay in the kernel from one agent to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Where there is a place for it.
    Auto,
    /// They go with the agent.
    Never,
}

impl Choice for Pin {
    const FORM: &'static str = "auto or never";
    const ALL: &'static [(Self, &'static str)] = &[(Self::Auto, "auto"), (Self::Never, "never")];
}

/// `flowCollectorAddr`, as it was written and as it was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Collector {
    text: String,
    /// What it means.
    pub address: Address,
}

impl Collector {
    /// Reads `HOST[:PORT][:PROTO]`.
    pub fn parse(text: &str) -> Result<Self, Unfit> {
        let address = Address::parse(text, Protocol::Tls).map_err(Unfit::new)?;
        Ok(Self { text: text.to_owned(), address })
    }

    fn cluster() -> Self {
        let host = Host::Service { namespace: "flow-aggregator".into(), name: "flow-aggregator".into() };
        let address = Address { host, port: IPFIX_PORT, protocol: Protocol::Tls };
        Self { text: "flow-aggregator/flow-aggregator:4739:tls".to_owned(), address }
    }
}

impl std::fmt::Display for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Setting for Collector {
    const FORM: &'static str = "an address HOST[:PORT][:PROTO]";

    fn read(node: &Node) -> Result<Self, Unfit> {
        Self::parse(node.text().ok_or_else(|| Unfit::wanted(Self::FORM, node))?)
    }

    fn print(&self) -> String {
        self.text.print()
    }
}

/// What no key can check by itself.
fn settle(config: &mut Config, document: &mut Document) {
    if config.poll_interval < SHORTEST_POLL {
        document.refuse("flowExporter.flowPollInterval", Unfit::new("must be at least 1s"));
    }
    let poll = config.poll_interval;
    for (path, timeout) in [
        ("flowExporter.activeFlowExportTimeout", &mut config.active_timeout),
        ("flowExporter.idleFlowExportTimeout", &mut config.idle_timeout),
    ] {
        if *timeout < poll {
            let poll = config::print_duration(poll);
            document.warn(path, Unfit::new(format!("is below flowPollInterval and raised to {poll}")));
        }
        *timeout = (*timeout).max(poll);
    }
    if config.max_flows < FEWEST_FLOWS {
        document.refuse("maxFlows", Unfit::new(format!("must be at least {FEWEST_FLOWS}")));
    }
    if config.spool_records == 0 {
        document.refuse("spoolRecords", Unfit::new("must be at least 1"));
    }
    if config.pods.is_empty() && config.uplinks.is_empty() && config.source != Source::Conntrack {
        document.refuse("interfaces.pods", Unfit::new("is empty, and so is interfaces.uplinks: nothing would be seen"));
    }
    settle_tls(config, document);
    for gate in config.feature_gates.keys().filter(|gate| *gate != "FlowExporter") {
        document.warn("featureGates", Unfit::new(format!("{gate} has no effect on the agent")));
    }
}

/// The three files of TLS belong together.
fn settle_tls(config: &Config, document: &mut Document) {
    let files = [("tls.ca", &config.tls_ca), ("tls.cert", &config.tls_cert), ("tls.key", &config.tls_key)];
    let tls = config.collector.address.protocol == Protocol::Tls;
    let missing: Vec<&str> = files.iter().filter(|(_, file)| file.is_none()).map(|(path, _)| *path).collect();
    if tls && config.enabled() && !missing.is_empty() && !document.is_refused("flowExporter.flowCollectorAddr") {
        let missing = missing.join(", ");
        let collector = &config.collector;
        let reason = format!(
            "{missing} must be set, as {collector} is reached by tls; `flow-aggregator certs init DIR` makes the files"
        );
        document.refuse("tls", Unfit::new(reason));
    }
    for (path, _) in files.into_iter().filter(|(_, file)| !tls && file.is_some()) {
        document.warn(path, Unfit::new(format!("has no effect: {} is not reached by tls", config.collector)));
    }
}

fn patterns(globs: &[&str]) -> Vec<String> {
    globs.iter().map(|glob| (*glob).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    const TLS: &str = "tls: {ca: ca.crt, cert: client.crt, key: client.key}\n";

    fn said(text: &str) -> String {
        read("flow-agent.conf", text).unwrap_err().to_string()
    }

    fn warned(text: &str) -> String {
        let warnings = read("flow-agent.conf", text).unwrap().warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_documentation_is_that_of_the_declaration() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent-config.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(written, documentation(), "run `UPDATE_DOCS=1 cargo test -p flow-agent documentation`");
    }

    #[test]
    fn printed_defaults_read_back() {
        let text = config::print(&Config::default());
        assert_snapshot!(text);
        let mut loaded = read(
            "flow-agent.conf",
            &text
                .replace("ca: \"\"", "ca: \"a\"")
                .replace("cert: \"\"", "cert: \"b\"")
                .replace("key: \"\"", "key: \"c\""),
        )
        .unwrap();
        loaded.settings.tls_ca = None;
        loaded.settings.tls_cert = None;
        loaded.settings.tls_key = None;
        assert_eq!(loaded.settings, Config::default());
    }

    #[test]
    fn the_keys_of_older_versions_are_taken() {
        let text = format!(
            "{TLS}flowCollectorAddr: \"agg:4740:tls\"\nflowPollInterval: 1s\nactiveFlowExportTimeout: 2s\nidleFlowExportTimeout: 3s\n"
        );
        let config = read("flow-agent.conf", &text).unwrap().settings;
        assert_eq!(config.collector.to_string(), "agg:4740:tls");
        assert_eq!([config.poll_interval, config.active_timeout, config.idle_timeout].map(|d| d.as_secs()), [1, 2, 3]);
        assert_snapshot!(warned(&text));
    }

    #[test]
    fn faults_name_key_and_remedy() {
        assert_snapshot!(said(concat!(
            "flowExporter:\n  enable: yes please\n  flowColectorAddr: x\n  flowPollInterval: 100ms\n",
            "  activeFlowExportTimeout: 5\nmaxFlows: 10\nspoolRecords: 0\ninterfaces: {pods: [], uplinks: []}\nsource: nflog\nsorce: ebpf\n",
        )));
        assert_snapshot!(said("flowExporter:\n  flowCollectorAddr: \"[::1]:4739:sctp\"\n"));
        assert_snapshot!(said("flowExporter:\n  flowCollectorAddr: \"localhost:99999:tcp\"\n"));
    }

    #[test]
    fn timeouts_below_the_poll_interval_are_raised() {
        let text = format!("{TLS}flowExporter:\n  flowPollInterval: 10s\n  activeFlowExportTimeout: 5s\n");
        assert_eq!(read("flow-agent.conf", &text).unwrap().settings.active_timeout, Duration::from_secs(10));
        assert_snapshot!(warned(&text), @"flow-agent.conf:4: flowExporter.activeFlowExportTimeout: is below flowPollInterval and raised to 10s");
    }

    #[test]
    fn names_are_read_in_any_case() {
        let config = read("flow-agent.conf", &format!("{TLS}source: EBPF\nbpf: {{pin: Never}}\n")).unwrap().settings;
        assert_eq!((config.source, config.pin), (Source::Ebpf, Pin::Never));
    }

    #[test]
    fn the_gate_of_the_feature_turns_it_off() {
        let text = "featureGates:\n  FlowExporter: false\n  AntreaProxy: true\n";
        let loaded = read("flow-agent.conf", text).unwrap();
        assert!(!loaded.settings.enabled());
        assert_snapshot!(warned(text), @"flow-agent.conf:1: featureGates: AntreaProxy has no effect on the agent");
    }
}
