//! Any bytes as what the kernel tells the agent: its types, messages of netlink, connections as they stand in its memory. And
//! any text as flow-agent.conf.

use flow_agent::config;
use flow_agent::conntrack::decode::{Clocks, decode};
use flow_agent::conntrack::message::Messages;
use flow_agent::kernel::ConnLayout;
use flow_agent::kernel::btf::Btf;
use flow_common::abi::ConntrackEvent;
use flow_common::config::print;

/// Names of one input that are looked up.
const NAMES: usize = 24;
/// Words of a connection's event before the structure, and numbers of a layout.
const WORDS: usize = 15;
const OFFSETS: usize = 17;

/// Any bytes as the kernel's types, and as a module's on top of them; what is named in them is looked up as the product does.
pub fn btf(bytes: &[u8]) {
    let parts = bytes.split(|byte| *byte == 0).filter_map(|part| std::str::from_utf8(part).ok());
    let names: Vec<&str> = parts.filter(|name| (1..32).contains(&name.len())).take(NAMES).collect();
    for module in [None, Some(bytes.to_vec())] {
        let Ok(btf) = Btf::parse(bytes.to_vec(), module) else { continue };
        for name in &names {
            let _ = (btf.size(name), btf.function(name), btf.values(name));
            for member in &names {
                let paths = [(*member).to_owned(), format!("{member}[1]"), format!("{member}.{name}")];
                let _ = paths.map(|path| btf.member(name, &path));
            }
        }
        let _ = btf.enumerations(|_| true);
    }
}

/// Any bytes as a datagram of netlink about connections.
pub fn netlink(bytes: &[u8]) {
    assert!(Messages(bytes).count() <= bytes.len(), "a message has a byte at least");
}

/// Bytes as an event of the kernel programs: the layout's numbers, a byte each, then the event's words.
pub fn conntrack(bytes: &[u8]) {
    let Some((offsets, rest)) = bytes.split_first_chunk::<OFFSETS>() else { return };
    let mut words = rest.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(*word.first_chunk()?)));
    let mut word = || words.next().unwrap_or_default();
    let [timeout, zone, direction, original, reply, status, net, master, mark, tcp_state, tuple_bytes, rest @ ..] =
        offsets.map(u32::from);
    let [src_addr, src_port, family, dst_addr, dst_port, protocol] = rest;
    let layout = ConnLayout {
        timeout,
        zone: (zone != u32::from(u8::MAX)).then_some((zone, direction)),
        tuples: [original, reply],
        status,
        net,
        master,
        mark: (mark != u32::from(u8::MAX)).then_some(mark),
        tcp_state,
        tuple_bytes,
        src_addr,
        src_port,
        family,
        dst_addr,
        dst_port,
        protocol,
    };
    let head: [u64; WORDS] = std::array::from_fn(|_| word());
    let [at_ns, jiffies, address, a, b, packets, octets, replies, reply_octets, start, stop, high, low, kinds, lengths] =
        head;
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let ([kind, parts], [namespace, length]) = (halves(kinds), halves(lengths));
    let event = ConntrackEvent {
        at_ns,
        jiffies,
        address,
        seed: [a, b],
        accounting: [packets, octets, replies, reply_octets],
        times: [start, stop],
        labels: [high, low],
        kind,
        parts,
        namespace,
        length,
        conn: std::array::from_fn(|_| word()),
    };
    for tick_ns in [4_000_000, 0, u64::MAX] {
        if let Some(told) = decode(&event, &layout, &Clocks { wall_ns: i64::MAX, tick_ns }) {
            assert_eq!(told.entry.original.src.is_ipv4(), told.entry.original.dst.is_ipv4(), "one family");
        }
    }
}

/// Any text as flow-agent.conf: what is accepted says the same once it is printed.
pub fn agent_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(loaded) = config::read("flow-agent.conf", text) else { return };
    let printed = print(&loaded.settings);
    let again = config::read("flow-agent.conf", &printed).expect("what is printed is accepted");
    assert_eq!(print(&again.settings), printed, "what is printed says the same");
}
