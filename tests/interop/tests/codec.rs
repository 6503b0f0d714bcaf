//! Our exporter's messages before collectors that are not ours, and go-ipfix's exporter before our collector, over real
//! sockets of the loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use flow_common::ipfix::collector::{Batch, Counters, Limits, Session as Receiving, TailHash};
use flow_common::ipfix::exporter::{JoinedParts, STREAM_LIMIT, Session, Settings};
use flow_common::net::{Address, Listener, Protocol, TlsClient, TlsFiles, TlsServer, connect};
use flow_common::record::{
    AggregatedFlow, Content, Cut, Extended, Family, FlowRecord, FlowType, Head, Labels, PerNode, Tail, TcpState, Value,
};
use interop::{Certificates, Collector, Exporter, Nfcapd, Record, Tshark};
use serde_json::json;

const NOW: u32 = 1_700_000_000;

fn record(number: u16, family: Family) -> FlowRecord {
    let addr = |last: u8| match family {
        Family::V4 => [10, 10, 0, last].into(),
        Family::V6 => [0xfd00, 0x10, 0, 0, 0, 0, 0, u16::from(last)].into(),
    };
    let head = Head {
        start_seconds: NOW - 60,
        end_seconds: NOW,
        end_reason: 2.into(),
        src_port: 40_000 + number,
        dst_port: 8080,
        protocol: 6,
        packet_total: 100,
        octet_total: 12_345_678_901,
        packet_delta: 10,
        octet_delta: 1_500,
        src_addr: addr(1),
        dst_addr: addr(2),
        reverse_packet_total: 90,
        reverse_octet_total: 9_000,
        reverse_packet_delta: 9,
        reverse_octet_delta: 900,
    };
    let tail = Tail {
        src_pod: "client-7d8f9c6b5-x2x4z".into(),
        src_namespace: "shop".into(),
        src_node: "node-a".into(),
        service_port: 80,
        service: "shop/web:http".into(),
        egress_policy: "allow-dns".into(),
        egress_policy_type: 1.into(),
        egress_action: 1.into(),
        tcp_state: TcpState::Established,
        flow_type: FlowType::InterNode,
        http: r#"{"0":{"status":200}}"#.into(),
        service_addr: addr(80),
        ..Tail::default()
    };
    let extended = Extended {
        start_milliseconds: u64::from(NOW) * 1000 - 60_000,
        end_milliseconds: u64::from(NOW) * 1000,
        tcp_flags: 0x1b,
        reverse_tcp_flags: 0x12,
        flow_id: 0x0123_4567_89ab_cdef,
        forwarding_status: 64.into(),
        ..Extended::absent(family)
    };
    FlowRecord { head, tail, extended }
}

fn records() -> Vec<FlowRecord> {
    (0..20).map(|number| record(number, if number < 10 { Family::V4 } else { Family::V6 })).collect()
}

fn joined(number: u16) -> AggregatedFlow {
    let FlowRecord { head, tail, extended } = record(number, Family::V4);
    let per_node =
        PerNode { octet_total_from_src: 1, octet_total_from_dst: 2, throughput: 8_000, ..PerNode::default() };
    let labels = Labels { src_labels: r#"{"app":"client"}"#.into(), dst_labels: "{}".into() };
    AggregatedFlow { head, tail, per_node, labels, extended }
}

fn session(content: Content, extended: bool, message_limit: usize) -> Session {
    let settings =
        Settings { domain: 7, content, extended, accounting: false, message_limit, template_resend: Some(600) };
    let mut session = Session::new(settings);
    session.begin(NOW);
    session
}

/// Every value that went out came in, under its name.
fn assert_same(
    received: &Record,
    family: Family,
    extended: bool,
    visit: impl FnOnce(&mut dyn FnMut(&str, Value<'_>)),
) -> Result<()> {
    let mut sent = 0;
    let mut fault = None;
    visit(&mut |name, value| {
        if !extended && Extended::FIELDS.iter().any(|field| field.name(family) == name) {
            return;
        }
        sent += 1;
        let expected = in_json(value);
        if received.value(name) != Some(&expected) && fault.is_none() {
            fault = Some(format!("{name}: sent {expected}, received {:?}", received.value(name)));
        }
    });
    ensure!(fault.is_none(), "{}", fault.unwrap_or_default());
    ensure!(received.elements.len() == sent, "{} elements of {sent}", received.elements.len());
    Ok(())
}

fn assert_same_record(received: &Record, record: &FlowRecord, extended: bool) -> Result<()> {
    let family = record.head.family();
    assert_same(received, family, extended, |show| record.visit(|row, value| show(row.name(family), value)))
}

/// go-ipfix is strict by default: every element we send is in its registry.
#[test]
fn go_ipfix_reads_our_records_over_tcp() -> Result<()> {
    for extended in [false, true] {
        let collector = Collector::start("tcp", true, None)?;
        let mut connection = TcpStream::connect(collector.addr)?;
        let mut session = session(Content::Agent, extended, STREAM_LIMIT);
        for record in &records() {
            session.push_record(record)?;
        }
        session.finish();
        connection.write_all(session.bytes())?;
        for (received, sent) in collector.records(20)?.iter().zip(&records()) {
            assert_same_record(received, sent, extended).with_context(|| format!("extended: {extended}"))?;
            assert_eq!((received.domain, received.export_time), (7, NOW));
        }
    }
    Ok(())
}

#[test]
fn go_ipfix_reads_joined_records() -> Result<()> {
    let collector = Collector::start("tcp", true, None)?;
    let mut connection = TcpStream::connect(collector.addr)?;
    let mut session = session(Content::Joined, true, STREAM_LIMIT);
    let flows: Vec<AggregatedFlow> = (0..5).map(joined).collect();
    for flow in &flows {
        let tail = flow.tail.to_encoded(Family::V4, &mut Cut::default());
        session.push_joined(&JoinedParts {
            head: &flow.head,
            tails: [tail.bytes(), &[]],
            http: "",
            per_node: &flow.per_node,
            labels: [&flow.labels.src_labels, &flow.labels.dst_labels],
            extended: &flow.extended,
        })?;
    }
    session.finish();
    connection.write_all(session.bytes())?;
    for (received, sent) in collector.records(5)?.iter().zip(&flows) {
        assert_same(received, Family::V4, true, |show| sent.visit(|row, value| show(row.name(Family::V4), value)))?;
    }
    Ok(())
}

/// Datagrams of a path of 1,500 bytes; the first templates are lost, the records before them unread, and all goes on
/// once templates come again.
#[test]
fn go_ipfix_reads_our_records_over_udp_after_a_lost_template() -> Result<()> {
    let collector = Collector::start("udp", true, None)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut session = session(Content::Agent, false, 1472);
    session.clear();
    session.push_record(&records()[0])?;
    session.finish();
    for message in session.messages() {
        socket.send_to(message, collector.addr)?;
    }
    collector.logged("does not exist")?;
    session.clear();
    session.begin(NOW + 600);
    for record in &records() {
        session.push_record(record)?;
    }
    session.finish();
    for message in session.messages() {
        ensure!(message.len() <= 1472);
        socket.send_to(message, collector.addr)?;
    }
    let mut received = collector.records(20)?;
    received.sort_by_key(|record| record.value("sourceTransportPort").and_then(serde_json::Value::as_u64));
    for (received, sent) in received.iter().zip(&records()) {
        assert_same_record(received, sent, false)?;
    }
    Ok(())
}

/// nfdump knows times in milliseconds alone, so those of the extended elements. Again the first templates are lost.
#[test]
fn nfcapd_reads_our_records_after_a_lost_template() -> Result<()> {
    for extended in [false, true] {
        let nfcapd = Nfcapd::start()?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let mut session = session(Content::Agent, extended, 1472);
        session.clear();
        session.push_record(&records()[0])?;
        session.begin(NOW + 600);
        for record in &records() {
            session.push_record(record)?;
        }
        session.finish();
        for message in session.messages() {
            socket.send_to(message, nfcapd.addr)?;
        }
        let (mut flows, log) = nfcapd.flows()?;
        flows.sort_by_key(|flow| flow["src_port"].as_u64());
        ensure!(
            flows.len() == 20 && log.contains("Flows: 20, Packets: 380, Bytes: 48000"),
            "{} flows:\n{log}",
            flows.len()
        );
        for (flow, sent) in flows.iter().zip(&records()) {
            let head = &sent.head;
            let family = if head.src_addr.is_ipv4() { "4" } else { "6" };
            assert_eq!(flow[format!("src{family}_addr")], head.src_addr.to_string());
            assert_eq!(flow[format!("dst{family}_addr")], head.dst_addr.to_string());
            assert_eq!((&flow["src_port"], &flow["dst_port"]), (&json!(head.src_port), &json!(head.dst_port)));
            assert_eq!((&flow["in_packets"], &flow["in_bytes"]), (&json!(10), &json!(1500)));
            assert_eq!((&flow["out_packets"], &flow["out_bytes"]), (&json!(9), &json!(900)));
            if extended {
                assert_eq!(flow["first"], "2023-11-14T22:12:20.000");
                assert_eq!(flow["last"], "2023-11-14T22:13:20.000");
            }
        }
    }
    Ok(())
}

#[test]
fn tshark_reads_our_records() -> Result<()> {
    for protocol in ["udp", "tcp"] {
        let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let collector = if protocol == "udp" { udp.local_addr()? } else { tcp.local_addr()? };
        let mut session = session(Content::Agent, true, 1472);
        for record in &records() {
            session.push_record(record)?;
        }
        session.finish();
        let tshark = Tshark::start(protocol, collector.port())?;
        if protocol == "udp" {
            for message in session.messages() {
                udp.send_to(message, collector)?;
            }
        } else {
            TcpStream::connect(collector)?.write_all(session.bytes())?;
        }
        let text = tshark.text_until("SrcPort: 40019")?;
        for expected in [
            "SrcAddr: 10.10.0.1",
            "DstAddr: fd00:10::2",
            "Permanent Octets: 12345678901",
            "Packets: 9 (Reverse Type 2 PKTS)",
            "Flow End Reason: Active timeout (2)",
            "(Project Antrea) Type 100: Value (hex bytes): 73 68 6f 70",
            "TCP Flags: 0x001b, ACK, PSH, SYN, FIN",
            "Flow Id: 81985529216486895",
        ] {
            ensure!(text.contains(expected), "no {expected:?} over {protocol} in:\n{text}");
        }
        ensure!(!text.contains("Malformed"), "over {protocol}:\n{text}");
        for port in 40_000..40_020 {
            assert_eq!(text.matches(&format!("SrcPort: {port}\n")).count(), 1, "over {protocol}");
        }
    }
    Ok(())
}

/// Through net's TLS, with a client certificate that go-ipfix demands.
#[tokio::test]
async fn go_ipfix_reads_our_records_over_tls() -> Result<()> {
    let certificates = Certificates::new()?;
    let collector = Collector::start("tcp", true, Some(&certificates))?;
    let client = TlsClient::load(&files(&certificates, "client"))?;
    let address = Address::parse(&format!("{}:tls", collector.addr), Protocol::Tls)?;
    let mut connection = connect(&address, Some(&client)).await?;
    let mut session = session(Content::Agent, false, connection.message_limit());
    for record in &records() {
        session.push_record(record)?;
    }
    session.finish();
    for message in session.messages() {
        connection.send(message).await?;
    }
    connection.flush().await?;
    for (received, sent) in collector.records(20)?.iter().zip(&records()) {
        assert_same_record(received, sent, false)?;
    }
    Ok(())
}

#[tokio::test]
async fn our_collector_reads_go_ipfix_over_tls() -> Result<()> {
    let certificates = Certificates::new()?;
    let server = TlsServer::load(&files(&certificates, "server"))?;
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), Protocol::Tls, Some(&server)).await?;
    let addr = listener.local()?;
    let Listener::Stream(listener) = listener else { panic!("TLS is a stream") };
    let (sent, elements) = sent();
    let client = ["ca.crt", "client.crt", "client.key"].map(|file| certificates.path(file));
    let exporting = tokio::task::spawn_blocking(move || -> Result<()> {
        let [ca, cert, key] = &client;
        let mut exporter = Exporter::start("tcp", addr, 9, Some((ca, cert, key, "localhost")))?;
        exporter.send(&elements)?;
        exporter.finish()
    });
    let mut incoming = listener.accept().await?.complete().await?;
    let mut bytes = BytesMut::new();
    // go-ipfix ends without TLS's goodbye, which is an error at the end.
    while incoming.fill(&mut bytes).await.is_ok_and(|read| read > 0) {}
    exporting.await??;
    let (received, _) = decoded(&bytes)?;
    assert_eq!(received, [sent]);
    Ok(())
}

#[test]
fn our_collector_reads_go_ipfix_over_tcp() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut exporter = Exporter::start("tcp", listener.local_addr()?, 9, None)?;
    let mut connection = listener.accept()?.0;
    let (sent, mut elements) = sent();
    exporter.send(&elements)?;
    // Another order is another template, and takes the foreign way.
    elements.reverse();
    exporter.send(&elements)?;
    exporter.finish()?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    let (received, counters) = decoded(&bytes)?;
    assert_eq!(received, [sent.clone(), sent]);
    assert_eq!((counters.foreign, counters.lost, counters.late), (1, 0, 0));
    Ok(())
}

#[test]
fn our_collector_reads_go_ipfix_over_udp() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut exporter = Exporter::start("udp", socket.local_addr()?, 9, None)?;
    let (sent, elements) = sent();
    exporter.send(&elements)?;
    exporter.finish()?;
    let (mut receiving, mut batch) = (Receiving::new(Limits::DATAGRAMS, TailHash::new(1)), Batch::new(100));
    let mut datagram = [0; 65_535];
    for _ in 0..2 {
        let length = socket.recv(&mut datagram)?;
        receiving.decode_datagram(&datagram, 0..length, NOW, &mut batch)?;
    }
    assert_eq!(owned(&batch, &datagram)?, [sent]);
    Ok(())
}

fn files(certificates: &Certificates, name: &str) -> TlsFiles {
    TlsFiles {
        ca: certificates.path("ca.crt"),
        cert: certificates.path(&format!("{name}.crt")),
        key: certificates.path(&format!("{name}.key")),
    }
}

/// A record in both forms, without what go-ipfix is not asked to send.
fn sent() -> (FlowRecord, Vec<(&'static str, serde_json::Value)>) {
    let mut sent = FlowRecord { extended: Extended::absent(Family::V4), ..record(1, Family::V4) };
    sent.tail.http = String::new();
    let mut elements = Vec::new();
    sent.visit(|row, value| {
        if !Extended::FIELDS.contains(row) {
            elements.push((row.name(Family::V4), in_json(value)));
        }
    });
    (sent, elements)
}

fn in_json(value: Value<'_>) -> serde_json::Value {
    match value {
        Value::Number(number) => json!(number),
        Value::Addr(addr) => json!(addr.to_string()),
        Value::Text(text) => json!(text),
    }
}

/// What our collector makes of a stream's bytes.
fn decoded(bytes: &[u8]) -> Result<(Vec<FlowRecord>, Counters)> {
    let (mut receiving, mut batch) = (Receiving::new(Limits::STREAM, TailHash::new(1)), Batch::new(100));
    let end = receiving.decode(bytes, 0, NOW, &mut batch)?;
    ensure!(end == bytes.len(), "{} bytes are no whole message", bytes.len() - end);
    Ok((owned(&batch, bytes)?, *receiving.counters()))
}

fn owned(batch: &Batch, bytes: &[u8]) -> Result<Vec<FlowRecord>> {
    let read = |record: &flow_common::ipfix::collector::Record| {
        let tail = Tail::decode(record.head.family(), batch.tail(record, bytes)).context("no tail")?;
        Ok(FlowRecord { head: record.head, tail, extended: record.extended })
    };
    batch.records().iter().map(read).collect()
}
