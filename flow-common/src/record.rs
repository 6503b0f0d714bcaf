//! The one table of flow record fields: each row is a field's meaning, Rust name and type, Information Element name,
//! enterprise number and id (IPv4 | IPv6). Structs, templates, encode, decode, JSON names and docs/fields.md follow
//! from it, and no other file spells the name of an element. What the bytes around a record look like is `ipfix`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

mod codes;
mod field;
mod json;
mod layout;
mod limit;
mod macros;
pub mod tail;
mod value;

pub use codes::{EndReason, FlowType, ForwardingStatus, PolicyType, RuleAction, TcpState};
pub use field::{Family, Field, Type, VARIABLE};
pub use json::Rfc3339;
pub use layout::{Content, Layout};
pub use limit::{Cut, JSON_LIMIT, TEXT_LIMIT};
pub use tail::EncodedTail;
pub use value::Value;

use macros::{composite, fixed_group, owned_group};

/// Elements of the IANA registry.
pub const IANA: u32 = 0;
/// Elements of IANA's in the direction from responder to originator (RFC 5103).
pub const REVERSE: u32 = 29305;
/// Elements of Antrea's registry.
pub const ANTREA: u32 = 56506;

fixed_group! {
    /// What every record begins with: when, between whom, how much. Numbers only, at constant offsets.
    pub struct Head {
        /// When the first packet passed, in seconds since 1970.
        start_seconds: u32 as DateTimeSeconds, "flowStartSeconds" = IANA / 150;
        /// When the last packet passed, in seconds since 1970.
        end_seconds: u32 as DateTimeSeconds, "flowEndSeconds" = IANA / 151;
        /// Why the record was sent.
        end_reason: EndReason, "flowEndReason" = IANA / 136;
        /// Port of the originator; of ICMP the identifier.
        src_port: u16, "sourceTransportPort" = IANA / 7;
        /// Port of the responder after translation; of ICMP type * 256 + code.
        dst_port: u16, "destinationTransportPort" = IANA / 11;
        /// Number of the IP protocol.
        protocol: u8, "protocolIdentifier" = IANA / 4;
        /// Packets of the originator since the flow began.
        packet_total: u64, "packetTotalCount" = IANA / 86;
        /// Layer-3 bytes of the originator since the flow began.
        octet_total: u64, "octetTotalCount" = IANA / 85;
        /// Packets of the originator since the last record.
        packet_delta: u64, "packetDeltaCount" = IANA / 2;
        /// Layer-3 bytes of the originator since the last record.
        octet_delta: u64, "octetDeltaCount" = IANA / 1;
        /// Address of the originator.
        src_addr: IpAddr, "sourceIPv4Address" | "sourceIPv6Address" = IANA / 8 | 27;
        /// Address of the responder after translation.
        dst_addr: IpAddr, "destinationIPv4Address" | "destinationIPv6Address" = IANA / 12 | 28;
        /// Packets of the responder since the flow began.
        reverse_packet_total: u64, "reversePacketTotalCount" = REVERSE / 86;
        /// Layer-3 bytes of the responder since the flow began.
        reverse_octet_total: u64, "reverseOctetTotalCount" = REVERSE / 85;
        /// Packets of the responder since the last record.
        reverse_packet_delta: u64, "reversePacketDeltaCount" = REVERSE / 2;
        /// Layer-3 bytes of the responder since the last record.
        reverse_octet_delta: u64, "reverseOctetDeltaCount" = REVERSE / 1;
    }
}

owned_group! {
    /// Names, policies and Service: what rarely changes in the life of a flow. On the wire one piece, see [`EncodedTail`].
    pub struct Tail {
        /// Pod of the originator.
        src_pod: String, "sourcePodName" = ANTREA / 101;
        /// Namespace of the originator's Pod.
        src_namespace: String, "sourcePodNamespace" = ANTREA / 100;
        /// Node of the originator's Pod.
        src_node: String, "sourceNodeName" = ANTREA / 104;
        /// Pod of the responder.
        dst_pod: String, "destinationPodName" = ANTREA / 103;
        /// Namespace of the responder's Pod.
        dst_namespace: String, "destinationPodNamespace" = ANTREA / 102;
        /// Node of the responder's Pod.
        dst_node: String, "destinationNodeName" = ANTREA / 105;
        /// Port the originator connected to, where that was a Service.
        service_port: u16, "destinationServicePort" = ANTREA / 108;
        /// Service the originator connected to: "namespace/name:port", or "namespace/name" if the port has no name.
        service: String, "destinationServicePortName" = ANTREA / 109;
        /// Policy that decided about entering the responder.
        ingress_policy: String, "ingressNetworkPolicyName" = ANTREA / 110;
        /// Namespace of that policy.
        ingress_policy_namespace: String, "ingressNetworkPolicyNamespace" = ANTREA / 111;
        /// Kind of that policy.
        ingress_policy_type: PolicyType, "ingressNetworkPolicyType" = ANTREA / 115;
        /// Rule of that policy.
        ingress_rule: String, "ingressNetworkPolicyRuleName" = ANTREA / 141;
        /// What that rule does.
        ingress_action: RuleAction, "ingressNetworkPolicyRuleAction" = ANTREA / 139;
        /// Policy that decided about leaving the originator.
        egress_policy: String, "egressNetworkPolicyName" = ANTREA / 112;
        /// Namespace of that policy.
        egress_policy_namespace: String, "egressNetworkPolicyNamespace" = ANTREA / 113;
        /// Kind of that policy.
        egress_policy_type: PolicyType, "egressNetworkPolicyType" = ANTREA / 118;
        /// Rule of that policy.
        egress_rule: String, "egressNetworkPolicyRuleName" = ANTREA / 142;
        /// What that rule does.
        egress_action: RuleAction, "egressNetworkPolicyRuleAction" = ANTREA / 140;
        /// State of a TCP connection.
        tcp_state: TcpState, "tcpState" = ANTREA / 136;
        /// Where the two ends are.
        flow_type: FlowType, "flowType" = ANTREA / 137;
        /// Egress that names the originator's Pod.
        egress_name: String, "egressName" = ANTREA / 153;
        /// Address of that Egress, as text.
        egress_ip: String, "egressIP" = ANTREA / 154;
        /// Application protocol, where it is known.
        app_protocol: String, "appProtocolName" = ANTREA / 155;
        /// HTTP transactions as a JSON object.
        http: String as Json, "httpVals" = ANTREA / 156;
        /// Address the originator connected to, where that was a Service.
        service_addr: IpAddr, "destinationClusterIPv4" | "destinationClusterIPv6" = ANTREA / 106 | 107;
    }
}

fixed_group! {
    /// Elements beyond Antrea's list, all of them IANA's; configuration may leave them out.
    pub struct Extended {
        /// When the first packet passed, in milliseconds since 1970.
        start_milliseconds: u64 as DateTimeMilliseconds, "flowStartMilliseconds" = IANA / 152;
        /// When the last packet passed, in milliseconds since 1970.
        end_milliseconds: u64 as DateTimeMilliseconds, "flowEndMilliseconds" = IANA / 153;
        /// TCP flags seen from the originator.
        tcp_flags: u16, "tcpControlBits" = IANA / 6;
        /// TCP flags seen from the responder.
        reverse_tcp_flags: u16, "reverseTcpControlBits" = REVERSE / 6;
        /// ICMP type * 256 + code of the request.
        icmp_type_code: u16, "icmpTypeCodeIPv4" | "icmpTypeCodeIPv6" = IANA / 32 | 139;
        /// One number for the life of a connection.
        flow_id: u64, "flowId" = IANA / 148;
        /// Packets of both directions that the Node dropped.
        dropped_packets: u64, "droppedPacketTotalCount" = IANA / 135;
        /// What became of the connection's packets.
        forwarding_status: ForwardingStatus, "forwardingStatus" = IANA / 89;
        /// The originator's address after translation; zero if nothing was translated.
        nat_src_addr: IpAddr, "postNATSourceIPv4Address" | "postNATSourceIPv6Address" = IANA / 225 | 281;
        /// The originator's port after translation; zero if nothing was translated.
        nat_src_port: u16, "postNAPTSourceTransportPort" = IANA / 227;
    }
}

fixed_group! {
    /// What each of the two Nodes counted, as the aggregator sends it.
    pub struct PerNode {
        /// `octetDeltaCount` as the originator's Node counted it.
        octet_delta_from_src: u64, "octetDeltaCountFromSourceNode" = ANTREA / 123;
        /// `octetDeltaCount` as the responder's Node counted it.
        octet_delta_from_dst: u64, "octetDeltaCountFromDestinationNode" = ANTREA / 131;
        /// `octetTotalCount` as the originator's Node counted it.
        octet_total_from_src: u64, "octetTotalCountFromSourceNode" = ANTREA / 121;
        /// `octetTotalCount` as the responder's Node counted it.
        octet_total_from_dst: u64, "octetTotalCountFromDestinationNode" = ANTREA / 129;
        /// `packetDeltaCount` as the originator's Node counted it.
        packet_delta_from_src: u64, "packetDeltaCountFromSourceNode" = ANTREA / 122;
        /// `packetDeltaCount` as the responder's Node counted it.
        packet_delta_from_dst: u64, "packetDeltaCountFromDestinationNode" = ANTREA / 130;
        /// `packetTotalCount` as the originator's Node counted it.
        packet_total_from_src: u64, "packetTotalCountFromSourceNode" = ANTREA / 120;
        /// `packetTotalCount` as the responder's Node counted it.
        packet_total_from_dst: u64, "packetTotalCountFromDestinationNode" = ANTREA / 128;
        /// `reverseOctetDeltaCount` as the originator's Node counted it.
        reverse_octet_delta_from_src: u64, "reverseOctetDeltaCountFromSourceNode" = ANTREA / 127;
        /// `reverseOctetDeltaCount` as the responder's Node counted it.
        reverse_octet_delta_from_dst: u64, "reverseOctetDeltaCountFromDestinationNode" = ANTREA / 135;
        /// `reverseOctetTotalCount` as the originator's Node counted it.
        reverse_octet_total_from_src: u64, "reverseOctetTotalCountFromSourceNode" = ANTREA / 125;
        /// `reverseOctetTotalCount` as the responder's Node counted it.
        reverse_octet_total_from_dst: u64, "reverseOctetTotalCountFromDestinationNode" = ANTREA / 133;
        /// `reversePacketDeltaCount` as the originator's Node counted it.
        reverse_packet_delta_from_src: u64, "reversePacketDeltaCountFromSourceNode" = ANTREA / 126;
        /// `reversePacketDeltaCount` as the responder's Node counted it.
        reverse_packet_delta_from_dst: u64, "reversePacketDeltaCountFromDestinationNode" = ANTREA / 134;
        /// `reversePacketTotalCount` as the originator's Node counted it.
        reverse_packet_total_from_src: u64, "reversePacketTotalCountFromSourceNode" = ANTREA / 124;
        /// `reversePacketTotalCount` as the responder's Node counted it.
        reverse_packet_total_from_dst: u64, "reversePacketTotalCountFromDestinationNode" = ANTREA / 132;
        /// When the last packet passed the originator's Node, in seconds since 1970.
        end_seconds_from_src: u32 as DateTimeSeconds, "flowEndSecondsFromSourceNode" = ANTREA / 151;
        /// When the last packet passed the responder's Node, in seconds since 1970.
        end_seconds_from_dst: u32 as DateTimeSeconds, "flowEndSecondsFromDestinationNode" = ANTREA / 152;
        /// Bits a second of the originator.
        throughput: u64, "throughput" = ANTREA / 145;
        /// `throughput` as the originator's Node measured it.
        throughput_from_src: u64, "throughputFromSourceNode" = ANTREA / 147;
        /// `throughput` as the responder's Node measured it.
        throughput_from_dst: u64, "throughputFromDestinationNode" = ANTREA / 148;
        /// Bits a second of the responder.
        reverse_throughput: u64, "reverseThroughput" = ANTREA / 146;
        /// `reverseThroughput` as the originator's Node measured it.
        reverse_throughput_from_src: u64, "reverseThroughputFromSourceNode" = ANTREA / 149;
        /// `reverseThroughput` as the responder's Node measured it.
        reverse_throughput_from_dst: u64, "reverseThroughputFromDestinationNode" = ANTREA / 150;
    }
}

fixed_group! {
    /// Whom a record came from, where the aggregator hands records on unjoined.
    pub struct Origin {
        /// Observation domain of the exporter.
        observation_domain: u32, "originalObservationDomainId" = IANA / 405;
        /// IPv4 address of the exporter.
        exporter_v4: Ipv4Addr, "originalExporterIPv4Address" = IANA / 403;
        /// IPv6 address of the exporter.
        exporter_v6: Ipv6Addr, "originalExporterIPv6Address" = IANA / 404;
        /// 0 if the exporter saw the flow enter, 1 if it saw it leave.
        direction: u8, "flowDirection" = IANA / 61;
    }
}

owned_group! {
    /// Labels of both Pods, as JSON objects with sorted keys.
    pub struct Labels {
        /// Labels of the originator's Pod.
        src_labels: String as Json, "sourcePodLabels" = ANTREA / 143;
        /// Labels of the responder's Pod.
        dst_labels: String as Json, "destinationPodLabels" = ANTREA / 144;
    }
}

fixed_group! {
    /// Accounting: what an agent's exporting process sent since it began (RFC 7011, section 4.1).
    pub struct Metering {
        /// Which metering process; one an agent.
        metering_process: u32, "meteringProcessId" = IANA / 143;
        /// Messages sent.
        messages: u64, "exportedMessageTotalCount" = IANA / 41;
        /// Flow records sent.
        records: u64, "exportedFlowRecordTotalCount" = IANA / 42;
        /// Bytes of the messages sent.
        octets: u64, "exportedOctetTotalCount" = IANA / 40;
    }
}

fixed_group! {
    /// Accounting: what an agent's exporting process could not send since it began (RFC 7011, section 4.3).
    pub struct NotSent {
        /// Which exporting process; one an agent.
        exporting_process: u32, "exportingProcessId" = IANA / 144;
        /// Flow records not sent.
        flows: u64, "notSentFlowTotalCount" = IANA / 166;
        /// Packets of flows that no record told of.
        packets: u64, "notSentPacketTotalCount" = IANA / 167;
        /// Layer-3 bytes of flows that no record told of.
        octets: u64, "notSentOctetTotalCount" = IANA / 168;
        /// When the first record was not sent, in milliseconds since 1970; 0 if all were.
        first_milliseconds: u64 as DateTimeMilliseconds, "observationTimeMilliseconds" = IANA / 323;
        /// When the last record was not sent, in milliseconds since 1970; 0 if all were.
        last_milliseconds: u64 as DateTimeMilliseconds, "observationTimeMilliseconds" = IANA / 323;
    }
}

owned_group! {
    /// Accounting: packets and bytes of one interface under one heading, since the agent began.
    pub struct InterfaceCount {
        /// Index of the interface.
        interface: u32, "ingressInterface" = IANA / 10;
        /// "seen", "accounted", "annotated", or the reason of a loss as the metrics name it.
        reason: String, "selectorName" = IANA / 335;
        /// Name of the interface.
        interface_name: String, "interfaceName" = IANA / 82;
        /// Packets under this heading.
        packets: u64, "packetTotalCount" = IANA / 86;
        /// Bytes under this heading.
        octets: u64, "octetTotalCount" = IANA / 85;
    }
}

owned_group! {
    /// Accounting: one of the Node's own addresses.
    pub struct NodeAddr {
        /// Index of the interface that has it.
        interface: u32, "ingressInterface" = IANA / 10;
        /// The address.
        addr: IpAddr, "sourceIPv4Address" | "sourceIPv6Address" = IANA / 8 | 27;
        /// The Node.
        node: String, "sourceNodeName" = ANTREA / 104;
        /// Name of the interface that has it.
        interface_name: String, "interfaceName" = IANA / 82;
    }
}

/// A record as an agent sends it, owned: for API, JSON and tests. On the way through the programs a record is a
/// [`Head`], the bytes of its tail and an [`Extended`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowRecord {
    /// When, between whom, how much.
    pub head: Head,
    /// Names.
    pub tail: Tail,
    /// Elements beyond Antrea's list; all zero where the sender leaves them out.
    pub extended: Extended,
}

/// A joined record as the aggregator sends it, owned: for API, JSON and tests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AggregatedFlow {
    /// When, between whom, how much.
    pub head: Head,
    /// Names, of both halves.
    pub tail: Tail,
    /// What each Node counted.
    pub per_node: PerNode,
    /// Labels of both Pods.
    pub labels: Labels,
    /// Elements beyond Antrea's list; all zero where configuration leaves them out.
    pub extended: Extended,
}

/// A record the aggregator hands on unjoined, owned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxiedFlow {
    /// When, between whom, how much.
    pub head: Head,
    /// Names, of the one half.
    pub tail: Tail,
    /// Whom the record came from.
    pub origin: Origin,
    /// Labels of both Pods.
    pub labels: Labels,
    /// Elements beyond Antrea's list; all zero where configuration leaves them out.
    pub extended: Extended,
}

composite!(FlowRecord, Agent: head, tail);
composite!(AggregatedFlow, Joined: head, tail, per_node, labels);
composite!(ProxiedFlow, Proxied: head, tail, origin, labels);

impl Extended {
    /// What a record without these elements has.
    pub fn absent(family: Family) -> Extended {
        Extended { nat_src_addr: family.unspecified(), ..Extended::default() }
    }
}

impl Labels {
    /// Appends both Pods' labels as they stand on the wire; what is too long is cut and counted.
    pub fn encode_texts(labels: [&str; 2], out: &mut Vec<u8>, cut: &mut Cut) {
        for (row, text) in Labels::FIELDS.iter().zip(labels) {
            value::put(row, Value::Text(text), Family::V4, out, cut);
        }
    }
}

impl Head {
    /// Whether its protocol has ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
    pub fn has_ports(&self) -> bool {
        [6, 17, 33, 132, 136].contains(&self.protocol)
    }

    /// ICMP type * 256 + code of the request; none of other protocols.
    pub fn icmp(&self) -> Option<u16> {
        [1, 58].contains(&self.protocol).then_some(self.dst_port)
    }

    /// The family of the record's template: IPv4 only if both addresses are.
    #[inline]
    pub fn family(&self) -> Family {
        if self.src_addr.is_ipv4() && self.dst_addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Packets, octets, reverse packets, reverse octets since the flow began.
    #[inline]
    pub fn totals(&self) -> [u64; 4] {
        [self.packet_total, self.octet_total, self.reverse_packet_total, self.reverse_octet_total]
    }

    /// Packets, octets, reverse packets, reverse octets since the last record.
    #[inline]
    pub fn deltas(&self) -> [u64; 4] {
        [self.packet_delta, self.octet_delta, self.reverse_packet_delta, self.reverse_octet_delta]
    }

    /// Sets all four totals, in the order of [`Head::totals`].
    #[inline]
    pub fn set_totals(&mut self, totals: [u64; 4]) {
        [self.packet_total, self.octet_total, self.reverse_packet_total, self.reverse_octet_total] = totals;
    }

    /// Sets all four deltas, in the order of [`Head::deltas`].
    #[inline]
    pub fn set_deltas(&mut self, deltas: [u64; 4]) {
        [self.packet_delta, self.octet_delta, self.reverse_packet_delta, self.reverse_octet_delta] = deltas;
    }
}
