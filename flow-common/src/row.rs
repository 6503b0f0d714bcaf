//! A flow as people see it: names instead of numbers, both ends with what is known of them.

use std::net::IpAddr;

use crate::filter;
use crate::record::{Extended, FlowRecord, Head, Tail};
use serde::{Deserialize, Serialize};

/// A flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Originator.
    pub src: End,
    /// Responder.
    pub dst: End,
    /// Service that the originator sent to: "namespace/name:port"; empty if none.
    pub service: String,
    /// IP protocol.
    pub protocol: u8,
    /// ICMP type * 256 + code.
    pub icmp: u16,
    /// TCP state.
    pub state: String,
    /// intra-node, inter-node, to-external, from-external.
    pub kind: String,
    /// What became of its packets.
    pub verdict: String,
    /// Why the record was made.
    pub reason: String,
    /// First packet, in milliseconds since 1970.
    pub start: u64,
    /// Last packet, in milliseconds since 1970.
    pub end: u64,
    /// Packets and bytes of the originator.
    pub forward: [u64; 2],
    /// Packets and bytes of the responder.
    pub reverse: [u64; 2],
    /// The connection's number.
    pub id: u64,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Its address.
    pub addr: Option<IpAddr>,
    /// Its port, of protocols that have ports.
    pub port: Option<u16>,
    /// Namespace of the Pod.
    pub namespace: String,
    /// The Pod.
    pub pod: String,
    /// The Pod's Node.
    pub node: String,
}

impl Row {
    /// The record as a row.
    pub fn of(record: &FlowRecord) -> Self {
        Self::from_parts(&record.head, &record.tail, &record.extended)
    }

    /// What any record has, as a row.
    pub fn from_parts(head: &Head, tail: &Tail, extended: &Extended) -> Self {
        let ported = head.has_ports();
        // Records without extended elements have whole seconds alone.
        let exact = |milliseconds: u64, seconds: u32| {
            if milliseconds == 0 { u64::from(seconds) * 1000 } else { milliseconds }
        };
        let end = |addr, port: u16, namespace: &String, pod: &String, node: &String| End {
            addr: Some(addr),
            port: ported.then_some(port),
            namespace: namespace.clone(),
            pod: pod.clone(),
            node: node.clone(),
        };
        Self {
            src: end(head.src_addr, head.src_port, &tail.src_namespace, &tail.src_pod, &tail.src_node),
            dst: end(head.dst_addr, head.dst_port, &tail.dst_namespace, &tail.dst_pod, &tail.dst_node),
            service: tail.service.clone(),
            protocol: head.protocol,
            icmp: head.icmp().unwrap_or(extended.icmp_type_code),
            state: tail.tcp_state.name().to_owned(),
            kind: tail.flow_type.to_string(),
            verdict: extended.forwarding_status.to_string(),
            reason: head.end_reason.to_string(),
            start: exact(extended.start_milliseconds, head.start_seconds),
            end: exact(extended.end_milliseconds, head.end_seconds),
            forward: [head.packet_total, head.octet_total],
            reverse: [head.reverse_packet_total, head.reverse_octet_total],
            id: extended.flow_id,
        }
    }

    /// The protocol's name, or its number.
    pub fn protocol_name(&self) -> String {
        protocol_name(self.protocol)
    }
}

/// A protocol's name as filters have it, or its number.
pub fn protocol_name(protocol: u8) -> String {
    filter::protocol_name(protocol).map_or_else(|| protocol.to_string(), str::to_owned)
}

impl End {
    /// "namespace/pod:port" where the Pod is known, else the address.
    pub fn name(&self) -> String {
        if self.pod.is_empty() { self.socket() } else { self.with_port(format!("{}/{}", self.namespace, self.pod)) }
    }

    /// The address and the port.
    pub fn socket(&self) -> String {
        match (self.addr, self.port) {
            (Some(IpAddr::V6(addr)), Some(_)) => self.with_port(format!("[{addr}]")),
            (Some(addr), _) => self.with_port(addr.to_string()),
            (None, _) => String::new(),
        }
    }

    fn with_port(&self, name: String) -> String {
        self.port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_extended_elements_has_its_times_and_icmp_type_all_the_same() {
        let head = Head {
            start_seconds: 1_604_021_119,
            end_seconds: 1_604_021_244,
            protocol: 1,
            dst_port: 8 << 8,
            ..Head::default()
        };
        let row = |extended| Row::from_parts(&head, &Tail::default(), &extended);
        let plain = row(Extended::default());
        assert_eq!((plain.start, plain.end, plain.icmp), (1_604_021_119_000, 1_604_021_244_000, 8 << 8));
        let exact = Extended {
            start_milliseconds: 1_604_021_119_007,
            end_milliseconds: 1_604_021_244_500,
            ..Extended::default()
        };
        let exact = row(exact);
        assert_eq!((exact.start, exact.end), (1_604_021_119_007, 1_604_021_244_500));
    }
}
