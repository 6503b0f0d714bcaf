//! The aggregator's joined flows, read from its log of JSON lines.
//!
//! Takes the file as it grows; gives records in their order. The names of the elements are spelt here a second time on
//! purpose: this is a reader that shares nothing with the product.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::topology::{Family, Protocol};
use crate::truth::Count;

/// A joined flow as it was exported once.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The originator's address.
    #[serde(rename = "sourceIPv4Address", alias = "sourceIPv6Address")]
    pub source: IpAddr,
    /// The responder's address after DNAT.
    #[serde(rename = "destinationIPv4Address", alias = "destinationIPv6Address")]
    pub destination: IpAddr,
    /// The originator's port, or the identifier of an echo.
    pub source_transport_port: u16,
    /// The responder's port after DNAT, or type and code.
    pub destination_transport_port: u16,
    /// The protocol's number.
    pub protocol_identifier: u8,
    /// Packets of the originator.
    pub packet_total_count: u64,
    /// Their bytes.
    pub octet_total_count: u64,
    /// Packets since the last export.
    pub packet_delta_count: u64,
    /// Their bytes.
    pub octet_delta_count: u64,
    /// Packets of the responder.
    pub reverse_packet_total_count: u64,
    /// Their bytes.
    pub reverse_octet_total_count: u64,
    /// Packets of the responder since the last export.
    pub reverse_packet_delta_count: u64,
    /// Their bytes.
    pub reverse_octet_delta_count: u64,
    /// The originator's Pod.
    pub source_pod_name: String,
    /// Its namespace.
    pub source_pod_namespace: String,
    /// Its Node.
    pub source_node_name: String,
    /// The responder's Pod.
    pub destination_pod_name: String,
    /// Its namespace.
    pub destination_pod_namespace: String,
    /// Its Node.
    pub destination_node_name: String,
    /// The address that was asked, where that is a Service's.
    #[serde(rename = "destinationClusterIPv4", alias = "destinationClusterIPv6")]
    pub destination_cluster_ip: IpAddr,
    /// The port that was asked there.
    pub destination_service_port: u16,
    /// The Service and its port by name.
    pub destination_service_port_name: String,
    /// The state of a TCP connection.
    pub tcp_state: String,
    /// Within a Node, between Nodes, to or from outside.
    pub flow_type: u8,
    /// Why the record was exported.
    pub flow_end_reason: u8,
    /// The first packet's time.
    pub flow_start_milliseconds: u64,
    /// The last packet's time.
    pub flow_end_milliseconds: u64,
    /// The connection, whatever its records.
    pub flow_id: u64,
    /// Whether it was forwarded.
    pub forwarding_status: u8,
    /// Packets of both directions that the Nodes dropped.
    pub dropped_packet_total_count: u64,
    /// The originator's address as the responder sees it, where that is another one.
    #[serde(rename = "postNATSourceIPv4Address", alias = "postNATSourceIPv6Address")]
    pub post_nat_source: IpAddr,
    /// Its port there.
    #[serde(rename = "postNAPTSourceTransportPort")]
    pub post_napt_source_port: u16,
    /// Bits a second of the originator.
    pub throughput: u64,
    /// Bits a second of the responder.
    pub reverse_throughput: u64,
    /// Packets of the originator as its own Node counted them.
    pub packet_total_count_from_source_node: u64,
    /// Packets of the originator as the responder's Node counted them.
    pub packet_total_count_from_destination_node: u64,
}

impl Record {
    /// Totals of both directions.
    pub fn totals(&self) -> [Count; 2] {
        [
            Count { packets: self.packet_total_count, bytes: self.octet_total_count },
            Count { packets: self.reverse_packet_total_count, bytes: self.reverse_octet_total_count },
        ]
    }

    /// What is new of both directions since the last export.
    pub fn deltas(&self) -> [Count; 2] {
        [
            Count { packets: self.packet_delta_count, bytes: self.octet_delta_count },
            Count { packets: self.reverse_packet_delta_count, bytes: self.reverse_octet_delta_count },
        ]
    }

    /// The originator's end.
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.source_transport_port)
    }

    /// The responder's end.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.destination_transport_port)
    }

    /// Whether it is of this protocol.
    pub fn is(&self, protocol: Protocol) -> bool {
        self.protocol_identifier == protocol.number(Family::of(self.source))
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [sent, answered] = self.totals();
        let [new_sent, new_answered] = self.deltas();
        write!(
            f,
            "{} > {} totals {}/{} {}/{} deltas {}/{} {}/{} reason {} status {} dropped {} nodes {}:{} flow {:x}",
            self.client(),
            self.server(),
            sent.packets,
            sent.bytes,
            answered.packets,
            answered.bytes,
            new_sent.packets,
            new_sent.bytes,
            new_answered.packets,
            new_answered.bytes,
            self.flow_end_reason,
            self.forwarding_status,
            self.dropped_packet_total_count,
            self.packet_total_count_from_source_node,
            self.packet_total_count_from_destination_node,
            self.flow_id
        )
    }
}

/// Records, a line each, for people who look for a fault.
pub fn listed<'a>(records: impl IntoIterator<Item = &'a Record>) -> String {
    records.into_iter().map(|record| format!("\n    {record}")).collect()
}

/// The sum of both directions' deltas over records.
pub fn sum_of_deltas<'a>(records: impl IntoIterator<Item = &'a Record>) -> [Count; 2] {
    records.into_iter().fold([Count::default(); 2], |[sent, answered], record| {
        let [new_sent, new_answered] = record.deltas();
        [sent + new_sent, answered + new_answered]
    })
}

#[derive(Deserialize)]
struct Line {
    ipfix: Record,
}

/// The log, as far as it was read.
#[derive(Debug)]
pub struct Joined {
    path: PathBuf,
    read: Mutex<(u64, Vec<Record>)>,
}

impl Joined {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All records so far, those that came since the last look included.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        file.seek(SeekFrom::Start(read.0))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may still be in the writing.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            let line: Line = serde_json::from_str(line).with_context(|| format!("a joined flow: {line}"))?;
            read.1.push(line.ipfix);
        }
        read.0 += whole as u64;
        Ok(read.1.clone())
    }

    /// The records of the flow that a client's end began.
    pub fn of_client(&self, protocol: Protocol, client: SocketAddr) -> Result<Vec<Record>> {
        Ok(self.records()?.into_iter().filter(|record| record.is(protocol) && record.client() == client).collect())
    }
}
