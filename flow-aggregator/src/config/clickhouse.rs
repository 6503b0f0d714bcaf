//! What stands behind the keys `clickHouse.*` beyond plain values, and what those keys ask of each other.

use super::{Config, Mode};
use crate::sinks::clickhouse::{Endpoint, Login, Room, Server, Settings};
use flow_common::{
    config::{Document, Node, Setting, Unfit, Value},
    net::Trust,
};
use std::time::Duration;

/// A server, as it was written and as it was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    text: String,
    /// What it means.
    pub endpoint: Endpoint,
}

/// A number of bytes, as it was written and as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    text: String,
    /// What it means.
    pub bytes: u64,
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fraction(pub f64);

/// ClickHouse's own advice: fewer and larger commits.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3_600);
/// Shorter lives than this end before a commit is merged once.
const LEAST_TTL: Duration = Duration::from_secs(60);
/// ClickHouse adds it to a time of 32 bits, which end in 2106: what goes beyond begins again in 1970, and deletes every row.
const LONGEST_TTL: Duration = Duration::from_secs(219_000 * 3_600);

impl Database {
    /// Where Antrea's flow visibility has it.
    pub fn usual() -> Database {
        const USUAL: &str = "tcp://clickhouse-clickhouse.flow-visibility.svc:9000";
        Database { text: USUAL.to_owned(), endpoint: Endpoint::parse(USUAL).expect("an endpoint") }
    }
}

impl Setting for Database {
    const FORM: &'static str = "SCHEME://HOST:PORT (tcp, tls, http or https)";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let text = node.text().ok_or_else(|| Unfit::wanted(Self::FORM, node))?;
        let endpoint = Endpoint::parse(text).map_err(Unfit::new)?;
        Ok(Database { text: text.to_owned(), endpoint })
    }

    fn print(&self) -> String {
        self.text.print()
    }
}

impl Setting for Size {
    const FORM: &'static str = "a size (\"20GiB\", \"500Mi\", 1000000)";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let (Value::Text(text) | Value::Number(text)) = &node.value else {
            return Err(Unfit::wanted(Self::FORM, node));
        };
        let bytes = size(text).filter(|bytes| *bytes > 0).ok_or_else(|| Unfit::wanted(Self::FORM, node))?;
        Ok(Size { text: text.clone(), bytes })
    }

    fn print(&self) -> String {
        self.text.print()
    }
}

impl Setting for Fraction {
    const FORM: &'static str = "a number above 0 and up to 1";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let (Value::Text(text) | Value::Number(text)) = &node.value else {
            return Err(Unfit::wanted(Self::FORM, node));
        };
        let fraction = text.parse().ok().filter(|fraction| *fraction > 0.0 && *fraction <= 1.0);
        fraction.map(Fraction).ok_or_else(|| Unfit::wanted(Self::FORM, node))
    }

    fn print(&self) -> String {
        self.0.to_string()
    }
}

fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = match unit.trim().trim_end_matches('B') {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

impl Config {
    /// Of the sink, if it is enabled. User and password come from the environment.
    pub fn clickhouse(&self) -> Option<Settings> {
        let trust = match &self.clickhouse_ca {
            _ if self.clickhouse_insecure => Trust::Anyone,
            Some(path) => Trust::Ca(path.clone()),
            None => Trust::System,
        };
        self.clickhouse_enable.then(|| Settings {
            server: Server {
                endpoint: self.clickhouse_url.endpoint.clone(),
                login: Login::from_environment(self.clickhouse_database.clone()),
                trust,
                debug: self.clickhouse_debug,
            },
            cluster: Some(self.clickhouse_cluster.clone()).filter(|cluster| !cluster.is_empty()),
            cluster_uuid: self.cluster.text(),
            compress: self.clickhouse_compress,
            interval: self.clickhouse_interval,
            ttl: Some(self.clickhouse_ttl).filter(|ttl| !ttl.is_zero()),
            room: Room {
                max_bytes: self.clickhouse_max_bytes.as_ref().map(|size| size.bytes),
                max_fraction: self.clickhouse_max_fraction.map(|fraction| fraction.0),
            },
            extended: self.extended,
        })
    }
}

/// What no key can check by itself.
pub(super) fn settle(config: &Config, document: &mut Document) {
    if !(LEAST_INTERVAL..=LONGEST_INTERVAL).contains(&config.clickhouse_interval) {
        document.refuse("clickHouse.commitInterval", Unfit::new("must be from 1s to 1h"));
    }
    if !config.clickhouse_ttl.is_zero() && config.clickhouse_ttl < LEAST_TTL {
        document.refuse("clickHouse.ttl", Unfit::new("must be at least 1m, or 0s for ever"));
    }
    if config.clickhouse_ttl > LONGEST_TTL {
        document.refuse("clickHouse.ttl", Unfit::new("must be at most 219000h (25 years), or 0s for ever"));
    }
    if config.clickhouse_queue == 0 {
        document.refuse("clickHouse.queue", Unfit::new("must be at least 1"));
    }
    if config.clickhouse_database.is_empty() {
        document.refuse("clickHouse.database", Unfit::new("must be the name of a database"));
    }
    if config.clickhouse_enable && config.mode == Mode::Proxy {
        document
            .refuse("clickHouse.enable", Unfit::new("cannot be true in mode Proxy: the tables are of joined flows"));
    }
    let secure = config.clickhouse_url.endpoint.scheme.is_secure();
    if config.clickhouse_custom_ca && config.clickhouse_ca.is_none() && secure {
        let reason = "is true, so clickHouse.tls.caFile must name the CA's certificate (ca.crt of Secret clickhouse-ca, mounted)";
        document.refuse("clickHouse.tls.caCert", Unfit::new(reason));
    }
    if config.clickhouse_ca.is_some() && !secure {
        document.warn(
            "clickHouse.tls.caFile",
            Unfit::new("has no effect: clickHouse.databaseURL is neither tls nor https"),
        );
    }
    if document.has("clickHouse.databaseURL") && !document.has("clickHouse.enable") {
        document.warn("clickHouse.databaseURL", Unfit::new("has no effect without clickHouse.enable: true"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn faults_name_key_and_remedy() {
        let read = |text: &str| {
            super::super::read("flow-aggregator.conf", &format!("aggregatorTransportProtocol: tcp\n{text}"))
        };
        let said = |text: &str| read(text).unwrap_err().to_string();
        assert_snapshot!(said(
            "clickHouse:\n  enable: true\n  databaseURL: \"clickhouse:9000\"\n  database: \"\"\n  commitInterval: 500ms\n  queue: 0\n  \
             ttl: 5s\n  retention: {maxBytes: 20 barrels, maxFraction: 1.5}\n  compres: true\n"
        ));
        assert_snapshot!(said("clickHouse: {enable: true, databaseURL: \"https://db\", tls: {caCert: true}}\n"));
        let loaded = read("clickHouse: {databaseURL: \"http://db\", tls: {caFile: ca.crt}}\n").unwrap();
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert_snapshot!(warnings.join("\n"));
        assert!(loaded.settings.clickhouse().is_none());
    }

    #[test]
    fn what_is_configured_comes_to_the_sink() {
        let text = "tls: {ca: a, cert: b, key: c}\nextendedRecords: false\nclickHouse:\n  enable: true\n  databaseURL: \"tls://db\"\n  \
                    tls: {caCert: true, caFile: ca.crt}\n  ttl: 0s\n  cluster: c\n  retention: {maxBytes: 20GiB, maxFraction: 0.5}\n";
        let settings = super::super::read("flow-aggregator.conf", text).unwrap().settings.clickhouse().unwrap();
        assert_eq!(settings.server.endpoint.to_string(), "tls://db:9440");
        assert_eq!(settings.server.trust, Trust::Ca("ca.crt".into()));
        assert_eq!((settings.ttl, settings.cluster.as_deref(), settings.extended), (None, Some("c"), false));
        assert_eq!(settings.room, Room { max_bytes: Some(20 << 30), max_fraction: Some(0.5) });
    }

    #[test]
    fn the_tables_are_of_joined_flows() {
        let text = "aggregatorTransportProtocol: tcp\nmode: Proxy\nclickHouse: {enable: true}\n";
        let said = super::super::read("flow-aggregator.conf", text).unwrap_err().to_string();
        assert_snapshot!(said, @"flow-aggregator.conf:3: clickHouse.enable: cannot be true in mode Proxy: the tables are of joined flows");
    }

    #[test]
    fn a_life_beyond_what_the_server_can_add_to_a_time_is_refused() {
        let read = |ttl: &str| {
            let text = format!("aggregatorTransportProtocol: tcp\nclickHouse: {{ttl: {ttl}}}\n");
            super::super::read("flow-aggregator.conf", &text).map_err(|problems| problems.to_string())
        };
        assert!(read("219000h").is_ok());
        assert_snapshot!(
            read("876000h").unwrap_err(),
            @"flow-aggregator.conf:2: clickHouse.ttl: must be at most 219000h (25 years), or 0s for ever"
        );
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("7", Some(7)),
            ("20GiB", Some(20 << 30)),
            ("500Mi", Some(500 << 20)),
            ("1 kB", Some(1_000)),
            ("1GX", None),
            ("", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
        assert_eq!(size("99999999999TiB"), None);
    }
}
