//! What the aggregator counts of itself, in Prometheus' terms.
//!
//! Takes a registry; gives the handles that each stage is passed. The table of connections counts in plain numbers,
//! which are copied here from time to time.

mod document;

pub use document::documentation;

use crate::aggregate::{Aggregate, Counts, Fill, Received, Source};
use flow_common::daemon::http::Connections;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Upper bounds in seconds: a sink that keeps up needs milliseconds, one that was away minutes.
const LATENCIES: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1_800.0];

/// All of them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Of the collector.
    pub collector: CollectorMetrics,
    /// Of the table.
    pub table: TableMetrics,
    /// Of the configuration.
    pub reloads: ReloadMetrics,
    /// Of the API.
    pub api: ApiMetrics,
    sinks: SinkFamilies,
}

/// Sessions and what they bring.
#[derive(Clone, Debug, Default)]
pub struct CollectorMetrics {
    /// Exporters connected, or by UDP heard of.
    pub sessions: Gauge,
    /// Sessions that began.
    pub accepted: Counter,
    /// Connections turned away, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// Sessions closed for malformed messages.
    pub malformed_sessions: Counter,
    /// Datagrams lost for want of room before the table.
    pub dropped_datagrams: Counter,
    /// Bytes received.
    pub bytes: Counter,
}

/// The table, as of the last look.
#[derive(Clone, Debug, Default)]
pub struct TableMetrics {
    counts: Vec<Counter>,
    received: Vec<Counter>,
    fill: Vec<Gauge>,
    packets: Family<SelectorLabel, Gauge>,
    octets: Family<SelectorLabel, Gauge>,
    lost: Family<ExporterLabel, Counter>,
    agents_sent: Gauge,
    agents_not_sent: Gauge,
    refused_objects: Gauge,
}

/// The configuration file, while it is followed.
#[derive(Clone, Debug, Default)]
pub struct ReloadMetrics {
    /// Files that are in force, one after the other.
    pub taken: Counter,
    /// Files refused.
    pub refused: Counter,
    /// 1 while the file that stands there is refused.
    pub stale: Gauge,
}

/// The API's connections.
#[derive(Clone, Debug, Default)]
pub struct ApiMetrics {
    /// Open and turned away.
    pub connections: Connections,
    /// Requests without the token.
    pub unauthorized: Counter,
    /// Batches that followers who read too slowly missed.
    pub skipped: Counter,
}

/// One sink.
#[derive(Clone, Debug)]
pub struct SinkMetrics {
    /// Flows delivered.
    pub delivered: Counter,
    /// Flows dropped from a full queue, or at the end.
    pub dropped: Counter,
    /// Flows the destination cannot take.
    pub refused: Counter,
    /// Failed attempts and lost connections.
    pub failures: Counter,
    /// Flows that wait.
    pub queued: Gauge,
    /// 1 while it is open.
    pub connected: Gauge,
    /// Seconds from the export of a batch until it was delivered.
    pub latency: Histogram,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// In a word.
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SelectorLabel {
    selector: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExporterLabel {
    exporter: String,
    domain: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: &'static str,
}

#[derive(Clone, Debug)]
struct SinkFamilies {
    delivered: Family<SinkLabel, Counter>,
    dropped: Family<SinkLabel, Counter>,
    refused: Family<SinkLabel, Counter>,
    failures: Family<SinkLabel, Counter>,
    queued: Family<SinkLabel, Gauge>,
    connected: Family<SinkLabel, Gauge>,
    latency: Family<SinkLabel, Histogram>,
}

impl Metrics {
    /// Registers everything under `flow_aggregator_`.
    pub fn new(registry: &mut Registry) -> Metrics {
        let registry = registry.sub_registry_with_prefix("flow_aggregator");
        Metrics {
            collector: CollectorMetrics::new(registry),
            table: TableMetrics::new(registry),
            reloads: ReloadMetrics::new(registry),
            api: ApiMetrics::new(registry),
            sinks: SinkFamilies::new(registry),
        }
    }

    /// The handles of one sink.
    pub fn sink(&self, sink: &'static str) -> SinkMetrics {
        let (label, families) = (SinkLabel { sink }, &self.sinks);
        SinkMetrics {
            delivered: families.delivered.get_or_create_owned(&label),
            dropped: families.dropped.get_or_create_owned(&label),
            refused: families.refused.get_or_create_owned(&label),
            failures: families.failures.get_or_create_owned(&label),
            queued: families.queued.get_or_create_owned(&label),
            connected: families.connected.get_or_create_owned(&label),
            latency: families.latency.get_or_create_owned(&label),
        }
    }
}

impl ReloadMetrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = ReloadMetrics::default();
        registry.register(
            "config_reloads",
            "Changed configuration files that were taken and came into force",
            metrics.taken.clone(),
        );
        registry.register(
            "config_reloads_refused",
            "Changed configuration files that were refused, with the old configuration still in force",
            metrics.refused.clone(),
        );
        registry.register(
            "config_stale",
            "1 while the configuration file differs from what is in force because it is refused",
            metrics.stale.clone(),
        );
        metrics
    }
}

impl ApiMetrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = ApiMetrics::default();
        registry.register("api_connections", "Connections of the API's clients", metrics.connections.open.clone());
        registry.register(
            "api_connections_refused",
            "Connections turned away because there were too many, in all or of one address",
            metrics.connections.refused.clone(),
        );
        registry.register(
            "api_batches_skipped",
            "Batches of exported flows that clients who follow them missed, because they read too slowly",
            metrics.skipped.clone(),
        );
        registry.register("api_unauthorized", "Requests without the API's token", metrics.unauthorized.clone());
        metrics
    }
}

impl CollectorMetrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = CollectorMetrics::default();
        registry.register("sessions", "Exporters connected, or by UDP heard of", metrics.sessions.clone());
        registry.register("sessions_accepted", "Sessions that began", metrics.accepted.clone());
        registry.register("sessions_refused", "Exporters turned away, by reason", metrics.refused.clone());
        registry.register(
            "sessions_malformed",
            "Sessions closed because their messages make no sense",
            metrics.malformed_sessions.clone(),
        );
        registry.register(
            "datagrams_dropped",
            "Datagrams lost because the table was behind",
            metrics.dropped_datagrams.clone(),
        );
        registry.register("received_bytes", "Bytes of messages received", metrics.bytes.clone());
        metrics
    }
}

impl TableMetrics {
    fn new(registry: &mut Registry) -> Self {
        let mut metrics = TableMetrics::default();
        for (name, help, _) in Counts::default().rows() {
            metrics.counts.push(counter(registry, name, help));
        }
        for (name, help, _) in Received::default().rows() {
            metrics.received.push(counter(registry, name, help));
        }
        for (name, help, _) in Fill::default().rows() {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            metrics.fill.push(gauge);
        }
        registry.register("agents_packets", "Packets of all agents' interfaces, by heading", metrics.packets.clone());
        registry.register(
            "agents_octets",
            "Layer-3 bytes of all agents' interfaces, by heading",
            metrics.octets.clone(),
        );
        registry.register(
            "exporter_records_lost",
            "Records that the sequence numbers of one exporter's observation domain say were sent and that did not come",
            metrics.lost.clone(),
        );
        registry.register("agents_records_sent", "Flow records that agents say they sent", metrics.agents_sent.clone());
        registry.register(
            "agents_records_not_sent",
            "Flow records that agents say they could not send",
            metrics.agents_not_sent.clone(),
        );
        registry.register(
            "objects_refused",
            "Files of the folder of objects that are refused, with what they held before still known",
            metrics.refused_objects.clone(),
        );
        metrics
    }

    /// So many files of the folder of objects are refused.
    pub fn refused_objects(&self, files: usize) {
        self.refused_objects.set(i64::try_from(files).unwrap_or(i64::MAX));
    }

    /// Copies the table's numbers.
    pub fn show(&self, aggregate: &Aggregate) {
        grow(&self.counts, aggregate.counts().rows());
        grow(&self.received, aggregate.received().rows());
        for (gauge, (_, _, value)) in self.fill.iter().zip(aggregate.fill().rows()) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        for (selector, amount) in aggregate.accounted() {
            let label = SelectorLabel { selector: selector.to_owned() };
            set(&self.packets.get_or_create(&label), amount.packets);
            set(&self.octets.get_or_create(&label), amount.octets);
        }
        for (source, records) in aggregate.losses() {
            let counter = self.lost.get_or_create(&ExporterLabel::of(source));
            counter.inc_by(records.saturating_sub(counter.get()));
        }
        let (sent, not_sent) = aggregate.agents_exported();
        set(&self.agents_sent, sent);
        set(&self.agents_not_sent, not_sent);
    }
}

impl ExporterLabel {
    fn of(source: Option<Source>) -> ExporterLabel {
        match source {
            Some(Source { addr, domain }) => ExporterLabel { exporter: addr.to_string(), domain: domain.to_string() },
            None => ExporterLabel { exporter: "others".to_owned(), domain: String::new() },
        }
    }
}

fn counter(registry: &mut Registry, name: &'static str, help: &'static str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

/// Counters of the table never shrink.
fn grow(counters: &[Counter], rows: impl Iterator<Item = (&'static str, &'static str, u64)>) {
    for (counter, (_, _, value)) in counters.iter().zip(rows) {
        counter.inc_by(value.saturating_sub(counter.get()));
    }
}

impl SinkFamilies {
    fn new(registry: &mut Registry) -> Self {
        let families = SinkFamilies {
            delivered: Family::default(),
            dropped: Family::default(),
            refused: Family::default(),
            failures: Family::default(),
            queued: Family::default(),
            connected: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCIES)),
        };
        registry.register("sink_delivered", "Flows delivered", families.delivered.clone());
        registry.register("sink_dropped", "Flows dropped from a full queue, or at the end", families.dropped.clone());
        registry.register("sink_refused", "Flows too long for the destination's messages", families.refused.clone());
        registry.register("sink_failures", "Failed attempts and lost connections", families.failures.clone());
        registry.register("sink_queued", "Flows that wait", families.queued.clone());
        registry.register("sink_connected", "1 while the sink is open", families.connected.clone());
        registry.register(
            "sink_latency_seconds",
            "Time from the export of a batch of flows until the sink had delivered all of it; clickhouse: until it had taken it to be committed",
            families.latency.clone(),
        );
        families
    }
}
