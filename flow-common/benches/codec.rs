//! How fast the codec is on one core, beside what one writes first: a list of owned values a record, element by element.
//! Thousands of Pods, flows in random order, rounds of all contestants in turn, medians of the process's CPU time.
//! `cargo xtask bench codec` runs it; it ends with an error if a target is missed.

use std::hint::black_box;
use std::net::IpAddr;
use std::process::ExitCode;

use flow_common::ipfix::collector::{self, Batch, Limits, TailHash};
use flow_common::ipfix::exporter::{JoinedParts, STREAM_LIMIT, Session, Settings};
use flow_common::record::{
    Content, Cut, EncodedTail, Extended, Family, FlowRecord, FlowType, Head, Layout, PerNode, Tail, TcpState, VARIABLE,
    Value,
};

const FLOWS: u32 = 50_000;
const PODS: u32 = 5_000;
const ROUNDS: usize = 9;
const NOW: u32 = 1_700_000_000;

/// A contestant: what it does once for all flows, and the records a second it must reach.
struct Contestant<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    target: Option<f64>,
    /// Which contestant it is compared with.
    against: &'static str,
    nanoseconds: Vec<f64>,
}

/// One flow as the programs keep it.
struct Flow {
    head: Head,
    tail: usize,
    extended: Extended,
}

struct Load {
    flows: Vec<Flow>,
    tails: Vec<EncodedTail>,
    owned: Vec<FlowRecord>,
}

fn main() -> ExitCode {
    let load = load();
    let plain = encoded(&load, false);
    let extended = encoded(&load, true);
    let reordered = naive_message(&load, true);
    let router = router_messages(&load);
    let mut contestants = vec![
        contestant("encode, naive", "", None, || drop(black_box(naive_message(&load, false)))),
        encoder("encode", &load, false, Some(3e6)),
        encoder("encode, extended", &load, true, None),
        joiner("encode, joined", &load),
        contestant("decode, naive", "", None, || naive_decode(&plain)),
        decoder("decode", "decode, naive", &plain, Some(10e6)),
        decoder("decode, extended", "decode, naive", &extended, None),
        decoder("decode, foreign order", "decode, naive", &reordered, Some(2e6)),
        decoder("decode, a router's", "decode, naive", &router, Some(2e6)),
    ];
    for _ in 0..ROUNDS {
        for contestant in &mut contestants {
            let before = cpu_seconds();
            (contestant.run)();
            contestant.nanoseconds.push((cpu_seconds() - before) * 1e9 / f64::from(FLOWS));
        }
    }
    if report(&mut contestants) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the report")]
fn report(contestants: &mut [Contestant<'_>]) -> bool {
    let medians: Vec<(&str, f64)> = contestants
        .iter_mut()
        .map(|contestant| {
            contestant.nanoseconds.sort_by(f64::total_cmp);
            (contestant.name, contestant.nanoseconds[ROUNDS / 2])
        })
        .collect();
    println!("{FLOWS} flows in random order, {PODS} Pods, {ROUNDS} rounds, one core\n");
    println!("{:<24}{:>12}{:>14}{:>14}{:>10}", "", "ns a record", "records/s", "naive is", "target");
    let mut reached = true;
    for (contestant, (_, nanoseconds)) in contestants.iter().zip(&medians) {
        let rate = 1e9 / nanoseconds;
        let naive = medians.iter().find(|(name, _)| *name == contestant.against);
        let ratio = naive.map_or(String::new(), |(_, naive)| format!("{:.1} x", naive / nanoseconds));
        let target = contestant.target.map_or(String::new(), |target| {
            reached &= rate >= target;
            format!("{:.0} M{}", target / 1e6, if rate >= target { "" } else { " MISSED" })
        });
        println!("{:<24}{nanoseconds:>12.0}{:>12.1} M{ratio:>14}{target:>10}", contestant.name, rate / 1e6);
    }
    reached
}

fn contestant<'a>(
    name: &'static str,
    against: &'static str,
    target: Option<f64>,
    run: impl FnMut() + 'a,
) -> Contestant<'a> {
    Contestant { name, run: Box::new(run), target, against, nanoseconds: Vec::new() }
}

fn encoder<'a>(name: &'static str, load: &'a Load, extended: bool, target: Option<f64>) -> Contestant<'a> {
    let mut session = session(Content::Agent, extended);
    contestant(name, "encode, naive", target, move || {
        for flow in &load.flows {
            session.push(&flow.head, &load.tails[flow.tail], &flow.extended).expect("small");
            written(&mut session);
        }
        session.finish();
        written(&mut session);
    })
}

fn joiner<'a>(name: &'static str, load: &'a Load) -> Contestant<'a> {
    let mut session = session(Content::Joined, true);
    let per_node = PerNode { octet_total_from_src: 1, throughput: 8000, ..PerNode::default() };
    contestant(name, "encode, naive", None, move || {
        for flow in &load.flows {
            let other = load.tails.len() - 1 - flow.tail;
            let parts = JoinedParts {
                head: &flow.head,
                tails: [load.tails[flow.tail].bytes(), load.tails[other].bytes()],
                http: "",
                per_node: &per_node,
                labels: ["", ""],
                extended: &flow.extended,
            };
            session.push_joined(&parts).expect("small");
            written(&mut session);
        }
    })
}

/// As a program does it: what is gathered is written in large pieces.
fn written(session: &mut Session) {
    if session.len() >= 64 * 1024 {
        black_box(session.bytes());
        session.clear();
    }
}

fn decoder<'a>(name: &'static str, against: &'static str, bytes: &'a [u8], target: Option<f64>) -> Contestant<'a> {
    let mut session = collector::Session::new(Limits::STREAM, TailHash::new(7));
    let mut batch = Batch::new(128);
    contestant(name, against, target, move || {
        let (mut at, mut records, mut hashes) = (0, 0, 0);
        while at < bytes.len() {
            // As a program does it: reads of 256 KiB, and a batch at a time.
            let end = bytes.len().min(at + 256 * 1024);
            let next = session.decode(&bytes[..end], at, NOW, &mut batch).expect("good messages");
            records += batch.records().len();
            hashes ^= batch.records().iter().fold(0, |hashes, record| hashes ^ record.tail_hash);
            batch.clear();
            at = next;
        }
        black_box(hashes);
        assert_eq!(records, FLOWS as usize);
    })
}

fn session(content: Content, extended: bool) -> Session {
    let settings = Settings {
        domain: 1,
        content,
        extended,
        accounting: false,
        message_limit: STREAM_LIMIT,
        template_resend: None,
    };
    let mut session = Session::new(settings);
    session.begin(NOW);
    session
}

fn encoded(load: &Load, extended: bool) -> Vec<u8> {
    let mut session = session(Content::Agent, extended);
    for flow in &load.flows {
        session.push(&flow.head, &load.tails[flow.tail], &flow.extended).expect("small");
    }
    session.finish();
    session.bytes().to_vec()
}

fn load() -> Load {
    let tails: Vec<Tail> = (0..2 * PODS).map(tail).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let flows: Vec<Flow> = (0..FLOWS)
        .map(|number| Flow {
            head: head(number, random()),
            tail: usize::try_from(random() % u64::from(2 * PODS)).expect("small"),
            extended: Extended { flow_id: random(), start_milliseconds: u64::from(NOW) * 1000, ..Extended::default() },
        })
        .collect();
    let owned = flows
        .iter()
        .map(|flow| FlowRecord { head: flow.head, tail: tails[flow.tail].clone(), extended: flow.extended })
        .collect();
    let tails = tails.iter().map(|tail| tail.to_encoded(Family::V4, &mut Cut::default())).collect();
    Load { flows, tails, owned }
}

fn head(number: u32, random: u64) -> Head {
    Head {
        start_seconds: NOW,
        end_seconds: NOW + 5,
        end_reason: 2.into(),
        src_port: (random & 0xffff) as u16,
        dst_port: 8080,
        protocol: 6,
        packet_total: random >> 40,
        octet_total: random >> 30,
        packet_delta: 10,
        octet_delta: 1000,
        src_addr: std::net::Ipv4Addr::from(0x0a0a_0000 | number).into(),
        dst_addr: std::net::Ipv4Addr::from(0x0a14_0000 | (number >> 4)).into(),
        reverse_packet_total: random >> 41,
        ..Head::default()
    }
}

/// The source Node's half, or the destination Node's.
fn tail(number: u32) -> Tail {
    let common = Tail { tcp_state: TcpState::Established, flow_type: FlowType::InterNode, ..Tail::default() };
    if number < PODS {
        Tail {
            src_pod: format!("frontend-7d8f9c6b5-{number:05}"),
            src_namespace: "shop".into(),
            src_node: "node-a".into(),
            service_port: 80,
            service: "shop/web:http".into(),
            service_addr: [10, 96, 0, 10].into(),
            ..common
        }
    } else {
        Tail {
            dst_pod: format!("backend-5c4d7b8f6-{number:05}"),
            dst_namespace: "shop".into(),
            dst_node: "node-b".into(),
            ingress_policy: "allow-web".into(),
            ingress_policy_namespace: "shop".into(),
            ..common
        }
    }
}

/// CPU seconds of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What one writes first, out: a list of values a record, each with bytes of its own. `reversed` is the elements' order.
fn naive_message(load: &Load, reversed: bool) -> Vec<u8> {
    let layout = Layout::agent(Family::V4, false);
    let mut fields: Vec<_> = layout.fields().collect();
    if reversed {
        fields.reverse();
    }
    let elements: Vec<(u32, u16, u16)> =
        fields.iter().map(|field| (field.enterprise, field.id(Family::V4), field.width(Family::V4))).collect();
    let (mut out, mut body, mut count) = (template_message(&elements), Vec::new(), 0);
    for (at, record) in load.owned.iter().enumerate() {
        let mut values: Vec<Vec<u8>> = Vec::new();
        record.visit(|row, value| {
            if values.len() < fields.len() {
                values.push(match value {
                    Value::Number(number) => number.to_be_bytes()[8 - usize::from(row.width(Family::V4))..].to_vec(),
                    Value::Addr(IpAddr::V4(addr)) => addr.octets().to_vec(),
                    Value::Addr(IpAddr::V6(addr)) => addr.octets().to_vec(),
                    Value::Text(text) => [&[text.len() as u8], text.as_bytes()].concat(),
                });
            }
        });
        if reversed {
            values.reverse();
        }
        values.iter().for_each(|value| body.extend_from_slice(value));
        count += 1;
        if body.len() > 60_000 || at + 1 == load.owned.len() {
            let sequence = at as u32 + 1 - count;
            out.extend(message(300, sequence, &body));
            body.clear();
            count = 0;
        }
    }
    out
}

/// What one writes first, in: a list of owned values a record. The template is the agent's.
fn naive_decode(bytes: &[u8]) {
    enum Owned {
        Number(#[expect(dead_code, reason = "made, as a program would")] u64),
        Text(#[expect(dead_code, reason = "made, as a program would")] String),
    }
    let layout = Layout::agent(Family::V4, false);
    let elements: Vec<(&str, u16)> =
        layout.fields().map(|field| (field.name(Family::V4), field.width(Family::V4))).collect();
    let mut rest = bytes;
    let mut records = Vec::new();
    while rest.len() > 20 {
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        let (set, mut body) = (u16::from_be_bytes([rest[16], rest[17]]), &rest[20..length]);
        while set >= 256 && !body.is_empty() {
            let mut record: Vec<(String, Owned)> = Vec::new();
            for (name, width) in &elements {
                let (length, skip) = if *width == VARIABLE { (usize::from(body[0]), 1) } else { ((*width).into(), 0) };
                let value = &body[skip..skip + length];
                record.push((
                    (*name).to_owned(),
                    match *width {
                        VARIABLE => Owned::Text(String::from_utf8_lossy(value).into_owned()),
                        _ => Owned::Number(value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))),
                    },
                ));
                body = &body[skip + length..];
            }
            records.push(record);
            if records.len() == 128 {
                black_box(&records);
                records.clear();
            }
        }
        rest = &rest[length..];
    }
}

/// What routers send: ends, ports, counters, interfaces, times.
fn router_messages(load: &Load) -> Vec<u8> {
    let elements = [
        (0, 8, 4),
        (0, 12, 4),
        (0, 7, 2),
        (0, 11, 2),
        (0, 4, 1),
        (0, 5, 1),
        (0, 6, 1),
        (0, 10, 4),
        (0, 14, 4),
        (0, 2, 4),
        (0, 1, 4),
        (0, 152, 8),
        (0, 153, 8),
        (0, 16, 4),
        (0, 17, 4),
        (0, 9, 1),
        (0, 13, 1),
        (0, 15, 4),
        (0, 136, 1),
        (0, 61, 1),
    ];
    let (mut out, mut body) = (template_message(&elements), Vec::new());
    for (at, flow) in load.flows.iter().enumerate() {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (flow.head.src_addr, flow.head.dst_addr) else { continue };
        body.extend(src.octets());
        body.extend(dst.octets());
        body.extend(flow.head.src_port.to_be_bytes());
        body.extend([0x1f, 0x90, 6, 0, 0x1b, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 3, 232]);
        body.extend((u64::from(NOW) * 1000).to_be_bytes());
        body.extend((u64::from(NOW) * 1000 + 5000).to_be_bytes());
        body.extend([0; 16]);
        if at % 1000 == 999 || at + 1 == load.flows.len() {
            out.extend(message(300, (at - at % 1000) as u32, &body));
            body.clear();
        }
    }
    out
}

fn template_message(elements: &[(u32, u16, u16)]) -> Vec<u8> {
    let mut body = vec![1, 44, 0, elements.len() as u8];
    for (enterprise, id, width) in elements {
        body.extend((if *enterprise == 0 { *id } else { id | 0x8000 }).to_be_bytes());
        body.extend(width.to_be_bytes());
        if *enterprise != 0 {
            body.extend(enterprise.to_be_bytes());
        }
    }
    message(2, 0, &body)
}

fn message(set: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32;
    let words = [10 << 16 | (20 + length), NOW, sequence, 1, u32::from(set) << 16 | (4 + length)];
    [words.iter().flat_map(|word| word.to_be_bytes()).collect(), body.to_vec()].concat()
}
