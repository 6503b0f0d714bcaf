//! The agent's Prometheus metrics: [`Facts`] under stable names.
//!
//! Takes the facts as the stages publish them, gives a registry for the admin port. Counts nothing itself, so that metrics,
//! `doctor` and accounting records cannot disagree.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::doctor::{Facts, Interface, Source, Tally};
use crate::verify::Count;

/// A registry that shows the latest facts.
pub fn registry(facts: watch::Receiver<Arc<Facts>>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Latest(facts)));
    registry
}

#[derive(Debug)]
struct Latest(watch::Receiver<Arc<Facts>>);

/// One value with its labels.
type Sample = (Vec<(&'static str, String)>, u64);

/// One metric.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: fn(&Facts) -> Vec<Sample>,
}

/// Antrea's names, by which dashboards ask, are gauges here: a counter's would end in `_total`.
const METRICS: &[Metric] = &[
    gauge("antrea_agent_conntrack_total_connection_count", "Connections the Node's connection tracking has", |facts| {
        one(facts.conntrack.entries)
    }),
    gauge("antrea_agent_conntrack_antrea_connection_count", "Tracked connections in the agent's table", |facts| {
        one(facts.flows.tracked)
    }),
    gauge(
        "antrea_agent_denied_connection_count",
        "Connections in the agent's table that did not come through",
        |facts| one(facts.drops.denied),
    ),
    counter("flow_agent_dropped_packets", "Packets that the kernel dropped, by its reason", |facts| {
        by_drop(facts, |tally| tally.packets)
    }),
    counter("flow_agent_dropped_bytes", "Layer-3 bytes that the kernel dropped, by its reason", |facts| {
        by_drop(facts, |tally| tally.bytes)
    }),
    counter("flow_agent_drops_uncounted", "Drops that are in no reason's count", |facts| {
        labelled("cause", ["no_room", "nested"], facts.drops.unplaced)
    }),
    counter("flow_agent_drops_unnamed", "Drops of flows that are not known", |facts| {
        let [no_room, fragment, unreadable] = facts.drops.unnamed;
        labelled(
            "cause",
            ["no_room", "fragment", "unreadable", "unseen"],
            [no_room, fragment, unreadable, facts.drops.unmatched],
        )
    }),
    counter(
        "flow_agent_verify_connections",
        "Ended connections, by whether connection tracking counted the same, and why not",
        |facts| {
            let counts = facts.verification.ended.0.iter();
            let reason = |count: &Count| match count.reason {
                Some(reason) => reason.name(),
                None if count.is_unexplained() => "unknown",
                None => "none",
            };
            let labels =
                |count: &Count| vec![("result", count.outcome.name().to_owned()), ("reason", reason(count).to_owned())];
            counts.map(|count| (labels(count), count.connections)).collect()
        },
    ),
    counter("flow_agent_verify_not_kept", "Ended connections that there was no room to compare", |facts| {
        one(facts.verification.not_kept)
    }),
    gauge("antrea_agent_conntrack_max_connection_count", "Connections the Node can track", |facts| {
        one(facts.conntrack.capacity)
    }),
    gauge("antrea_agent_flow_collector_reconnection_count", "Successful connects to the collector", |facts| {
        one(facts.export.connects)
    }),
    counter("flow_agent_seen_packets", "Packets the kernel programs saw", |facts| {
        by_interface(facts, |interface| interface.seen.packets)
    }),
    counter("flow_agent_seen_bytes", "Layer-3 bytes the kernel programs saw", |facts| {
        by_interface(facts, |interface| interface.seen.bytes)
    }),
    counter("flow_agent_accounted_packets", "Packets in records that were handed to export", |facts| {
        by_interface(facts, |interface| interface.accounted.packets)
    }),
    counter("flow_agent_accounted_bytes", "Layer-3 bytes in records that were handed to export", |facts| {
        by_interface(facts, |interface| interface.accounted.bytes)
    }),
    counter(
        "flow_agent_annotated_packets",
        "Packets that another point or another translation's entry accounts for",
        |facts| by_interface(facts, |interface| interface.annotated.packets),
    ),
    counter(
        "flow_agent_annotated_bytes",
        "Layer-3 bytes that another point or another translation's entry accounts for",
        |facts| by_interface(facts, |interface| interface.annotated.bytes),
    ),
    gauge("flow_agent_waiting_packets", "Packets that are counted and not yet in a record", |facts| {
        by_interface(facts, |interface| interface.waiting.packets)
    }),
    counter("flow_agent_lost_packets", "Packets in no record, by reason", |facts| {
        by_reason(facts, |tally| tally.packets)
    }),
    counter("flow_agent_lost_bytes", "Layer-3 bytes in no record, by reason", |facts| {
        by_reason(facts, |tally| tally.bytes)
    }),
    gauge("flow_agent_attached", "Whether an interface is attached", |facts| {
        // One that has gone is listed for a while, and another may have its name by then.
        let mut attached: BTreeMap<&str, u64> = BTreeMap::new();
        for interface in &facts.interfaces {
            *attached.entry(&interface.name).or_default() |= u64::from(interface.attached.is_some());
        }
        attached.into_iter().map(|(name, value)| (vec![("interface", name.to_owned())], value)).collect()
    }),
    counter("flow_agent_earlier_packets", "Packets that an agent before this one has told of", |facts| {
        by_interface(facts, |interface| interface.earlier().packets)
    }),
    counter("flow_agent_earlier_bytes", "Layer-3 bytes that an agent before this one has told of", |facts| {
        by_interface(facts, |interface| interface.earlier().bytes)
    }),
    counter("flow_agent_events_lost", "Events of begun and ended flows that found a ring full", |facts| {
        counting(facts)
            .flat_map(|interface| {
                ["begun", "ended"].into_iter().zip(interface.events_lost).map(|(event, lost)| {
                    (vec![("interface", interface.name.clone()), ("event", event.to_owned())], lost)
                })
            })
            .collect()
    }),
    gauge("flow_agent_map_used", "Entries in use; of rings bytes", |facts| {
        facts.maps.iter().map(|fill| (vec![("map", fill.name.clone())], fill.used)).collect()
    }),
    gauge("flow_agent_map_capacity", "Entries there is room for; of rings bytes", |facts| {
        facts.maps.iter().map(|fill| (vec![("map", fill.name.clone())], fill.capacity)).collect()
    }),
    counter(
        "flow_agent_program_runs",
        "Runs of the kernel programs, while the kernel's BPF statistics are on",
        |facts| facts.programs.iter().map(|program| (vec![("program", program.name.clone())], program.runs)).collect(),
    ),
    counter(
        "flow_agent_program_nanoseconds",
        "Run time of the kernel programs, while the kernel's BPF statistics are on",
        |facts| {
            facts.programs.iter().map(|program| (vec![("program", program.name.clone())], program.run_ns)).collect()
        },
    ),
    gauge("flow_agent_flows", "Live flows", |facts| one(facts.flows.live)),
    counter("flow_agent_flows_begun", "Flows begun", |facts| one(facts.flows.begun)),
    counter("flow_agent_flows_evicted", "Flows ended early for lack of room", |facts| one(facts.flows.evicted)),
    counter(
        "flow_agent_flows_unseen",
        "Connections that began and ended between two looks at their entry; their packets are in the flow before",
        |facts| one(facts.flows.unseen),
    ),
    counter(
        "flow_agent_flows_joined_late",
        "Flows joined with their tracked connection only after a record of them had left",
        |facts| one(facts.flows.joined_late),
    ),
    counter(
        "flow_agent_flows_adopted",
        "Flows older than the agent, with the packets before it and without",
        |facts| labelled("totals", ["whole", "from_zero"], facts.flows.adopted),
    ),
    counter(
        "flow_agent_late_packets",
        "Packets that came in the moment in which their flow's entry was deleted; they stay waiting",
        |facts| one(facts.flows.late_packets),
    ),
    counter("flow_agent_conntrack_events", "Events read from connection tracking", |facts| one(facts.conntrack.events)),
    counter("flow_agent_conntrack_overruns", "How often connection tracking had no room for further events", |facts| {
        one(facts.conntrack.overruns)
    }),
    counter(
        "flow_agent_conntrack_left_out",
        "Tracked connections in no record, where connection tracking counts",
        |facts| labelled("cause", ["no_room", "shadowed"], [facts.conntrack.no_room, facts.conntrack.shadowed]),
    ),
    counter(
        "flow_agent_conntrack_unjoined",
        "Tracked connections that found no room until their packets are seen; translated ones are two flows",
        |facts| one(facts.conntrack.unjoined),
    ),
    gauge("flow_agent_source", "1 for whoever counts the packets", |facts| {
        let name = match facts.source {
            Source::Ebpf => "ebpf",
            Source::Conntrack => "conntrack",
        };
        vec![(vec![("source", name.to_owned())], 1)]
    }),
    gauge("flow_agent_feature", "1 for the way that each feature stands on in this kernel", |facts| {
        facts.features.iter().map(|it| (vec![("feature", it.name.clone()), ("rung", it.rung.clone())], 1)).collect()
    }),
    counter("flow_agent_conntrack_told", "Events that the kernel programs told of connections", |facts| {
        labelled("event", ["new", "end"], facts.conntrack.told)
    }),
    counter("flow_agent_conntrack_lost", "Such events that found the ring full; a dump made up for them", |facts| {
        labelled("event", ["new", "end"], facts.conntrack.lost)
    }),
    gauge("flow_agent_export_connected", "Whether a collector is connected", |facts| {
        one(u64::from(facts.export.peer.is_some()))
    }),
    counter("flow_agent_export_records", "Flow records sent", |facts| one(facts.export.records)),
    counter("flow_agent_export_messages", "IPFIX messages sent", |facts| one(facts.export.messages)),
    counter("flow_agent_export_bytes", "Bytes of IPFIX messages sent", |facts| one(facts.export.octets)),
    counter(
        "flow_agent_export_passed_over",
        "Records of live flows that found no connection; totals heal them",
        |facts| one(facts.export.passed_over),
    ),
    counter("flow_agent_export_oversized", "Records that did not fit a message", |facts| one(facts.export.oversized)),
    gauge("flow_agent_spool_records", "Ended flows in the spool", |facts| one(facts.export.spooled)),
    gauge("flow_agent_spool_unsent", "Ended flows in the spool that were never sent", |facts| one(facts.export.unsent)),
    gauge("flow_agent_spool_capacity", "Ended flows the spool has room for", |facts| one(facts.export.spool_capacity)),
    counter("flow_agent_spool_lost_flows", "Ended flows that left the spool unsent", |facts| {
        one(facts.export.lost_flows)
    }),
    counter("flow_agent_spool_lost_packets", "Packets of ended flows that left the spool unsent", |facts| {
        one(facts.export.lost.packets)
    }),
];

const fn gauge(name: &'static str, help: &'static str, samples: fn(&Facts) -> Vec<Sample>) -> Metric {
    Metric { name, help, kind: MetricType::Gauge, samples }
}

const fn counter(name: &'static str, help: &'static str, samples: fn(&Facts) -> Vec<Sample>) -> Metric {
    Metric { name, help, kind: MetricType::Counter, samples }
}

fn one(value: u64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

/// The interfaces that count, and those that did until they went, unless another one has their name by now.
fn counting(facts: &Facts) -> impl Iterator<Item = &Interface> {
    let mut by_name: BTreeMap<&str, &Interface> = BTreeMap::new();
    let has_counted = |interface: &&Interface| interface.attached.is_some() || interface.seen.packets > 0;
    for interface in facts.interfaces.iter().filter(has_counted) {
        let shown = by_name.entry(&interface.name).or_insert(interface);
        if interface.attached.is_some() {
            *shown = interface;
        }
    }
    by_name.into_values()
}

fn by_interface(facts: &Facts, value: fn(&Interface) -> u64) -> Vec<Sample> {
    counting(facts).map(|interface| (vec![("interface", interface.name.clone())], value(interface))).collect()
}

fn labelled<const N: usize>(label: &'static str, names: [&str; N], values: [u64; N]) -> Vec<Sample> {
    names.iter().zip(values).map(|(name, value)| (vec![(label, (*name).to_owned())], value)).collect()
}

/// By reason and interface; places are many and for people.
fn by_drop(facts: &Facts, value: fn(Tally) -> u64) -> Vec<Sample> {
    let mut sums: BTreeMap<(&str, &str), Tally> = BTreeMap::new();
    for site in &facts.drops.sites {
        sums.entry((&site.reason, &site.interface)).or_default().add(site.tally);
    }
    let labels =
        |(reason, interface): (&str, &str)| vec![("reason", reason.to_owned()), ("interface", interface.to_owned())];
    sums.into_iter().map(|(key, tally)| (labels(key), value(tally))).collect()
}

fn by_reason(facts: &Facts, value: fn(Tally) -> u64) -> Vec<Sample> {
    counting(facts)
        .flat_map(|interface| {
            interface.losses().map(move |loss| {
                (vec![("interface", interface.name.clone()), ("reason", loss.reason.clone())], value(loss.tally))
            })
        })
        .collect()
}

impl Collector for Latest {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let facts = self.0.borrow().clone();
        for metric in METRICS {
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
            let samples = (metric.samples)(&facts);
            if let [(labels, value)] = samples.as_slice()
                && labels.is_empty()
            {
                metric.encode(*value, family)?;
                continue;
            }
            for (labels, value) in &samples {
                metric.encode(*value, family.encode_family(labels)?)?;
            }
        }
        let (name, help) = ("flow_agent_completeness", "Part of the packets seen that is accounted for or annotated");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for interface in counting(&facts) {
            let labels = [("interface", interface.name.as_str())];
            ConstGauge::new(interface.completeness()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Metric {
    fn encode(&self, value: u64, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self.kind {
            MetricType::Counter => ConstCounter::new(value).encode(encoder),
            _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{DropSite, Drops, Export, Feature, Fill, Loss, Program, Verification};
    use crate::verify::{Outcome, Reason, Sums};

    #[test]
    fn a_name_that_two_interfaces_had_has_one_value() {
        let of = |seen: u64, attached: Option<&str>| Interface {
            name: "cali1".into(),
            attached: attached.map(Into::into),
            seen: Tally { packets: seen, bytes: 0 },
            ..Interface::default()
        };
        let value = |interfaces: Vec<Interface>, metric: &str| -> Vec<String> {
            let (_keep, latest) = watch::channel(Arc::new(Facts { interfaces, ..Facts::default() }));
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry(latest)).unwrap();
            let prefix = format!("{metric}{{interface=\"cali1\"}} ");
            text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(ToOwned::to_owned).collect()
        };
        let (gone, there) = (of(9, None), of(2, Some("tcx")));
        for both in [vec![there.clone(), gone.clone()], vec![gone.clone(), there]] {
            assert_eq!(value(both.clone(), "flow_agent_attached"), ["1"]);
            assert_eq!(value(both, "flow_agent_seen_packets_total"), ["2"]);
        }
        assert_eq!(value(vec![gone], "flow_agent_seen_packets_total"), ["9"], "to be read once more");
    }

    #[test]
    fn facts_appear_under_stable_names() {
        let tally = Tally { packets: 2, bytes: 120 };
        let interface = Interface {
            name: "eth0".into(),
            attached: Some("tcx".into()),
            seen: Tally { packets: 10, bytes: 1_000 },
            accounted: Tally { packets: 8, bytes: 880 },
            lost: vec![Loss { reason: "map_full".into(), tally }],
            ..Interface::default()
        };
        let facts = Facts {
            interfaces: vec![interface, Interface { name: "lo".into(), ..Interface::default() }],
            maps: vec![Fill { name: "flows4".into(), used: 3, capacity: 1_024 }],
            features: vec![Feature { name: "tc".into(), rung: "tcx".into(), refused: Vec::new() }],
            drops: Drops {
                sites: ["nf_hook_slow", "nft_do_chain"]
                    .map(|location| DropSite {
                        reason: "NETFILTER_DROP".into(),
                        class: "rule".into(),
                        interface: "eth0".into(),
                        location: location.into(),
                        tally,
                    })
                    .into(),
                denied: 7,
                unplaced: [1, 2],
                unnamed: [3, 4, 5],
                unmatched: 6,
                ..Drops::default()
            },
            verification: Verification {
                ended: Sums(vec![
                    Count { outcome: Outcome::Equal, reason: None, connections: 9 },
                    Count { outcome: Outcome::Differs, reason: Some(Reason::Fragments), connections: 2 },
                    Count { outcome: Outcome::OnlyEbpf, reason: None, connections: 1 },
                ]),
                not_kept: 3,
            },
            programs: vec![Program { name: "tc_ingress".into(), runs: 10, run_ns: 400 }],
            export: Export { connects: 1, records: 5, peer: Some("[::1]:4739".into()), ..Export::default() },
            ..Facts::default()
        };
        let (_keep, latest) = watch::channel(Arc::new(facts));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry(latest)).unwrap();
        insta::assert_snapshot!(text);
    }
}
