//! flow-aggregator.conf: every key the aggregator knows, declared once with its default and documentation.
//!
//! Takes the file's text, gives [`Config`], or every fault by line and key. docs/aggregator-config.md is made from the
//! declaration. Opens nothing that the keys name.

mod clickhouse;
mod filters;
mod settle;
#[cfg(test)]
mod tests;
mod value;

pub use filters::ActionFilters;
pub use value::{
    BindAddr, Cluster, Collector, Domain, LeastVersion, LogFormat, Mode, NoSecret, RecordFormat, Suites, Transport,
    Unoffered,
};

use crate::{aggregate::Settings as Table, collector::Limits};
use clickhouse::{Database, Fraction, Size};
use flow_common::{
    config::{self, Loaded, Problems, Settings},
    daemon::http,
    net::{Address, Bounds, IPFIX_PORT, Protocol, TlsFiles, TlsTrust, Trust},
    settings,
};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Where the API is unless told otherwise.
pub const API_PORT: u16 = 10_348;

settings! {
    /// What flow-aggregator.conf holds.
    pub struct Config {
        /// `Aggregate`: both halves of a connection are joined and its records gathered. `Proxy`: each record is named
        /// and sent on at once, with the exporter it came from; nothing is joined, and no flow is kept. A change while the
        /// aggregator runs forgets the table: all news in it is exported at once and as one batch, which each queue takes
        /// whole, in the place of what waits there and has no room beside it.
        "mode" => mode: Mode = Mode::Aggregate,
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
        /// The certificate shown to agents (PEM). Needed where agents send by `tls`. Renewed files are used from the
        /// next connection on, without a restart.
        "tls.cert" => tls_cert: Option<PathBuf> = None,
        /// The private key of `tls.cert` (PEM).
        "tls.key" => tls_key: Option<PathBuf> = None,
        /// A further DNS name or address by which the aggregator is reached; the certificate that is made for the API
        /// is for it, too.
        "flowAggregatorAddress" => own_address: String = String::new(),
        /// The port of the API, over HTTPS (docs/api.md); empty: there is none.
        "apiServer.apiPort" => api_port: Option<u16> = Some(API_PORT),
        /// Where the API listens.
        "apiServer.bindAddress" => api_addr: BindAddr = BindAddr(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        /// Cipher suites of TLS 1.2 that the API accepts, by the names of Go or IANA. Empty: all safe ones. Those of TLS
        /// 1.3 are always accepted and not listed.
        "apiServer.tlsCipherSuites" => api_suites: Suites = Suites::default(),
        /// The least version of TLS that the API accepts. Older ones than `VersionTLS12` are raised to it.
        "apiServer.tlsMinVersion" => api_least: LeastVersion = LeastVersion::default(),
        /// The API's certificate (PEM), used from the next connection on when it is renewed. Without it one is made at
        /// the start.
        "apiServer.tlsCert" => api_cert: Option<PathBuf> = None,
        /// The private key of `apiServer.tlsCert` (PEM).
        "apiServer.tlsKey" => api_key: Option<PathBuf> = None,
        /// A file with the token that the API's clients must bear; it is read anew for each request. Without it the
        /// token that is made at the start is good.
        "apiServer.tokenFile" => api_token: Option<PathBuf> = None,
        /// The folder in which certificate and token that were made stand for as long as the process runs, for the
        /// command line on the same host; only this user may read the token. Each aggregator of a host needs one of its
        /// own: in a shared one the later one's files replace the earlier one's, and go with whichever ends first.
        "apiServer.folder" => api_folder: PathBuf = PathBuf::from("/run/flow-aggregator"),
        /// Whether joined flows are sent to a collector.
        "flowCollector.enable" => collector_enable: bool = false,
        /// The collector: `IP:PORT[:PROTO]`, an IPv6 address in brackets; PROTO is `tcp` or `udp`, without it `tcp`.
        "flowCollector.address" | "externalFlowCollectorAddr" => collector: Collector = Collector::default(),
        /// Names this aggregator to the collector in IPFIX. Empty: made from `clusterUUID`, else drawn at each start.
        "flowCollector.observationDomainID" => observation_domain: Domain = Domain(None),
        /// How flows are written: `IPFIX` or `JSON` (one object a line).
        "flowCollector.recordFormat" | "recordFormat" => record_format: RecordFormat = RecordFormat::Ipfix,
        /// How often the templates are sent again over `udp`.
        "flowCollector.templateRefreshTimeout" => template_refresh: Duration = Duration::from_secs(600),
        /// The longest IPFIX message, in bytes; 0: what the transport carries, over `udp` the path's MTU.
        "flowCollector.maxIPFIXMsgSize" => max_message: u32 = 0,
        /// Whether the collector is reached by TLS (over `tcp`).
        "flowCollector.tls.enable" => collector_tls: bool = false,
        /// The CA that signed the collector's certificate (PEM). Empty: the CAs that this machine trusts.
        "flowCollector.tls.ca" => collector_tls_ca: Option<PathBuf> = None,
        /// The certificate shown to the collector (PEM), where it asks for one.
        "flowCollector.tls.cert" => collector_tls_cert: Option<PathBuf> = None,
        /// The private key of `flowCollector.tls.cert` (PEM).
        "flowCollector.tls.key" => collector_tls_key: Option<PathBuf> = None,
        /// The name that the collector's certificate must be for. Empty: the host of `flowCollector.address`.
        "flowCollector.tls.serverName" => collector_tls_name: String = String::new(),
        /// The least version of TLS that is spoken with the collector.
        "flowCollector.tls.minVersion" => collector_tls_version: LeastVersion = LeastVersion::default(),
        /// Not offered yet: mount the Secret, and name its file in `flowCollector.tls.ca`.
        "flowCollector.tls.caSecretName" => collector_ca_secret: NoSecret = NoSecret,
        /// Not offered yet: mount the Secret, and name its files in `flowCollector.tls.cert` and `.key`.
        "flowCollector.tls.clientSecretName" => collector_client_secret: NoSecret = NoSecret,
        /// Whether flows are written to a file, beside the collector.
        "flowLogger.enable" => logger_enable: bool = false,
        /// The file that the lines are appended to; `-` is the standard output.
        "flowLogger.path" => logger_path: PathBuf = PathBuf::from("-"),
        /// Megabytes (10^6 bytes) after which a file is put aside, with the time in its name, and a new one begun.
        "flowLogger.maxSize" => logger_max_size: u32 = 100,
        /// After this time a file is put aside even if it is short; 0s: never.
        "flowLogger.rotateAfter" => logger_rotate_after: Duration = Duration::ZERO,
        /// How many files that were put aside stay; the oldest go. 0: all.
        "flowLogger.maxBackups" => logger_max_backups: u32 = 3,
        /// Days after which a file that was put aside goes; 0: never.
        "flowLogger.maxAge" => logger_max_age: u32 = 0,
        /// Whether files that were put aside are compressed with gzip.
        "flowLogger.compress" => logger_compress: bool = true,
        /// How a flow is written: `JSON` (one object a line, every field) or `CSV` (the 30 fields that docs/log-file.md
        /// lists).
        "flowLogger.recordFormat" => logger_format: LogFormat = LogFormat::Json,
        /// Whether CSV has names in place of numbers for protocols, policies' kinds and rules' actions.
        "flowLogger.prettyPrint" => logger_pretty: bool = true,
        /// Which flows are written: those that fulfil one of these. Empty: all.
        "flowLogger.filters" => logger_filters: ActionFilters = ActionFilters::default(),
        /// Not offered. A section with `enable: false` is accepted, so that files of other aggregators need no change.
        "s3Uploader" => s3: Unoffered = Unoffered,
        /// Whether joined flows are written to ClickHouse. User and password are taken from the environment variables
        /// `CH_USERNAME` and `CH_PASSWORD`; without them it is the user `default` without a password.
        "clickHouse.enable" => clickhouse_enable: bool = false,
        /// The database in which the table `flows` and its views are. It must be there; they are made if missing.
        "clickHouse.database" => clickhouse_database: String = "default".to_owned(),
        /// The server: `SCHEME://HOST:PORT`. SCHEME is `tcp` (usual port 9000) or `tls` (9440) for the native protocol,
        /// `http` (8123) or `https` (8443).
        "clickHouse.databaseURL" => clickhouse_url: Database = Database::usual(),
        /// Whether anybody's certificate is taken. The connection is encrypted then, but to whomever it is that answers.
        "clickHouse.tls.insecureSkipVerify" => clickhouse_insecure: bool = false,
        /// Whether the server's certificate is of a CA of its own, which `clickHouse.tls.caFile` names.
        "clickHouse.tls.caCert" => clickhouse_custom_ca: bool = false,
        /// The CA that signed the server's certificate (PEM). Empty: the CAs that the system trusts.
        "clickHouse.tls.caFile" => clickhouse_ca: Option<PathBuf> = None,
        /// Whether every statement that is sent is logged.
        "clickHouse.debug" => clickhouse_debug: bool = false,
        /// Whether rows are compressed (LZ4) on the way.
        "clickHouse.compress" => clickhouse_compress: bool = true,
        /// Rows are gathered this long, then committed together; 65,536 are committed at once. From 1s to 1h.
        "clickHouse.commitInterval" => clickhouse_interval: Duration = Duration::from_secs(8),
        /// Rows that wait while the server is away or slow. Beyond it the oldest are dropped and counted.
        "clickHouse.queue" => clickhouse_queue: u32 = 524_288,
        /// Rows older than this are deleted; `0s`: never. Up to 219000h (25 years).
        "clickHouse.ttl" => clickhouse_ttl: Duration = Duration::from_secs(12 * 3_600),
        /// Above this size of table and views on the server's disk the oldest partitions (hours or days) are dropped.
        "clickHouse.retention.maxBytes" => clickhouse_max_bytes: Option<Size> = None,
        /// Above this part of the disk's size the oldest partitions are dropped.
        "clickHouse.retention.maxFraction" => clickhouse_max_fraction: Option<Fraction> = None,
        /// A cluster of ClickHouse, by its name in the servers' `remote_servers`: replicated tables on every server, and
        /// `flows` and the views span them. Empty: the one server.
        "clickHouse.cluster" => clickhouse_cluster: String = String::new(),
        /// A folder of Kubernetes manifests (Node, Namespace, Pod): the aggregator then decides where both ends of a flow
        /// are, and names Pods whose Node does not report. Changed files are read again.
        "kubernetes.objects" => objects: Option<PathBuf> = None,
        /// Whether records bear the labels of both Pods. They are known of Pods in `kubernetes.objects`.
        "recordContents.podLabels" => pod_labels: bool = false,
        /// The cluster's UUID, of which the observation domain is made.
        "clusterUUID" => cluster: Cluster = Cluster(None),
        /// Whether records carry millisecond times, TCP flags, ICMP type, flow id, drops, verdict and translated source
        /// beyond the elements that Antrea's aggregator sends.
        "extendedRecords" => extended: bool = true,
        /// Flows that are kept at one time, of IPv4 and of IPv6 each. Beyond it those that were not heard of for
        /// longest are exported early and counted.
        "maxFlows" => max_flows: u32 = 1_048_576,
        /// What stays of flows that are over, for five minutes, of IPv4 and of IPv6 each. Beyond it the oldest go
        /// early and are counted; about 120 bytes each.
        "maxTombstones" => max_tombstones: u32 = 1_000_000,
        /// Exporters that can be connected (or, by UDP, heard of) at one time. Of those by UDP one that was silent for
        /// three minutes makes room for another. Each by `tls` or `tcp` keeps a file open: the limit of open files is
        /// raised as far as the system allows, and a warning tells where that is too little.
        "maxSessions" => max_sessions: u32 = 16_384,
        /// As many of one address: a quarter of all, so that one peer cannot keep the others out. It should be more than
        /// the agents that come from one address where connections are translated on the way, as through a NodePort. `0`:
        /// no more than `maxSessions`.
        "maxSessionsPerAddress" => max_sessions_of_one: u32 = 4_096,
        /// Of an exporter by `tls` or `tcp` that sends nothing at all for this long the connection is closed, so that its
        /// place is free; `0s`: never. Agents send their accounting every minute. One that does not
        /// (`accountingRecords: false`) and sees no connection for so long connects again a second later, and loses nothing.
        "sessionIdleTimeout" => session_idle: Duration = Duration::from_secs(600),
        /// Joined flows that wait for each sink but ClickHouse (`clickHouse.queue`). Beyond it the oldest are dropped and
        /// counted.
        "sinkQueue" => sink_queue: u32 = 262_144,
        /// Where metrics and health are served; empty: nowhere.
        "adminAddr" => admin: Option<SocketAddr> = Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 10_349))),
        /// How much is logged: `error`, `warn`, `info`, `debug` or `trace`.
        "logLevel" => log_level: String = "info".to_owned(),
    }
}

/// Keys whose changes wait for a restart: ports, and the TLS of what listens on them.
const BOUND: [&str; 14] = [
    "aggregatorTransportProtocol",
    "listenAddr",
    "tls.ca",
    "tls.cert",
    "tls.key",
    "flowAggregatorAddress",
    "apiServer.apiPort",
    "apiServer.bindAddress",
    "apiServer.tlsCipherSuites",
    "apiServer.tlsMinVersion",
    "apiServer.tlsCert",
    "apiServer.tlsKey",
    "apiServer.folder",
    "adminAddr",
];
/// Files that may be open beside connections: of sinks, of what is followed and of the runtime.
const OTHER_FILES: u64 = 64;
/// Within this a flow that is heard of again goes on.
const TOMBSTONE_SECONDS: u32 = 300;

/// Reads the text of `file`.
pub fn read(file: &str, text: &str) -> Result<Loaded<Config>, Problems> {
    config::read(file, text, settle::settle)
}

/// docs/aggregator-config.md.
pub fn documentation() -> String {
    let bound: Vec<String> = BOUND.iter().map(|key| format!("`{key}`")).collect();
    let preface = format!(
        "`flow-aggregator.conf` is YAML. Every key may be left out. Other keys are refused with the nearest known one\n\
        named; `flow-aggregator config check --config FILE` says whether a file is good, `flow-aggregator config print`\n\
        shows every value.\n\n\
        The file is followed while the aggregator runs, also as Kubernetes swaps a mounted ConfigMap. A good one takes\n\
        effect at once: sinks start, stop and change, and those whose settings did not change keep their connection and\n\
        queue. A bad one is refused whole, named by line and key, and what was in force stays. Only these keys wait for a\n\
        restart, and a warning names those that changed: {}.\n\n\
        This page is made from the declaration in `flow-aggregator/src/config.rs`.",
        bound.join(", ")
    );
    config::markdown("flow-aggregator.conf", &preface, &Config::keys())
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

    /// Where flows are sent, if anywhere.
    pub fn collector_address(&self) -> Option<Address> {
        let mut address = self.collector.address.clone().filter(|_| self.collector_enable)?;
        if self.collector_tls {
            address.protocol = Protocol::Tls;
        }
        Some(address)
    }

    /// Whom the collector must be, and what it is shown, where it is reached by TLS.
    pub fn collector_trust(&self) -> Option<TlsTrust> {
        let pair = self.collector_tls_cert.clone().zip(self.collector_tls_key.clone());
        let trust = Trust::of(self.collector_tls_ca.clone());
        let trust = TlsTrust { trust, pair, least: self.collector_tls_version.version };
        self.collector_tls.then_some(trust)
    }

    /// The observation domain that the configuration gives: as it stands, or made from the cluster's UUID.
    pub fn domain(&self) -> Option<u32> {
        self.observation_domain.0.or_else(|| self.cluster.0.map(|uuid| value::fnv1(&uuid)))
    }

    /// Takes back what only a restart can change: ports, and the TLS of what listens on them.
    pub fn keep_bound(&mut self, running: &Config) {
        self.keep(&BOUND, running);
    }

    /// Of the collector.
    pub fn limits(&self) -> Limits {
        let of_one = if self.max_sessions_of_one == 0 { self.max_sessions } else { self.max_sessions_of_one };
        let sessions = Bounds { all: self.max_sessions as usize, of_one: of_one as usize };
        Limits { sessions, idle: Some(self.session_idle).filter(|idle| !idle.is_zero()) }
    }

    /// Files and sockets that may be open at one time.
    pub fn open_files(&self) -> u64 {
        // Exporters by datagrams share one socket.
        let exporters = if self.transport.0 == Protocol::Udp { 1 } else { self.max_sessions.into() };
        let ports = [self.api_port.is_some(), self.admin.is_some()].into_iter().filter(|is_there| *is_there).count();
        exporters + (ports * http::CONNECTIONS) as u64 + OTHER_FILES
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
            proxy: self.mode == Mode::Proxy,
        }
    }
}
