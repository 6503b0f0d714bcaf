//! The columns of table `flows`: first those of Antrea's table in its order, then Theia's, then ours.
//!
//! Takes the record table of flow-common, which knows names and types of elements; says what each column is called
//! and how it is stored. Which server stores it how is `ddl`.

use flow_common::record::{Content, Family, Field, Layout, Type};
use std::sync::LazyLock;

/// When a row was inserted; the same moment for all rows of a commit and all its repeats.
pub(super) const INSERTED: &str = "timeInserted";
/// The UUID of the cluster, if one is configured.
pub(super) const CLUSTER: &str = "clusterUUID";
/// Of Antrea's table; nobody writes it.
const TRUSTED: &str = "trusted";

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// As queries know it.
    pub(super) name: &'static str,
    /// How it is stored.
    pub(super) stored: Stored,
    /// The record's field, by its Rust name; `None` where it is no field.
    pub(super) field: Option<&'static str>,
    /// Whether Antrea's table lacks it, so that tables without it are brought forward.
    pub(super) added: bool,
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// One byte.
    Number8,
    /// Two bytes.
    Number16,
    /// Eight bytes.
    Number64,
    /// Seconds since 1970.
    Seconds,
    /// Milliseconds since 1970.
    Milliseconds,
    /// A text that many rows share.
    Name,
    /// A text that few rows share.
    Text,
}

impl Stored {
    /// The type in which a server takes values, which for milliseconds is this one.
    pub(super) fn kind(self, milliseconds: &'static str) -> &'static str {
        match self {
            Stored::Number8 => "UInt8",
            Stored::Number16 => "UInt16",
            Stored::Number64 => "UInt64",
            Stored::Seconds => "DateTime",
            Stored::Milliseconds => milliseconds,
            Stored::Name | Stored::Text => "String",
        }
    }
}

/// Fields by their Rust names, and what a column is called where that is not the element's name.
const FIELDS: [(&str, &str); 61] = [
    ("start_seconds", ""),
    ("end_seconds", ""),
    ("end_seconds_from_src", ""),
    ("end_seconds_from_dst", ""),
    ("end_reason", ""),
    ("src_addr", "sourceIP"),
    ("dst_addr", "destinationIP"),
    ("src_port", ""),
    ("dst_port", ""),
    ("protocol", ""),
    ("packet_total", ""),
    ("octet_total", ""),
    ("packet_delta", ""),
    ("octet_delta", ""),
    ("reverse_packet_total", ""),
    ("reverse_octet_total", ""),
    ("reverse_packet_delta", ""),
    ("reverse_octet_delta", ""),
    ("src_pod", ""),
    ("src_namespace", ""),
    ("src_node", ""),
    ("dst_pod", ""),
    ("dst_namespace", ""),
    ("dst_node", ""),
    ("service_addr", "destinationClusterIP"),
    ("service_port", ""),
    ("service", ""),
    ("ingress_policy", ""),
    ("ingress_policy_namespace", ""),
    ("ingress_rule", ""),
    ("ingress_action", ""),
    ("ingress_policy_type", ""),
    ("egress_policy", ""),
    ("egress_policy_namespace", ""),
    ("egress_rule", ""),
    ("egress_action", ""),
    ("egress_policy_type", ""),
    ("tcp_state", ""),
    ("flow_type", ""),
    ("src_labels", ""),
    ("dst_labels", ""),
    ("throughput", ""),
    ("reverse_throughput", ""),
    ("throughput_from_src", ""),
    ("throughput_from_dst", ""),
    ("reverse_throughput_from_src", ""),
    ("reverse_throughput_from_dst", ""),
    ("egress_name", ""),
    ("egress_ip", ""),
    ("app_protocol", ""),
    ("http", ""),
    ("start_milliseconds", ""),
    ("end_milliseconds", ""),
    ("tcp_flags", ""),
    ("reverse_tcp_flags", ""),
    ("icmp_type_code", "icmpTypeCode"),
    ("flow_id", ""),
    ("dropped_packets", ""),
    ("forwarding_status", ""),
    ("nat_src_addr", "postNATSourceIP"),
    ("nat_src_port", ""),
];
/// Fields of Antrea's table.
const OF_ANTREA: usize = 47;

/// All of them.
pub(super) static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
    let own = |name, stored, added| Column { name, stored, field: None, added };
    let of = |fields: &[(&'static str, &'static str)], added| -> Vec<Column> {
        fields.iter().map(|(field, name)| column(field, name, added)).collect()
    };
    let (first, later) = FIELDS.split_at(OF_ANTREA);
    let mut columns = vec![own(INSERTED, Stored::Seconds, false)];
    columns.extend(of(first, false));
    columns.push(own(TRUSTED, Stored::Number8, false));
    columns.push(own(CLUSTER, Stored::Name, true));
    columns.extend(of(later, true));
    columns
});

/// The name of the column that stores a field.
pub(super) fn name_of(field: &str) -> &'static str {
    COLUMNS.iter().find(|column| column.field == Some(field)).map_or("", |column| column.name)
}

/// The fields of a joined record in the order of the wire.
pub(super) fn wire(family: Family, extended: bool) -> impl Iterator<Item = &'static Field> {
    Layout { family, content: Content::Joined, extended }.fields()
}

fn column(field: &'static str, name: &'static str, added: bool) -> Column {
    let row = wire(Family::V4, true).find(|row| row.rust_name == field).expect("a test looks for every one");
    let name = if name.is_empty() { row.name(Family::V4) } else { name };
    let stored = match row.data_type {
        Type::Unsigned8 => Stored::Number8,
        Type::Unsigned16 => Stored::Number16,
        Type::Unsigned32 | Type::DateTimeSeconds => Stored::Seconds,
        Type::Unsigned64 => Stored::Number64,
        Type::DateTimeMilliseconds => Stored::Milliseconds,
        Type::String => Stored::Name,
        // A Pod's labels are as many as Pods; transactions differ by row.
        Type::Json if field != "http" => Stored::Name,
        Type::Json | Type::Ipv4Address | Type::Ipv6Address | Type::Address => Stored::Text,
    };
    Column { name, stored, field: Some(field), added }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn antreas_columns_come_first_and_every_field_but_the_nodes_counts_has_one() {
        let first: Vec<&str> = COLUMNS.iter().filter(|column| !column.added).map(|column| column.name).collect();
        assert_eq!(first.len(), 49);
        assert_eq!((first[1], first[6], first[48]), ("flowStartSeconds", "sourceIP", "trusted"));
        let left: Vec<&str> = wire(Family::V4, true)
            .filter(|row| COLUMNS.iter().all(|column| column.field != Some(row.rust_name)))
            .map(|row| row.name(Family::V4))
            .collect();
        assert_eq!(left.len(), 16);
        assert!(left.iter().all(|name| name.contains("CountFrom")), "{left:?}");
    }

    #[test]
    fn columns_have_names_of_their_own() {
        let names: std::collections::HashSet<&str> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(names.len(), COLUMNS.len());
        assert!(!names.contains(""));
    }
}
