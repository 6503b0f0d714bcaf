//! What stands behind the aggregator's own keys: addresses, choices, numbers that may be left out.
//!
//! Takes YAML nodes; gives typed values that print back, or says what should be written. States no default.

use flow_common::{
    config::{Choice, Node, Setting, Unfit, Value},
    net::{Address, Host, Protocol, TlsSuites, TlsVersion},
};
use std::net::IpAddr;

/// A transport by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(pub Protocol);

/// What becomes of agents' records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Both halves of a connection are joined, and its records gathered.
    Aggregate,
    /// Each record is named and sent on at once.
    Proxy,
}

/// How flows are written to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFormat {
    /// IPFIX messages.
    Ipfix,
    /// One JSON object a line.
    Json,
}

/// How flows are written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Values with commas between them.
    Csv,
    /// One JSON object a line.
    Json,
}

impl Choice for Transport {
    const FORM: &'static str = "tls, tcp or udp";
    const ALL: &'static [(Self, &'static str)] =
        &[(Transport(Protocol::Tls), "tls"), (Transport(Protocol::Tcp), "tcp"), (Transport(Protocol::Udp), "udp")];
}

impl Choice for Mode {
    const FORM: &'static str = "Aggregate or Proxy";
    const ALL: &'static [(Self, &'static str)] = &[(Mode::Aggregate, "Aggregate"), (Mode::Proxy, "Proxy")];
}

impl Choice for RecordFormat {
    const FORM: &'static str = "IPFIX or JSON";
    const ALL: &'static [(Self, &'static str)] = &[(RecordFormat::Ipfix, "IPFIX"), (RecordFormat::Json, "JSON")];
}

impl Choice for LogFormat {
    const FORM: &'static str = "CSV or JSON";
    const ALL: &'static [(Self, &'static str)] = &[(LogFormat::Csv, "CSV"), (LogFormat::Json, "JSON")];
}

/// The least version of TLS by Go's name for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeastVersion {
    /// What is used.
    pub version: TlsVersion,
    /// A version was named that is not safe any more.
    pub raised: bool,
}

/// Cipher suites, as they were written and as they were understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suites {
    text: String,
    /// What they are.
    pub suites: TlsSuites,
}

/// An address of this machine to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddr(pub IpAddr);

/// A section that other aggregators have for what is not done here; only its being off is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unoffered;

/// A Secret's name, which cannot be used yet; only an empty one is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSecret;

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

impl Setting for Collector {
    const FORM: &'static str = "an address IP:PORT[:PROTO]";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let text = match &node.value {
            Value::Null => "",
            Value::Text(text) => text,
            _ => return Err(Unfit::wanted(Self::FORM, node)),
        };
        if text.is_empty() {
            return Ok(Collector::default());
        }
        let address = Address::parse(text, Protocol::Tcp).map_err(Unfit::new)?;
        if matches!(address.host, Host::Service { .. }) {
            return Err(Unfit::new(format!("\"{text}\" names a Service; write the collector's address or DNS name")));
        }
        if address.protocol == Protocol::Tls {
            return Err(Unfit::new(format!(
                "\"{text}\": unsupported protocol \"tls\": write tcp, and set flowCollector.tls.enable to true"
            )));
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

impl Cluster {
    /// As it is usually written; "" if none is set.
    pub fn text(&self) -> String {
        let Some(uuid) = self.0 else { return String::new() };
        let digits = format!("{:032x}", u128::from_be_bytes(uuid));
        let groups = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(begin, end)| &digits[begin..end]);
        groups.join("-")
    }
}

impl Setting for Cluster {
    const FORM: &'static str = "a UUID (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Null => Ok(Cluster(None)),
            Value::Text(text) if text.is_empty() => Ok(Cluster(None)),
            _ => node
                .text()
                .and_then(uuid)
                .map(|uuid| Cluster(Some(uuid)))
                .ok_or_else(|| Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        self.text().print()
    }
}

impl Setting for LeastVersion {
    const FORM: &'static str = "VersionTLS12 or VersionTLS13";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Null => Ok(Self::default()),
            Value::Text(text) => match text.as_str() {
                "" | "VersionTLS12" => Ok(Self::default()),
                "VersionTLS10" | "VersionTLS11" => Ok(Self { raised: true, ..Self::default() }),
                "VersionTLS13" => Ok(Self { version: TlsVersion::Tls13, raised: false }),
                _ => Err(Unfit::wanted(Self::FORM, node)),
            },
            _ => Err(Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        match self.version {
            TlsVersion::Tls12 => "VersionTLS12".to_owned(),
            TlsVersion::Tls13 => "VersionTLS13".to_owned(),
        }
    }
}

impl Setting for Suites {
    const FORM: &'static str = "names of cipher suites with commas between them";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let text = String::read(node).map_err(|_| Unfit::wanted(Self::FORM, node))?;
        let suites = TlsSuites::parse(&text).map_err(Unfit::new)?;
        Ok(Suites { text, suites })
    }

    fn print(&self) -> String {
        self.text.print()
    }
}

impl Setting for BindAddr {
    const FORM: &'static str = "an address of this machine, \"::\" for all";

    fn read(node: &Node) -> Result<Self, Unfit> {
        node.text().and_then(|text| text.parse().ok()).map(BindAddr).ok_or_else(|| Unfit::wanted(Self::FORM, node))
    }

    fn print(&self) -> String {
        self.0.to_string().print()
    }
}

impl Setting for Unoffered {
    const FORM: &'static str = "nothing, or enable: false";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let on = |(_, name, node): &(u64, String, Node)| name == "enable" && node.value != Value::Bool(false);
        match &node.value {
            Value::Null => Ok(Unoffered),
            Value::Mapping(entries) if !entries.iter().any(on) => Ok(Unoffered),
            _ => Err(Unfit::new("is not offered here: write flows to a file (flowLogger) and ship that, or remove it")),
        }
    }

    fn print(&self) -> String {
        "{}".to_owned()
    }
}

impl Setting for NoSecret {
    const FORM: &'static str = "nothing";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match String::read(node) {
            Ok(text) if text.is_empty() => Ok(NoSecret),
            _ => Err(Unfit::new(
                "Secrets are not read from the API: mount the Secret and name its files in flowCollector.tls.ca, .cert and .key",
            )),
        }
    }

    fn print(&self) -> String {
        "\"\"".to_owned()
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: String = text.split('-').collect();
    let well_formed = groups == [8, 4, 4, 4, 12] && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    well_formed.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

/// FNV-1 of 32 bits.
pub(super) fn fnv1(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte))
}
