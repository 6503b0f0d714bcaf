//! Flow records as subjects of filters.

use std::net::IpAddr;
use std::time::Duration;

use super::{EndKind, Side, Subject};
use crate::record::{AggregatedFlow, Extended, FlowRecord, FlowType, Head, Tail};

/// A flow record, of an agent or joined, as filters see it.
#[derive(Clone, Copy, Debug)]
pub struct FlowView<'a> {
    head: &'a Head,
    tail: &'a Tail,
    extended: &'a Extended,
    /// Of originator and responder, where the record has them; else it is the mean over the flow's life.
    throughput: Option<[u64; 2]>,
}

impl<'a> From<&'a FlowRecord> for FlowView<'a> {
    fn from(FlowRecord { head, tail, extended }: &'a FlowRecord) -> Self {
        Self { head, tail, extended, throughput: None }
    }
}

impl<'a> From<&'a AggregatedFlow> for FlowView<'a> {
    fn from(flow: &'a AggregatedFlow) -> Self {
        let throughput = Some([flow.per_node.throughput, flow.per_node.reverse_throughput]);
        Self { head: &flow.head, tail: &flow.tail, extended: &flow.extended, throughput }
    }
}

impl Subject for FlowView<'_> {
    fn addr(&self, side: Side) -> IpAddr {
        of(side, self.head.src_addr, self.head.dst_addr).to_canonical()
    }

    fn port(&self, side: Side) -> Option<u16> {
        self.head.has_ports().then(|| of(side, self.head.src_port, self.head.dst_port))
    }

    /// An end without a Pod's name is a Pod if the flow's type says so: the agent names those of its own Node alone.
    fn kind(&self, side: Side) -> EndKind {
        let by_type = match self.tail.flow_type {
            FlowType::IntraNode | FlowType::InterNode => true,
            FlowType::ToExternal => side == Side::Source,
            FlowType::FromExternal => side == Side::Destination,
            FlowType::Unknown | FlowType::Other(_) => false,
        };
        match (self.pod(side), self.node(side)) {
            ("", "") if !by_type => EndKind::External,
            ("", _) if !by_type => EndKind::Node,
            _ => EndKind::Pod,
        }
    }

    fn pod(&self, side: Side) -> &str {
        of(side, &self.tail.src_pod, &self.tail.dst_pod)
    }

    fn namespace(&self, side: Side) -> &str {
        of(side, &self.tail.src_namespace, &self.tail.dst_namespace)
    }

    fn node(&self, side: Side) -> &str {
        of(side, &self.tail.src_node, &self.tail.dst_node)
    }

    fn flags(&self, side: Side) -> u16 {
        of(side, self.extended.tcp_flags, self.extended.reverse_tcp_flags)
    }

    fn bytes(&self, side: Side) -> u64 {
        of(side, self.head.octet_total, self.head.reverse_octet_total)
    }

    fn packets(&self, side: Side) -> u64 {
        of(side, self.head.packet_total, self.head.reverse_packet_total)
    }

    fn rate(&self, side: Side) -> u64 {
        if let Some([forward, reverse]) = self.throughput {
            return of(side, forward, reverse);
        }
        let bits = u128::from(self.bytes(side)) * 8;
        let nanos = self.duration().as_nanos();
        (bits * 1_000_000_000).checked_div(nanos).map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
    }

    fn protocol(&self) -> u8 {
        self.head.protocol
    }

    fn service(&self) -> &str {
        &self.tail.service
    }

    fn state(&self) -> &str {
        self.tail.tcp_state.name()
    }

    fn flow_type(&self) -> u8 {
        self.tail.flow_type.code()
    }

    fn forwarding_status(&self) -> u8 {
        self.extended.forwarding_status.code()
    }

    fn end_reason(&self) -> u8 {
        self.head.end_reason.code()
    }

    fn icmp(&self) -> Option<(u8, u8)> {
        self.head.icmp().map(u16::to_be_bytes).map(|[kind, code]| (kind, code))
    }

    fn duration(&self) -> Duration {
        let Extended { start_milliseconds: start, end_milliseconds: end, .. } = *self.extended;
        if start > 0 && end > 0 {
            return Duration::from_millis(end.saturating_sub(start));
        }
        Duration::from_secs(self.head.end_seconds.saturating_sub(self.head.start_seconds).into())
    }
}

fn of<T>(side: Side, source: T, destination: T) -> T {
    match side {
        Side::Source => source,
        Side::Destination => destination,
    }
}
