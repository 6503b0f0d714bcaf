//! `/recordmetrics` and `/accounting`: their JSON, which the command line reads again.
//!
//! Takes the figures of the table's task; gives what is sent. docs/api.md documents these fields.

use crate::{
    aggregate::{Amount, Source},
    join,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Records, flows and sinks in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordMetrics {
    /// Records exported, joined or handed on.
    pub num_records_exported: u64,
    /// Records received of all exporters.
    pub num_records_received: u64,
    /// Records that a sink dropped or could not take, of all sinks that run.
    pub num_records_dropped: u64,
    /// Records that exporters sent and that did not come, as their sequence numbers say.
    pub num_records_lost: u64,
    /// Flows in the table.
    pub num_flows: u64,
    /// Exporters connected, or by UDP heard of.
    pub num_conn_to_collector: u64,
    /// The sinks that run.
    pub sinks: BTreeMap<String, SinkNumbers>,
    /// Exporters of which records were lost, by address and observation domain; `others` are all beyond the bound.
    pub losses: BTreeMap<String, u64>,
}

/// A sink in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkNumbers {
    /// Flows delivered.
    pub delivered: u64,
    /// Flows dropped from a full queue.
    pub dropped: u64,
    /// Flows that the destination cannot take.
    pub refused: u64,
    /// Failed attempts and lost connections.
    pub failures: u64,
    /// Flows that wait.
    pub queued: u64,
    /// Whether it is open.
    pub connected: bool,
}

/// What agents account for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accounting {
    /// The cluster.
    pub cluster: Account,
    /// Each agent, by its observation domain.
    pub agents: BTreeMap<u32, Account>,
    /// Flow records that agents say they sent.
    pub records_sent: u64,
    /// Flow records that agents say they could not send.
    pub records_not_sent: u64,
}

/// Packets and bytes that passed interfaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Packets that are accounted for or were annotated, of those seen, in percent; none if none were seen.
    pub completeness: Option<f64>,
    /// By heading (docs/accounting.md).
    pub headings: BTreeMap<String, Amount>,
}

impl RecordMetrics {
    /// Of the table's figures and the number of sessions.
    pub(super) fn of(figures: &join::Figures, sessions: u64) -> RecordMetrics {
        let sinks: BTreeMap<String, SinkNumbers> = figures
            .outlets
            .iter()
            .map(|outlet| {
                let metrics = &outlet.metrics;
                let numbers = SinkNumbers {
                    delivered: metrics.delivered.get(),
                    dropped: metrics.dropped.get(),
                    refused: metrics.refused.get(),
                    failures: metrics.failures.get(),
                    queued: outlet.queue.len() as u64,
                    connected: metrics.connected.get() != 0,
                };
                (outlet.name.to_owned(), numbers)
            })
            .collect();
        RecordMetrics {
            num_records_exported: figures.exported,
            num_records_received: figures.received,
            num_records_dropped: sinks.values().map(|sink| sink.dropped + sink.refused).sum(),
            num_records_lost: figures.lost.iter().map(|(_, records)| records).sum(),
            num_flows: figures.flows as u64,
            num_conn_to_collector: sessions,
            sinks,
            losses: figures.lost.iter().map(|(source, records)| (exporter(*source), *records)).collect(),
        }
    }
}

fn exporter(source: Option<Source>) -> String {
    source.map_or_else(|| "others".to_owned(), |Source { addr, domain }| format!("{addr} {domain}"))
}

impl Accounting {
    pub(super) fn of(accounting: join::Accounting) -> Accounting {
        Accounting {
            cluster: Account::of(accounting.cluster),
            agents: accounting.agents.into_iter().map(|(domain, sums)| (domain, Account::of(sums))).collect(),
            records_sent: accounting.sent,
            records_not_sent: accounting.not_sent,
        }
    }
}

impl Account {
    fn of(headings: BTreeMap<String, Amount>) -> Account {
        let packets = |heading| headings.get(heading).map_or(0, |amount| amount.packets);
        let (seen, known) = (packets("seen"), packets("accounted").saturating_add(packets("annotated")));
        #[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
        let completeness = (seen > 0).then(|| known as f64 * 100.0 / seen as f64);
        Account { completeness, headings }
    }
}
