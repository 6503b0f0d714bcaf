//! A flow as it stands on the wire, joined or as one exporter sent it.
//!
//! Takes a flow and its names; appends to a [`Batch`], which all sinks share. Extended elements are always there and
//! stand last, so that a sink that leaves them out cuts them off.

use super::{
    cluster::Cluster,
    flow::{Counters, DESTINATION, Flow, OCTETS, PACKETS, REVERSE_OCTETS, REVERSE_PACKETS, SOURCE, Side, less},
    key::Addr,
    tails::{Latest, Tails},
};
use flow_common::record::{
    AggregatedFlow, Content, Cut, Extended, Family, Head, Labels, Origin, PerNode, ProxiedFlow, tail,
};
use flow_common::time::Timestamp;

/// Bytes of room that a new batch has at most: exports often follow one another, and growing step by step costs.
const LIKE: usize = 256 * 1024;

/// Flows, encoded once for all sinks; all joined, or none.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    proxied: bool,
    bytes: Vec<u8>,
    /// Of each its family and where it ends: a batch of a whole table may be beyond what 32 bits say.
    records: Vec<(Family, usize)>,
}

/// One flow of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct Joined<'a> {
    /// Family of its addresses.
    pub family: Family,
    proxied: bool,
    bytes: &'a [u8],
}

impl Batch {
    /// With room for as much as another one has, within bounds.
    pub(super) fn like(other: &Batch) -> Batch {
        Batch {
            proxied: false,
            bytes: Vec::with_capacity(other.bytes.len().min(LIKE)),
            records: Vec::with_capacity(other.records.len().min(LIKE / 256)),
        }
    }

    /// Without room that it does not need: it may wait for long in a queue.
    pub(super) fn fit(&mut self) {
        if self.bytes.capacity() / 2 > self.bytes.len() {
            self.bytes.shrink_to_fit();
            self.records.shrink_to_fit();
        }
    }

    /// How many flows.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What its records tell, and so the template they need.
    pub fn content(&self) -> Content {
        if self.proxied { Content::Proxied } else { Content::Joined }
    }

    /// The flows in the order of their export.
    pub fn iter(&self) -> impl Iterator<Item = Joined<'_>> {
        let mut begin = 0;
        self.records.iter().map(move |&(family, end)| {
            let bytes = self.bytes.get(begin..end).unwrap_or_default();
            begin = end;
            Joined { family, proxied: self.proxied, bytes }
        })
    }

    pub(super) fn push<A: Addr>(&mut self, flow: &Flow<A>, tails: &Tails, cluster: &Cluster, cut: &mut Cut) {
        record(&mut self.bytes, flow, tails, cluster, cut);
        self.records.push((A::FAMILY, self.bytes.len()));
    }

    /// A record as it came, but for its names, with whom it came from. Not beside joined ones.
    pub(super) fn push_proxied(
        &mut self,
        (head, extended): (&Head, &Extended),
        (names, http): (&[u8], &str),
        origin: &Origin,
        labels: [&str; 2],
        cut: &mut Cut,
    ) {
        self.proxied = true;
        let family = head.family();
        head.encode(family, &mut self.bytes);
        tail::merge(family, [names, &[]], None, http, &mut self.bytes, cut);
        origin.encode(family, &mut self.bytes);
        Labels::encode_texts(labels, &mut self.bytes, cut);
        extended.encode(family, &mut self.bytes);
        self.records.push((family, self.bytes.len()));
    }
}

impl<'a> Joined<'a> {
    /// The record as the template of the batch's content has it.
    pub fn bytes(&self, extended: bool) -> &'a [u8] {
        let end = if extended { self.bytes.len() } else { self.bytes.len() - Extended::len(self.family) };
        &self.bytes[..end]
    }

    /// The record with names to its values. One that is not joined has nothing of the two Nodes' own numbers.
    pub fn decode(&self) -> Option<AggregatedFlow> {
        if self.proxied {
            let ProxiedFlow { head, tail, labels, extended, .. } = self.as_proxied()?;
            Some(AggregatedFlow { head, tail, per_node: PerNode::default(), labels, extended })
        } else {
            self.as_joined()
        }
    }

    /// Appends the record as a line of JSON; false if it cannot be read.
    pub fn json(&self, extended: bool, at: Timestamp, out: &mut Vec<u8>) -> bool {
        let written = if self.proxied {
            self.as_proxied().map(|flow| flow.json(extended, at, out))
        } else {
            self.as_joined().map(|flow| flow.json(extended, at, out))
        };
        written.is_some()
    }

    fn as_proxied(&self) -> Option<ProxiedFlow> {
        ProxiedFlow::decode(self.family, true, self.bytes).map(|(flow, _)| flow)
    }

    fn as_joined(&self) -> Option<AggregatedFlow> {
        AggregatedFlow::decode(self.family, true, self.bytes).map(|(flow, _)| flow)
    }
}

fn record<A: Addr>(out: &mut Vec<u8>, flow: &Flow<A>, tails: &Tails, cluster: &Cluster, cut: &mut Cut) {
    let shown = Shown::of(flow);
    let head = shown.head(flow);
    head.encode(A::FAMILY, out);
    let [source, destination] = &flow.sides;
    let latest = if flow.latest() == DESTINATION { Latest::Second } else { Latest::First };
    let http = flow.rare.as_ref().map_or("", |rare| rare.http.as_str());
    tails.join([source.tail, destination.tail], latest, http, out, cut);
    shown.per_node().encode(A::FAMILY, out);
    let began = Timestamp::from_millis(flow.start);
    let [src, dst] = [head.src_addr, head.dst_addr].map(|addr| cluster.labels(addr, began));
    Labels::encode_texts([&src, &dst], out, cut);
    shown.extended(flow).encode(A::FAMILY, out);
}

/// Both sides as they are shown: where one half is all there will be it stands for both.
struct Shown {
    sides: [Side; 2],
    totals: [Counters; 2],
}

impl Shown {
    fn of<A: Addr>(flow: &Flow<A>) -> Shown {
        let mut sides = flow.sides;
        let mut totals = [flow.total(SOURCE), flow.total(DESTINATION)];
        if flow.alone {
            for (empty, known) in [(SOURCE, DESTINATION), (DESTINATION, SOURCE)] {
                if !sides[empty].is_known() {
                    (sides[empty], totals[empty]) = (sides[known], totals[known]);
                }
            }
        }
        Shown { sides, totals }
    }

    fn head<A: Addr>(&self, flow: &Flow<A>) -> Head {
        let total = flow.common_total();
        let (src, src_port) = match flow.client.is_known() {
            true => (flow.client.addr, flow.client.port),
            false => (flow.key.src, flow.key.src_port),
        };
        let mut head = Head {
            start_seconds: seconds(flow.start),
            end_seconds: seconds(flow.end()),
            end_reason: flow.reason(),
            src_port,
            dst_port: flow.key.dst_port,
            protocol: flow.key.protocol,
            src_addr: src.ip(),
            dst_addr: flow.key.dst.ip(),
            ..Head::default()
        };
        head.set_totals(total);
        head.set_deltas(less(total, flow.common_last()));
        head
    }

    fn per_node(&self) -> PerNode {
        let [source, destination] = &self.sides;
        let total = &self.totals;
        let delta = [SOURCE, DESTINATION].map(|side| less(total[side], self.sides[side].last));
        let latest = if destination.end > source.end { destination } else { source };
        PerNode {
            octet_delta_from_src: delta[SOURCE][OCTETS],
            octet_delta_from_dst: delta[DESTINATION][OCTETS],
            octet_total_from_src: total[SOURCE][OCTETS],
            octet_total_from_dst: total[DESTINATION][OCTETS],
            packet_delta_from_src: delta[SOURCE][PACKETS],
            packet_delta_from_dst: delta[DESTINATION][PACKETS],
            packet_total_from_src: total[SOURCE][PACKETS],
            packet_total_from_dst: total[DESTINATION][PACKETS],
            reverse_octet_delta_from_src: delta[SOURCE][REVERSE_OCTETS],
            reverse_octet_delta_from_dst: delta[DESTINATION][REVERSE_OCTETS],
            reverse_octet_total_from_src: total[SOURCE][REVERSE_OCTETS],
            reverse_octet_total_from_dst: total[DESTINATION][REVERSE_OCTETS],
            reverse_packet_delta_from_src: delta[SOURCE][REVERSE_PACKETS],
            reverse_packet_delta_from_dst: delta[DESTINATION][REVERSE_PACKETS],
            reverse_packet_total_from_src: total[SOURCE][REVERSE_PACKETS],
            reverse_packet_total_from_dst: total[DESTINATION][REVERSE_PACKETS],
            end_seconds_from_src: seconds(source.end),
            end_seconds_from_dst: seconds(destination.end),
            throughput: latest.throughput[0],
            throughput_from_src: source.throughput[0],
            throughput_from_dst: destination.throughput[0],
            reverse_throughput: latest.throughput[1],
            reverse_throughput_from_src: source.throughput[1],
            reverse_throughput_from_dst: destination.throughput[1],
        }
    }

    fn extended<A: Addr>(&self, flow: &Flow<A>) -> Extended {
        let [source, destination] = &flow.sides;
        let translated = flow.client.is_known();
        Extended {
            start_milliseconds: flow.start,
            end_milliseconds: flow.end(),
            tcp_flags: source.flags[0] | destination.flags[0],
            reverse_tcp_flags: source.flags[1] | destination.flags[1],
            icmp_type_code: flow.icmp,
            flow_id: if source.flow_id == 0 { destination.flow_id } else { source.flow_id },
            // Each Node's own, so not what a half that stands for both sides shows twice.
            dropped_packets: flow.sides.iter().fold(0, |sum, side| sum.saturating_add(side.dropped)),
            // The numbers rise from unknown over forwarded to denied by a rule.
            forwarding_status: source.status.code().max(destination.status.code()).into(),
            nat_src_addr: if translated { flow.key.src.ip() } else { A::NONE.ip() },
            nat_src_port: if translated { flow.key.src_port } else { 0 },
        }
    }
}

fn seconds(milliseconds: u64) -> u32 {
    u32::try_from(milliseconds / 1000).unwrap_or(u32::MAX)
}
