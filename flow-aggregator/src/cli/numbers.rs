//! `flow-aggregator get recordmetrics` and `get accounting`: numbers of the aggregator and of what agents account for.

use super::{
    client::{Server, block_on},
    flows::Output,
    put,
};
use crate::api::{Account, Accounting, RecordMetrics};
use anyhow::{Context, Result};
use flow_common::cli::text::{bytes, csv, grouped, table};
use serde::{Serialize, de::DeserializeOwned};

/// What both take.
#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// How to print
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

const RECORDS: [&str; 6] =
    ["RECORDS-EXPORTED", "RECORDS-RECEIVED", "RECORDS-DROPPED", "FLOWS", "EXPORTERS-CONNECTED", "RECORDS-LOST"];
const SINKS: [&str; 7] = ["SINK", "CONNECTED", "DELIVERED", "QUEUED", "DROPPED", "REFUSED", "FAILURES"];
const LOSSES: [&str; 2] = ["EXPORTER", "RECORDS-LOST"];
const HEADINGS: [&str; 3] = ["HEADING", "PACKETS", "BYTES"];
const AGENTS: [&str; 5] = ["AGENT", "SEEN", "ACCOUNTED", "ANNOTATED", "COMPLETENESS"];

/// Asks and prints.
pub(super) fn record_metrics(options: &Options) -> Result<()> {
    show(options, "/recordmetrics", |metrics: &RecordMetrics| match options.output {
        Output::Csv => records_as_csv(metrics),
        output => records_as_table(metrics, output == Output::Wide),
    })
}

/// Asks and prints.
pub(super) fn accounting(options: &Options) -> Result<()> {
    show(options, "/accounting", |accounting: &Accounting| match options.output {
        Output::Csv => accounting_as_csv(accounting),
        output => accounting_as_table(accounting, output == Output::Wide),
    })
}

fn show<T: DeserializeOwned + Serialize>(options: &Options, path: &str, text: impl Fn(&T) -> String) -> Result<()> {
    let client = options.server.client()?;
    let answer: T = block_on(client.get(path))?;
    let text = match options.output {
        Output::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&answer).context("the answer as YAML")?,
        Output::Table | Output::Wide | Output::Csv => text(&answer),
    };
    Ok(put(&text)?)
}

/// The aggregator's numbers, and a column for each sink.
pub(super) fn records_as_table(metrics: &RecordMetrics, wide: bool) -> String {
    let (header, cells) = records(metrics);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = table(&header, &[0, 1, 2, 3, 4, 5], &[cells]);
    if wide && !metrics.sinks.is_empty() {
        let rows: Vec<Vec<String>> = metrics
            .sinks
            .iter()
            .map(|(name, sink)| {
                let numbers = [sink.delivered, sink.queued, sink.dropped, sink.refused, sink.failures];
                let words = [name.clone(), word(sink.connected)];
                words.into_iter().chain(numbers.map(grouped)).collect()
            })
            .collect();
        text.push('\n');
        text.push_str(&table(&SINKS, &[2, 3, 4, 5, 6], &rows));
    }
    if wide && !metrics.losses.is_empty() {
        let losses = metrics.losses.iter();
        let rows: Vec<Vec<String>> = losses.map(|(name, lost)| vec![name.clone(), grouped(*lost)]).collect();
        text.push('\n');
        text.push_str(&table(&LOSSES, &[1], &rows));
    }
    text
}

/// The same with commas.
pub(super) fn records_as_csv(metrics: &RecordMetrics) -> String {
    let (header, cells) = records(metrics);
    csv(&header.iter().map(String::as_str).collect::<Vec<_>>(), &[cells])
}

fn records(metrics: &RecordMetrics) -> (Vec<String>, Vec<String>) {
    let numbers = [
        metrics.num_records_exported,
        metrics.num_records_received,
        metrics.num_records_dropped,
        metrics.num_flows,
        metrics.num_conn_to_collector,
        metrics.num_records_lost,
    ];
    let header =
        RECORDS.iter().map(|name| (*name).to_owned()).chain(metrics.sinks.keys().map(|name| name.to_uppercase()));
    let cells = numbers.iter().map(ToString::to_string);
    let cells = cells.chain(metrics.sinks.values().map(|sink| word(sink.connected)));
    (header.collect(), cells.collect())
}

fn word(connected: bool) -> String {
    if connected { "connected" } else { "away" }.to_owned()
}

/// The cluster's headings, and in wide form a line an agent.
pub(super) fn accounting_as_table(accounting: &Accounting, wide: bool) -> String {
    let Accounting { cluster, agents, records_sent, records_not_sent } = accounting;
    if cluster.headings.is_empty() {
        return "No agent has accounted for anything yet.\n".to_owned();
    }
    let rows: Vec<Vec<String>> = cluster
        .headings
        .iter()
        .map(|(heading, sum)| vec![heading.clone(), grouped(sum.packets), bytes(sum.octets)])
        .collect();
    let mut text = table(&HEADINGS, &[1, 2], &rows);
    text.push_str(&format!(
        "\n{} of the packets seen are accounted for, by {} agents.\nTheir flow records: {} sent, {} not sent.\n",
        completeness(cluster),
        agents.len(),
        grouped(*records_sent),
        grouped(*records_not_sent)
    ));
    if wide {
        let packets = |account: &Account, heading| grouped(account.headings.get(heading).map_or(0, |sum| sum.packets));
        let rows: Vec<Vec<String>> = agents
            .iter()
            .map(|(domain, account)| {
                let packets = ["seen", "accounted", "annotated"].map(|heading| packets(account, heading));
                [vec![domain.to_string()], packets.to_vec(), vec![completeness(account)]].concat()
            })
            .collect();
        text.push('\n');
        text.push_str(&table(&AGENTS, &[1, 2, 3, 4], &rows));
    }
    text
}

/// The cluster's headings with commas.
pub(super) fn accounting_as_csv(accounting: &Accounting) -> String {
    let headings = accounting.cluster.headings.iter();
    let rows: Vec<Vec<String>> =
        headings.map(|(heading, sum)| vec![heading.clone(), sum.packets.to_string(), sum.octets.to_string()]).collect();
    csv(&HEADINGS, &rows)
}

/// Rounded down: 100 % is what nothing is missing of.
fn completeness(account: &Account) -> String {
    account
        .completeness
        .map_or_else(|| "-".to_owned(), |percent| format!("{:.3} %", (percent * 1000.0).floor() / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aggregate::Amount, api::SinkNumbers};
    use insta::assert_snapshot;

    #[test]
    fn record_metrics_have_a_column_a_sink() {
        let sink = SinkNumbers { delivered: 1_200, queued: 34, connected: true, ..SinkNumbers::default() };
        let away = SinkNumbers { dropped: 7, failures: 3, queued: 99, ..SinkNumbers::default() };
        let metrics = RecordMetrics {
            num_records_exported: 1_241,
            num_records_received: 2_500,
            num_records_dropped: 7,
            num_records_lost: 1_500,
            num_flows: 321,
            num_conn_to_collector: 12,
            sinks: [("ipfix".to_owned(), sink), ("log".to_owned(), away)].into(),
            losses: [("192.0.2.1 10".to_owned(), 1_200), ("192.0.2.2 11".to_owned(), 300)].into(),
        };
        assert_snapshot!(records_as_table(&metrics, true));
        assert_snapshot!(records_as_csv(&metrics));
    }

    #[test]
    fn accounting_says_how_complete_it_is() {
        assert_snapshot!(accounting_as_table(&Accounting::default(), true));
        let amount = |packets| Amount { packets, octets: packets * 1_000 };
        let headings = |seen, accounted| {
            [("seen", seen), ("accounted", accounted), ("annotated", 1_000), ("map_full", 1)]
                .map(|(heading, packets)| (heading.to_owned(), amount(packets)))
                .into()
        };
        let account = Account { completeness: Some(99.999_95), headings: headings(2_000_001, 1_999_000) };
        let accounting = Accounting {
            cluster: account.clone(),
            agents: [(0xa, account), (0xb, Account::default())].into(),
            records_sent: 5_000,
            records_not_sent: 2,
        };
        assert_snapshot!(accounting_as_table(&accounting, true));
        assert_snapshot!(accounting_as_csv(&accounting));
    }
}
