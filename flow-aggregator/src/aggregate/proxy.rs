//! Records handed on as they come: named, marked with whom they came from, and not kept.
//!
//! Takes one decoded record and what is known of the cluster; appends to a [`Batch`]. Joins nothing, and lets repeats
//! pass: whoever takes them has each exporter's records as it sent them.

use super::{
    Source,
    cluster::{Cluster, Ends},
    encode::Batch,
};
use crate::correlate::{Facts, Half, Role};
use flow_common::{
    ipfix::collector::Record,
    record::{Cut, Origin, Tail},
    time::Timestamp,
};
use std::net::IpAddr;

/// `flowDirection`: the flow entered the exporter's Node.
const INGRESS: u8 = 0;
/// `flowDirection`: the flow left the exporter's Node, or began on it.
const EGRESS: u8 = 1;

/// Appends the record with the names that the cluster's index knows, its Pods' labels and its origin.
pub(super) fn hand_on(
    source: Source,
    record: &Record,
    [tail, http]: [&[u8]; 2],
    cluster: &Cluster,
    batch: &mut Batch,
    cut: &mut Cut,
) {
    let (head, extended) = (&record.head, &record.extended);
    // A tail that was decoded has a readable form.
    let Some(names) = Tail::decode(head.family(), tail) else { return };
    let at = Timestamp::from_millis(match extended.start_milliseconds {
        0 => u64::from(head.start_seconds) * 1000,
        milliseconds => milliseconds,
    });
    let origin = origin(source, direction(record, &names));
    let ends = Ends { src: head.src_addr, dst: head.dst_addr, at };
    let known = if cluster.is_known() { cluster.correct(ends, true, &names) } else { None };
    let tail = known.unwrap_or(names).to_encoded(head.family(), cut);
    let [src, dst] = [head.src_addr, head.dst_addr].map(|addr| cluster.labels(addr, at));
    let http = std::str::from_utf8(http).unwrap_or_default();
    batch.push_proxied((head, extended), (tail.bytes(), http), &origin, [&src, &dst], cut);
}

/// Before names are added: what the half names tells whose Node reports.
fn direction(record: &Record, tail: &Tail) -> u8 {
    let half = Half {
        facts: Facts::of(tail),
        status: record.extended.forwarding_status,
        translated: !record.extended.nat_src_addr.is_unspecified(),
        src_is_other_node: false,
    };
    if half.role() == Some(Role::Destination) { INGRESS } else { EGRESS }
}

fn origin(source: Source, direction: u8) -> Origin {
    let mut origin = Origin { observation_domain: source.domain, direction, ..Origin::default() };
    match source.addr.to_canonical() {
        IpAddr::V4(addr) => origin.exporter_v4 = addr,
        IpAddr::V6(addr) => origin.exporter_v6 = addr,
    }
    origin
}
