//! Rows, value by value, beside what the log file says of the same flows; and the sums of the views.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use interop::{Age, Certificates, ClickHouse, Relay};
use serde_json::Value;

use crate::aggregator::{Aggregator, record};

/// The rows as the server has them, in any order: values as texts by column, times as numbers.
fn rows(server: &ClickHouse) -> Result<Vec<BTreeMap<String, String>>> {
    let columns = server.ask("SELECT name, type FROM system.columns WHERE database = 'default' AND table = 'flows'")?;
    let shown = columns.lines().filter_map(|line| line.split_once('\t')).map(|(name, kind)| match kind {
        "DateTime" => format!("toString(toUInt32({name})) AS {name}_"),
        "DateTime64(3)" => format!("toString(toUnixTimestamp64Milli({name})) AS {name}_"),
        _ => format!("toString({name}) AS {name}_"),
    });
    let answer =
        server.ask(&format!("SELECT {} FROM flows FORMAT JSONEachRow", shown.collect::<Vec<_>>().join(", ")))?;
    let row = |line| {
        let object: BTreeMap<String, String> = serde_json::from_str(line)?;
        Ok(object.into_iter().map(|(name, value)| (name.trim_end_matches('_').to_owned(), value)).collect())
    };
    answer.lines().map(row).collect()
}

/// What the log file says of the same flows, under the columns' names.
fn logged(file: &Path) -> Result<Vec<BTreeMap<String, String>>> {
    let row = |line: &str| {
        let line: Value = serde_json::from_str(line)?;
        let fields = line["ipfix"].as_object().context("no flow")?;
        let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(fields
            .iter()
            .filter(|(name, _)| !name.contains("CountFrom"))
            .map(|(name, field)| (column(name), value(field)))
            .collect())
    };
    std::fs::read_to_string(file)?.lines().map(row).collect()
}

fn column(element: &str) -> String {
    match element {
        "sourceIPv4Address" | "sourceIPv6Address" => "sourceIP",
        "destinationIPv4Address" | "destinationIPv6Address" => "destinationIP",
        "destinationClusterIPv4" | "destinationClusterIPv6" => "destinationClusterIP",
        "icmpTypeCodeIPv4" | "icmpTypeCodeIPv6" => "icmpTypeCode",
        "postNATSourceIPv4Address" | "postNATSourceIPv6Address" => "postNATSourceIP",
        same => same,
    }
    .to_owned()
}

/// Rows and log lines of the same flows, by flow.
fn compare(server: &ClickHouse, log: &Path, flows: usize) -> Result<()> {
    let by_flow = |rows: Vec<BTreeMap<String, String>>| -> BTreeMap<String, BTreeMap<String, String>> {
        rows.into_iter().map(|row| (row["flowId"].clone(), row)).collect()
    };
    let (stored, mut expected) = (rows(server)?, by_flow(logged(log)?));
    ensure!(stored.len() == flows && expected.len() == flows, "{} rows of {} flows", stored.len(), expected.len());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    for (flow, mut row) in by_flow(stored) {
        let inserted: u64 = row.remove("timeInserted").context("when?")?.parse()?;
        ensure!(now.abs_diff(inserted) < 120, "inserted at {inserted}");
        ensure!(row.remove("trusted").as_deref() == Some("0"), "{row:?}");
        ensure!(row.remove("clusterUUID").as_deref() == Some("3f1c9e52-7a01-4b7e-9d57-0123456789ab"), "{row:?}");
        let expected = expected.remove(&flow).context("a flow that nobody sent")?;
        for (name, value) in &expected {
            ensure!(row.get(name) == Some(value), "{name}: {:?} instead of {value:?}", row.get(name));
        }
        ensure!(row.len() == expected.len(), "columns that no field has: {row:?}");
    }
    // What the views add up is what the rows have.
    for (view, sums) in [
        ("flows_pod_view", ["octetDeltaCount", "throughput", "throughputFromDestinationNode"]),
        ("flows_node_view", ["reverseOctetDeltaCount", "reverseThroughput", "reverseThroughputFromSourceNode"]),
        ("flows_policy_view", ["octetDeltaCount", "reverseOctetDeltaCount", "throughputFromSourceNode"]),
    ] {
        for sum in sums {
            let [summed, all] =
                [view, "flows"].map(|from| server.ask(&format!("SELECT toString(sum({sum})) FROM {from}")));
            ensure!(summed? == all?, "{sum} of {view}");
        }
    }
    let pods = "SELECT toString(uniq(sourcePodName)) FROM flows_pod_view";
    ensure!(server.ask(pods)? == flows.min(50).to_string(), "Pods of the view");
    Ok(())
}

const CLUSTER: &str = "clusterUUID: 3f1c9e52-7a01-4b7e-9d57-0123456789ab\n";

/// Rows by each scheme, compressed and not.
async fn schemes(age: Age) -> Result<()> {
    let certificates = Certificates::new()?;
    let server = ClickHouse::start(age, &certificates)?;
    let dir = tempfile::tempdir()?;
    for (number, scheme) in ["tcp", "http", "tls", "https"].into_iter().enumerate() {
        let secure = scheme == "tls" || scheme == "https";
        // The modern one does not speak TLS here by itself.
        let plain = if scheme == "tls" { "tcp" } else { "http" };
        let relay = match age {
            Age::Modern if secure => Some(Relay::start(server.addr(plain), Some(&certificates)).await?),
            _ => None,
        };
        let addr = relay.as_ref().map_or_else(|| server.addr(scheme), |relay| relay.addr);
        for compress in [true, false] {
            for table in ["flows", "pod_view_table", "node_view_table", "policy_view_table"] {
                let there = format!(
                    "SELECT toString(count()) FROM system.tables WHERE database = 'default' AND name = '{table}'"
                );
                if server.number(&there)? == 1 {
                    let partitions =
                        format!("SELECT DISTINCT partition_id FROM system.parts WHERE table = '{table}' AND active");
                    for partition in server.ask(&partitions)?.lines() {
                        server.ask(&format!("ALTER TABLE {table} DROP PARTITION ID '{partition}'"))?;
                    }
                }
            }
            let log = dir.path().join(format!("{scheme}-{compress}.jsonl"));
            let tls = format!("tls: {{caCert: true, caFile: \"{}\"}}", certificates.path("ca.crt").display());
            let clickhouse = format!(
                "databaseURL: \"{scheme}://localhost:{}\", compress: {compress}, {}",
                addr.port(),
                if secure { tls.as_str() } else { "debug: false" }
            );
            let logger = format!("{CLUSTER}flowLogger: {{enable: true, path: \"{}\"}}", log.display());
            let aggregator = Aggregator::start(&clickhouse, &logger).await?;
            let flows = 2_000;
            let mut agent = aggregator.agent().await?;
            for begin in (0..flows).step_by(500) {
                let first = number as u32 * 10_000;
                agent.send((begin..begin + 500).map(|flow| record(first + flow))).await?;
            }
            aggregator.until("delivered_total", u64::from(flows)).context(scheme)?;
            ensure!(aggregator.sink("failures_total")? == 0, "{scheme}");
            aggregator.stop().await?;
            compare(&server, &log, flows as usize).with_context(|| format!("{scheme}, compress: {compress}"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_what_was_sent_on_a_modern_server() -> Result<()> {
    schemes(Age::Modern).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_what_was_sent_on_an_old_server() -> Result<()> {
    schemes(Age::Old).await
}
