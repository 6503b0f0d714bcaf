//! Records and tables for tests: what an agent would send, applied directly.

use super::{Aggregate, Batch, Cursor, Group, Page, Settings, Source, flow::Told, item::Names};
use crate::input::SessionId;
use flow_common::filter::Filter;
use flow_common::ipfix::accounting::Accounting;
use flow_common::record::{
    AggregatedFlow, Cut, EndReason, Extended, FlowRecord, FlowType, ForwardingStatus, Head, NodeAddr, Tail, TcpState,
};
use std::net::IpAddr;

/// 2024-01-01T00:00:00Z.
pub(crate) const EPOCH: u32 = 1_704_067_200;

pub(crate) const NODE_A: Source = Source { addr: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), domain: 0xa };
pub(crate) const NODE_B: Source = Source { addr: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), domain: 0xb };

pub(crate) fn settings() -> Settings {
    Settings {
        active: 60,
        inactive: 90,
        correlation: 15,
        tombstone: 300,
        max_flows: 100_000,
        max_tombstones: 100_000,
        labels: true,
        proxy: false,
    }
}

/// A batch of so many different flows.
pub(crate) fn batch_of(flows: u16) -> Batch {
    let mut table = Aggregate::new(&settings());
    for port in 0..flows {
        let mut record = external(1, 1);
        record.head.src_port = port + 1;
        table.hear(NODE_A, &[record], 0);
    }
    table.take_batch()
}

impl Aggregate {
    /// Applies records of one exporter, and gives nothing away yet.
    pub(crate) fn hear(&mut self, source: Source, records: &[FlowRecord], now: u32) {
        let encoded: Vec<_> = records
            .iter()
            .map(|record| {
                let bare = Tail { http: String::new(), ..record.tail.clone() };
                bare.to_encoded(record.head.family(), &mut Cut::default())
            })
            .collect();
        let mut group = Group::default();
        for (record, tail) in records.iter().zip(&encoded) {
            let FlowRecord { head, extended, .. } = record;
            let has_total = [head.totals() != [0; 4] || head.deltas() == [0; 4]; 4];
            let tail_hash = self.tail_hash.of(tail.bytes());
            let names = Names { tail: tail.bytes(), tail_hash, http: record.tail.http.as_bytes() };
            self.gather(source, &Told { head, extended, has_total, is_agents: true }, names, &mut group);
        }
        self.apply(&mut group, now);
    }

    /// Applies what an exporter that is no agent sends of a flow from 10.0.1.5 to 203.0.113.9: the values of these
    /// elements (enterprise, id, width), each as it stands on the wire.
    pub(crate) fn hear_foreign(&mut self, peer: IpAddr, elements: &[(u32, u16, u16)], values: &[u8]) {
        let key = [(0, 8, 4), (0, 12, 4), (0, 7, 2), (0, 11, 2), (0, 4, 1)];
        let mut template = [256, (key.len() + elements.len()) as u16].map(u16::to_be_bytes).concat();
        for &(enterprise, id, width) in key.iter().chain(elements) {
            let of_enterprise = if enterprise == 0 { 0 } else { 0x8000 };
            template.extend([id | of_enterprise, width].map(u16::to_be_bytes).concat());
            if enterprise != 0 {
                template.extend(enterprise.to_be_bytes());
            }
        }
        let data = [&[10, 0, 1, 5, 203, 0, 113, 9, 0x9c, 0x40, 0x1f, 0x90, 6], values].concat();
        let set = |id: u16, body: &[u8]| [&[id, body.len() as u16 + 4].map(u16::to_be_bytes).concat(), body].concat();
        let sets = [set(2, &template), set(256, &data)].concat();
        let head =
            [[10, sets.len() as u16 + 16].map(u16::to_be_bytes).concat(), EPOCH.to_be_bytes().to_vec(), vec![0; 8]];
        let session = SessionId::next();
        self.open(session, peer, false);
        self.feed(session, &[head.concat(), sets].concat(), 0).expect("a message");
        self.close(session);
    }

    /// A Node's address, as its agent's options data tell it.
    pub(crate) fn report_node_addr(&mut self, source: Source, addr: IpAddr) {
        let addr = NodeAddr { addr, ..NodeAddr::default() };
        self.account(source, &Accounting::Addr(addr), 0);
    }

    /// What was exported since the last call.
    pub(crate) fn exports(&mut self) -> Vec<AggregatedFlow> {
        self.take_batch().iter().map(|joined| joined.decode().expect("what is exported can be read")).collect()
    }

    /// The flows of the piece from there on that the filter accepts, at most `max`.
    pub(crate) fn page(&self, filter: &Filter, from: Cursor, max: usize) -> Page {
        self.piece(from).select(filter, max)
    }

    /// Passes the time second by second.
    pub(crate) fn pass(&mut self, from: u32, to: u32) {
        for now in from..=to {
            while self.expired(now, 1000) {}
        }
    }
}

/// A flow's head `seconds` after its start with `packets` of 100 bytes (and half as many answers), all of them since
/// the last record.
fn head(seconds: u32, packets: u64) -> Head {
    Head {
        start_seconds: EPOCH,
        end_seconds: EPOCH + seconds,
        end_reason: EndReason::Active,
        src_port: 40_000,
        dst_port: 8080,
        protocol: 6,
        packet_total: packets,
        octet_total: packets * 100,
        packet_delta: packets,
        octet_delta: packets * 100,
        src_addr: [10, 0, 1, 5].into(),
        dst_addr: [10, 0, 2, 7].into(),
        reverse_packet_total: packets / 2,
        reverse_octet_total: packets * 50,
        reverse_packet_delta: packets / 2,
        reverse_octet_delta: packets * 50,
    }
}

fn extended(seconds: u32, flow_id: u64) -> Extended {
    Extended {
        start_milliseconds: u64::from(EPOCH) * 1000,
        end_milliseconds: u64::from(EPOCH + seconds) * 1000,
        tcp_flags: 0x12,
        reverse_tcp_flags: 0x12,
        flow_id,
        forwarding_status: ForwardingStatus::Forwarded,
        ..Extended::default()
    }
}

/// The source Node's half of a flow between Nodes.
pub(crate) fn source(seconds: u32, packets: u64) -> FlowRecord {
    FlowRecord {
        head: head(seconds, packets),
        tail: Tail {
            src_pod: "client".into(),
            src_namespace: "shop".into(),
            src_node: "node-a".into(),
            service_port: 80,
            service: "shop/web:http".into(),
            service_addr: [10, 96, 0, 10].into(),
            tcp_state: TcpState::Established,
            flow_type: FlowType::InterNode,
            ..Tail::default()
        },
        extended: extended(seconds, 0xaaaa),
    }
}

/// The destination Node's half of the same flow.
pub(crate) fn destination(seconds: u32, packets: u64) -> FlowRecord {
    FlowRecord {
        tail: Tail {
            dst_pod: "server".into(),
            dst_namespace: "shop".into(),
            dst_node: "node-b".into(),
            tcp_state: TcpState::Established,
            flow_type: FlowType::InterNode,
            ..Tail::default()
        },
        extended: extended(seconds, 0xbbbb),
        ..source(seconds, packets)
    }
}

/// A flow that one Node sees alone.
pub(crate) fn external(seconds: u32, packets: u64) -> FlowRecord {
    let mut record = source(seconds, packets);
    record.head.dst_addr = [203, 0, 113, 9].into();
    record.tail.flow_type = FlowType::ToExternal;
    record
}

/// The record with deltas of these packets instead of all.
pub(crate) fn since(mut record: FlowRecord, packets: u64) -> FlowRecord {
    record.head.packet_delta = packets;
    record.head.octet_delta = packets * 100;
    record.head.reverse_packet_delta = packets / 2;
    record.head.reverse_octet_delta = packets * 50;
    record
}

/// The record as the connection's last.
pub(crate) fn over(mut record: FlowRecord) -> FlowRecord {
    record.head.end_reason = EndReason::End;
    record.tail.tcp_state = TcpState::Closed;
    record
}
