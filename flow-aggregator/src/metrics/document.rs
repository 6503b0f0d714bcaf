//! docs/metrics.md, from the metrics as they are declared.
//!
//! Takes what `/metrics` shows of an aggregator that has done nothing yet; gives a table. Names, kinds and help are not
//! written anywhere else.

use super::{ExporterLabel, Metrics, ReasonLabel, SelectorLabel};
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::fmt::Write;

const PREFACE: &str = "# Metrics of flow-aggregator

Served in OpenMetrics' text format at `/metrics` of `adminAddr` (plain HTTP, 10349) and of the [API](api.md) (HTTPS, with the token). Counters
only grow, from 0 at each start. `sink` is `ipfix`, `json`, `log` or `clickhouse`; `reason` of a refused session is `accept`, `address`, `handshake`,
`idle`, `sessions` or `stalled`; `selector` is a heading of [accounting](accounting.md). `exporter` is an address, with the observation domain beside it; only exporters that lost
records are shown, 1,024 at most, the further ones together as `others`.

What to watch: `flow_aggregator_sink_dropped_total` (flows are lost), `flow_aggregator_sink_connected` at 0, `flow_aggregator_records_lost_total`
(exporters' sequence numbers have gaps; a datagram that is late counts as lost after five seconds), `flow_aggregator_flows_uncorrelated_total` (a Node does not report), `flow_aggregator_config_stale` at 1
(the file that stands there is refused).

This page is made from the declarations in `flow-aggregator/src/metrics.rs`.

| metric | kind | what |
|---|---|---|
";

/// docs/metrics.md.
pub fn documentation() -> String {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    // A family shows its labels only where it has a member.
    metrics.sink("");
    drop(metrics.collector.refused.get_or_create(&ReasonLabel { reason: "" }));
    drop(metrics.table.lost.get_or_create(&ExporterLabel { exporter: String::new(), domain: String::new() }));
    for family in [&metrics.table.packets, &metrics.table.octets] {
        drop(family.get_or_create(&SelectorLabel { selector: String::new() }));
    }
    let mut text = String::new();
    // A string takes everything.
    let _ = encode(&mut text, &registry);
    table(&text)
}

/// The rows of what was encoded: each metric's help, type and first sample.
fn table(text: &str) -> String {
    let mut page = PREFACE.to_owned();
    let mut help = "";
    let mut kind = "";
    let mut waiting = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help).trim_end_matches('.');
            waiting = true;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.rsplit(' ').next().unwrap_or_default();
        } else if !line.starts_with('#') && std::mem::take(&mut waiting) {
            let sample = line.rsplit_once(' ').map_or(line, |(name, _)| name);
            // Of a histogram the sum comes first.
            let sample = sample.replace("_sum{", "{").replace("=\"\"", "");
            let _ = writeln!(page, "| `{sample}` | {kind} | {help} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_that_of_the_declaration() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(written, documentation(), "run `UPDATE_DOCS=1 cargo test -p flow-aggregator documentation`");
    }

    #[test]
    fn every_declared_metric_is_on_the_page() {
        let mut registry = Registry::default();
        Metrics::new(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let page = documentation();
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        for name in names {
            assert!(page.contains(&format!("| `{name}")), "{name}");
        }
    }
}
