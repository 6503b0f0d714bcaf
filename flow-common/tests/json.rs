//! Records as lines of JSON, as collectors see them.

use flow_common::record::{AggregatedFlow, FlowRecord, Head, Labels, PerNode, ProxiedFlow, Tail, Value};
use flow_common::time::Timestamp;

fn head() -> Head {
    Head {
        start_seconds: 1_700_000_000,
        end_seconds: 1_700_000_005,
        end_reason: 2.into(),
        src_port: 40000,
        dst_port: 8080,
        protocol: 6,
        packet_total: 10,
        octet_total: u64::MAX,
        src_addr: [10, 0, 0, 1].into(),
        dst_addr: [10, 0, 0, 2].into(),
        ..Head::default()
    }
}

fn tail() -> Tail {
    Tail {
        src_pod: "client \"quoted\"\n".into(),
        service: "shop/web:http".into(),
        service_port: 80,
        http: r#"{"0":{"status":200}}"#.into(),
        service_addr: [10, 96, 0, 10].into(),
        ..Tail::default()
    }
}

#[test]
fn a_record_is_one_line() {
    let record = FlowRecord { head: head(), tail: tail(), ..FlowRecord::default() };
    let mut line = Vec::new();
    record.json(false, Timestamp::from_millis(1_700_000_005_250), &mut line);
    let line = String::from_utf8(line).expect("JSON is UTF-8");
    assert_eq!(line.find('\n'), Some(line.len() - 1));
    insta::assert_snapshot!(line.trim_end().replace(",\"", ",\n\""));
}

#[test]
fn every_element_is_in_its_line() {
    let (head, tail) = (head(), tail());
    let labels = Labels { src_labels: r#"{"app":"web"}"#.into(), dst_labels: "{}".into() };
    let per_node = PerNode { throughput: 8000, ..PerNode::default() };
    let joined =
        AggregatedFlow { head, tail: tail.clone(), per_node, labels: labels.clone(), ..AggregatedFlow::default() };
    let proxied = ProxiedFlow { head, tail, labels, ..ProxiedFlow::default() };
    let read = |line: Vec<u8>| -> serde_json::Value { serde_json::from_slice(&line).expect("JSON") };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    joined.json(true, Timestamp::ZERO, &mut first);
    proxied.json(true, Timestamp::ZERO, &mut second);
    let (first, second) = (read(first), read(second));
    assert_eq!(first["ipfix"].as_object().map(serde_json::Map::len), Some(77));
    assert_eq!(second["ipfix"].as_object().map(serde_json::Map::len), Some(57));
    assert_eq!(first["ipfix"]["sourcePodLabels"], r#"{"app":"web"}"#);
    assert_eq!(first["ipfix"]["throughput"], 8000);
    assert_eq!(second["ipfix"]["originalExporterIPv6Address"], "::");
    assert_eq!(first["@timestamp"], "1970-01-01T00:00:00Z");
    assert_eq!(joined.value("throughput"), Some(Value::Number(8000)));
    assert_eq!(joined.value("sourceIPv6Address"), Some(Value::Addr([10, 0, 0, 1].into())));
    assert_eq!(joined.value("sourcepodname"), None);
}
