//! flow-aggregator.conf: every key the aggregator knows, declared once with its default and documentation.
//!
//! Takes the file's text, gives [`Config`], or every fault by line and key. docs/aggregator-config.md is made from the
//! declaration. Opens nothing that the keys name.

use crate::aggregate::Settings as Table;
use flow_common::{
    config::{self, Document, Loaded, Node, Problems, Setting, Settings, Unfit, Value},
    net::{Address, Host, IPFIX_PORT, Protocol, TlsFiles},
    settings,
};
use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

settings! {
    /// What flow-aggregator.conf holds.
    pub struct Config {
        /// A flow that goes on is exported each time this much has passed since its last export.
        "activeFlowRecordTimeout" | "flowExportInterval" => active_timeout: Duration = Duration::from_secs(60),
        /// A flow of which no record came for this long is exported if it has news, and leaves the table.
        "inactiveFlowRecordTimeout" => inactive_timeout: Duration = Duration::from_secs(90),
        /// A record that needs the other Node's half waits this long for it, then goes out as it is. Three times the
        /// agents' `activeFlowExportTimeout` is a good choice.
        "correlationTimeout" => correlation_timeout: Duration = Duration::from_secs(15),
        /// How the agents send: `tls`, `tcp` or `udp`. It must be the protocol of their `flowCollectorAddr`.
        "aggregatorTransportProtocol" => transport: Transport = Transport(Protocol::Tls),
        /// Where the agents' records are received.
        "listenAddr" => listen: SocketAddr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, IPFIX_PORT)),
        /// The CA that signed the agents' certificates (PEM). Needed where agents send by `tls`.
        "tls.ca" => tls_ca: Option<PathBuf> = None,
        /// The certificate shown to agents (PEM). Needed where agents send by `tls`.
        "tls.cert" => tls_cert: Option<PathBuf> = None,
        /// The private key of `tls.cert` (PEM).
        "tls.key" => tls_key: Option<PathBuf> = None,
        /// Whether joined flows are sent to a collector.
        "flowCollector.enable" => collector_enable: bool = false,
        /// The collector: `IP:PORT[:PROTO]`, an IPv6 address in brackets; PROTO is `tcp` or `udp`, without it `tcp`.
        "flowCollector.address" | "externalFlowCollectorAddr" => collector: Collector = Collector::default(),
        /// Names this aggregator to the collector in IPFIX. Empty: made from `clusterUUID`, else drawn at each start.
        "flowCollector.observationDomainID" => observation_domain: Domain = Domain(None),
        /// How flows are written: `IPFIX` or `JSON` (one object a line).
        "flowCollector.recordFormat" | "recordFormat" => record_format: RecordFormat = RecordFormat::Ipfix,
        /// Whether joined flows are written as lines of JSON, beside the collector.
        "flowLogger.enable" => logger_enable: bool = false,
        /// The file that the lines are appended to; `-` is the standard output.
        "flowLogger.path" => logger_path: PathBuf = PathBuf::from("-"),
        /// A folder of Kubernetes manifests (Node, Namespace, Pod): the aggregator then decides where both ends of a flow
        /// are, and names Pods whose Node does not report. Changed files are read again.
        "kubernetes.objects" => objects: Option<PathBuf> = None,
        /// Whether records bear the labels of both Pods. They are known of Pods in `kubernetes.objects`.
        "recordContents.podLabels" => pod_labels: bool = false,
        /// The cluster's UUID, of which the observation domain is made.
        "clusterUUID" => cluster: Cluster = Cluster(None),
        /// Whether records carry millisecond times, TCP flags, ICMP type, flow id, drops, verdict and translated source
        /// beyond the elements of the specification.
        "extendedRecords" => extended: bool = true,
        /// Flows that are kept at one time, of IPv4 and of IPv6 each. Beyond it those that were not heard of for
        /// longest are exported early and counted.
        "maxFlows" => max_flows: u32 = 1_048_576,
        /// What stays of flows that are over, for five minutes, of IPv4 and of IPv6 each. Beyond it the oldest go
        /// early and are counted; about 170 bytes each.
        "maxTombstones" => max_tombstones: u32 = 1_000_000,
        /// Exporters that can be connected (or, by UDP, heard of) at one time.
        "maxSessions" => max_sessions: u32 = 16_384,
        /// Joined flows that wait for each sink. Beyond it the oldest are dropped and counted.
        "sinkQueue" => sink_queue: u32 = 262_144,
        /// Where metrics and health are served; empty: nowhere.
        "adminAddr" => admin: Option<SocketAddr> = Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 10_349))),
        /// How much is logged: `error`, `warn`, `info`, `debug` or `trace`.
        "logLevel" => log_level: String = "info".to_owned(),
    }
}

const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(86_400);
const FEWEST_FLOWS: u32 = 1_024;
/// Within this a flow that is heard of again goes on.
const TOMBSTONE_SECONDS: u32 = 300;

/// Reads the text of `file`.
pub fn read(file: &str, text: &str) -> Result<Loaded<Config>, Problems> {
    config::read(file, text, settle)
}

/// docs/aggregator-config.md.
pub fn documentation() -> String {
    let preface = "`flow-aggregator.conf` is YAML. Every key may be left out. Other keys are refused with the nearest known one\n\
        named; `flow-aggregator config check --config FILE` says whether a file is good, `flow-aggregator config print`\n\
        shows every value.\n\n\
        This page is made from the declaration in `flow-aggregator/src/config.rs`.";
    config::markdown("flow-aggregator.conf", preface, &Config::keys())
}

impl Config {
    /// The files of TLS; `None` unless agents send by it.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        if self.transport.0 != Protocol::Tls {
            return None;
        }
        match (self.tls_ca.clone(), self.tls_cert.clone(), self.tls_key.clone()) {
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, cert, key }),
            _ => None,
        }
    }

    /// Where joined flows are sent, if anywhere.
    pub fn collector_address(&self) -> Option<&Address> {
        self.collector.address.as_ref().filter(|_| self.collector_enable)
    }

    /// The observation domain that the configuration gives: as it stands, or made from the cluster's UUID.
    pub fn domain(&self) -> Option<u32> {
        self.observation_domain.0.or_else(|| self.cluster.0.map(|uuid| fnv1(&uuid)))
    }

    /// Of the table of connections.
    pub fn table(&self) -> Table {
        let seconds = |timeout: Duration| u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX);
        Table {
            active: seconds(self.active_timeout),
            inactive: seconds(self.inactive_timeout),
            correlation: seconds(self.correlation_timeout),
            tombstone: TOMBSTONE_SECONDS,
            max_flows: self.max_flows as usize,
            max_tombstones: self.max_tombstones as usize,
            labels: self.pod_labels,
        }
    }
}

/// A transport by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(pub Protocol);

/// `flowCollector.address`, as it was written and as it was understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collector {
    text: String,
    /// What it means; `None` if nothing is written.
    pub address: Option<Address>,
}

/// An observation domain, if one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain(pub Option<u32>);

/// The 16 bytes of a UUID, if one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster(pub Option<[u8; 16]>);

/// How flows are written to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFormat {
    /// IPFIX messages.
    Ipfix,
    /// One JSON object a line.
    Json,
}

impl Setting for Transport {
    const FORM: &'static str = "tls, tcp or udp";

    fn read(node: &Node) -> Result<Self, Unfit> {
        text(node).and_then(|text| text.parse().ok()).map(Transport).ok_or_else(|| wanted(Self::FORM, node))
    }

    fn print(&self) -> String {
        self.0.to_string()
    }
}

impl Setting for Collector {
    const FORM: &'static str = "an address IP:PORT[:PROTO]";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let text = match &node.value {
            Value::Null => "",
            Value::Text(text) => text,
            _ => return Err(wanted(Self::FORM, node)),
        };
        if text.is_empty() {
            return Ok(Collector::default());
        }
        let address = Address::parse(text, Protocol::Tcp).map_err(Unfit::new)?;
        if matches!(address.host, Host::Service { .. }) {
            return Err(Unfit::new(format!("\"{text}\" names a Service; write the collector's address or DNS name")));
        }
        if address.protocol == Protocol::Tls {
            return Err(Unfit::new(format!("\"{text}\": unsupported protocol \"tls\": write tcp or udp")));
        }
        Ok(Collector { text: text.to_owned(), address: Some(address) })
    }

    fn print(&self) -> String {
        self.text.print()
    }
}

impl Setting for Domain {
    const FORM: &'static str = "a number from 0 to 4294967295";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Null => Ok(Domain(None)),
            Value::Text(text) if text.is_empty() => Ok(Domain(None)),
            _ => u32::read(node).map(|domain| Domain(Some(domain))),
        }
    }

    fn print(&self) -> String {
        self.0.map_or_else(|| "\"\"".to_owned(), |domain| domain.to_string())
    }
}

impl Setting for Cluster {
    const FORM: &'static str = "a UUID (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Null => Ok(Cluster(None)),
            Value::Text(text) if text.is_empty() => Ok(Cluster(None)),
            _ => text(node).and_then(uuid).map(|uuid| Cluster(Some(uuid))).ok_or_else(|| wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        let Some(uuid) = self.0 else { return "\"\"".to_owned() };
        let digits = format!("{:032x}", u128::from_be_bytes(uuid));
        let groups = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(begin, end)| &digits[begin..end]);
        groups.join("-").print()
    }
}

impl Setting for RecordFormat {
    const FORM: &'static str = "IPFIX or JSON";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match text(node) {
            Some(text) if text.eq_ignore_ascii_case("ipfix") => Ok(RecordFormat::Ipfix),
            Some(text) if text.eq_ignore_ascii_case("json") => Ok(RecordFormat::Json),
            _ => Err(wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        match self {
            RecordFormat::Ipfix => "IPFIX".to_owned(),
            RecordFormat::Json => "JSON".to_owned(),
        }
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn wanted(form: &str, node: &Node) -> Unfit {
    Unfit::new(format!("{form} is wanted, found {node}"))
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: String = text.split('-').collect();
    let well_formed = groups == [8, 4, 4, 4, 12] && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    well_formed.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

/// FNV-1 of 32 bits.
fn fnv1(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte))
}

/// What no key can check by itself.
fn settle(config: &mut Config, document: &mut Document) {
    for (path, timeout) in [
        ("activeFlowRecordTimeout", config.active_timeout),
        ("inactiveFlowRecordTimeout", config.inactive_timeout),
        ("correlationTimeout", config.correlation_timeout),
    ] {
        if !(LEAST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) {
            document.refuse(path, Unfit::new("must be from 1s to 24h"));
        }
    }
    if config.correlation_timeout >= config.inactive_timeout {
        let reason = "must be less than inactiveFlowRecordTimeout, after which a flow is not waited for any more";
        document.refuse("correlationTimeout", Unfit::new(reason));
    }
    if config.max_flows < FEWEST_FLOWS {
        document.refuse("maxFlows", Unfit::new(format!("must be at least {FEWEST_FLOWS}")));
    }
    for (path, number) in [("maxSessions", config.max_sessions), ("sinkQueue", config.sink_queue)] {
        if number == 0 {
            document.refuse(path, Unfit::new("must be at least 1"));
        }
    }
    let unread = document.is_refused("flowCollector.address");
    if config.collector_enable && config.collector == Collector::default() && !unread {
        document.refuse("flowCollector.address", Unfit::new("must be set, as flowCollector.enable is true"));
    }
    if document.has("flowCollector.address")
        && !document.has("flowCollector.enable")
        && config.collector.address.is_some()
    {
        let note = "has no effect without flowCollector.enable: true";
        document.warn("flowCollector.address", Unfit::new(note));
    }
    settle_tls(config, document);
}

/// The three files of TLS belong together.
fn settle_tls(config: &Config, document: &mut Document) {
    let files = [("tls.ca", &config.tls_ca), ("tls.cert", &config.tls_cert), ("tls.key", &config.tls_key)];
    let tls = config.transport.0 == Protocol::Tls;
    let missing: Vec<&str> = files.iter().filter(|(_, file)| file.is_none()).map(|(path, _)| *path).collect();
    if tls && !missing.is_empty() {
        let missing = missing.join(", ");
        let reason = format!(
            "{missing} must be set, as agents send by tls (aggregatorTransportProtocol); `flow-aggregator certs init DIR` makes the files"
        );
        document.refuse("tls", Unfit::new(reason));
    }
    for (path, _) in files.into_iter().filter(|(_, file)| !tls && file.is_some()) {
        document.warn(path, Unfit::new("has no effect: agents do not send by tls (aggregatorTransportProtocol)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    const TLS: &str = "tls: {ca: ca.crt, cert: server.crt, key: server.key}\n";

    fn said(text: &str) -> String {
        read("flow-aggregator.conf", text).unwrap_err().to_string()
    }

    #[test]
    fn the_documentation_is_that_of_the_declaration() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/aggregator-config.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(written, documentation(), "run `UPDATE_DOCS=1 cargo test -p flow-aggregator documentation`");
    }

    #[test]
    fn printed_settings_read_back() {
        let text = format!(
            "{TLS}clusterUUID: 3f1c9e52-7a01-4b7e-9d57-0123456789ab\nflowCollector:\n  enable: true\n  address: \"[::1]:2055:udp\"\n  observationDomainID: 7\n  recordFormat: json\n"
        );
        let config = read("flow-aggregator.conf", &text).unwrap().settings;
        let printed = config::print(&config);
        assert_snapshot!(printed);
        assert_eq!(read("flow-aggregator.conf", &printed).unwrap().settings, config);
    }

    #[test]
    fn keys_of_older_versions_are_taken() {
        let text = format!(
            "{TLS}externalFlowCollectorAddr: 192.0.2.7:4739:udp\nflowExportInterval: 30s\nrecordFormat: JSON\n"
        );
        let loaded = read("flow-aggregator.conf", &text).unwrap();
        assert_eq!(loaded.settings.active_timeout, Duration::from_secs(30));
        assert_eq!(loaded.settings.record_format, RecordFormat::Json);
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert_snapshot!(warnings.join("\n"));
    }

    #[test]
    fn faults_name_key_and_remedy() {
        assert_snapshot!(said(concat!(
            "activeFlowRecordTimeout: 10ms\ncorrelationTimeout: 2m\naggregatorTransportProtocol: sctp\nflowColector:\n  enable: true\n",
            "flowCollector:\n  enable: true\n  adress: x\n  recordFormat: CSV\nmaxFlows: 3\nsinkQueue: 0\nclusterUUID: 12-34\n",
        )));
        assert_snapshot!(said(&format!("{TLS}flowCollector: {{enable: true, address: \"192.0.2.7:4739:tls\"}}\n")));
        assert_snapshot!(said(&format!("{TLS}flowCollector: {{enable: true, address: \"a/b:4739\"}}\n")));
        assert_snapshot!(said("aggregatorTransportProtocol: tls\n"));
    }

    #[test]
    fn the_domain_is_configured_or_made_of_the_cluster() {
        let domain = |text: &str| read("flow-aggregator.conf", &format!("{TLS}{text}")).unwrap().settings.domain();
        assert_eq!(domain(""), None);
        // Published values of FNV-1.
        assert_eq!(fnv1(&[]), 0x811c_9dc5);
        assert_eq!(fnv1(b"a"), 0x050c_5d7e);
        let uuid = "clusterUUID: 00000000-0000-0000-0000-000000000000\n";
        assert_eq!(domain(uuid), Some(fnv1(&[0; 16])));
        assert_eq!(domain(&format!("{uuid}flowCollector: {{observationDomainID: 42}}\n")), Some(42));
    }
}
