//! Events as the kernel programs wrote them on several kernels, and events that nobody wrote.
//!
//! The captures come from `cargo xtask vm-test KERNEL --only kernel_conntrack -- --ignored --nocapture captures`: the layout of the
//! kernel's structures, then a name, the number netlink gives to the connection, and the event's words a line.

use super::*;
use crate::conntrack::status;
use flow_common::abi::CONN_WORDS;
use proptest::prelude::*;

const CAPTURED: [(&str, &str); 3] = [
    ("5.10", include_str!("../fixtures/hooks-5.10.txt")),
    ("6.1", include_str!("../fixtures/hooks-6.1.txt")),
    ("7.3", include_str!("../fixtures/hooks-7.3.txt")),
];

/// Debian's kernels tick 250 times a second.
const CLOCKS: Clocks = Clocks { wall_ns: 1_000_000_000_000_000_000, tick_ns: 4_000_000 };

fn numbers(text: &str) -> Vec<u64> {
    text.split(' ').map(|number| u64::from_str_radix(number, 16).unwrap()).collect()
}

/// The numbers in what the capturing test prints, in the order of the structure's members.
fn layout(text: &str) -> ConnLayout {
    let line = text.lines().find_map(|line| line.strip_prefix("layout ")).unwrap();
    let digits: Vec<u32> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().unwrap())
        .collect();
    let &[
        timeout,
        zone,
        direction,
        original,
        reply,
        status,
        net,
        master,
        mark,
        tcp_state,
        tuple_bytes,
        src_addr,
        src_port,
        family,
        dst_addr,
        dst_port,
        protocol,
    ] = digits.as_slice()
    else {
        panic!("{digits:?}")
    };
    ConnLayout {
        timeout,
        zone: Some((zone, direction)),
        tuples: [original, reply],
        status,
        net,
        master,
        mark: Some(mark),
        tcp_state,
        tuple_bytes,
        src_addr,
        src_port,
        family,
        dst_addr,
        dst_port,
        protocol,
    }
}

fn event(words: &[u64]) -> ConntrackEvent {
    let half = |at: usize| u32::try_from(words[at]).unwrap();
    ConntrackEvent {
        at_ns: words[0],
        jiffies: words[1],
        address: words[2],
        seed: [words[3], words[4]],
        accounting: words[5..9].try_into().unwrap(),
        times: [words[9], words[10]],
        labels: [words[11], words[12]],
        kind: half(13),
        parts: half(14),
        namespace: half(15),
        length: half(16),
        conn: words[17..].try_into().unwrap(),
    }
}

/// Events of a kernel by their names, with netlink's numbers.
fn captured(text: &str) -> impl Iterator<Item = (&str, u32, ConntrackEvent)> {
    text.lines().filter_map(|line| line.strip_prefix("event ")).map(|line| {
        let (name, words) = line.split_once(' ').unwrap();
        let words = numbers(words);
        (name, u32::try_from(words[0]).unwrap(), event(&words[1..]))
    })
}

fn tuple(src: &str, dst: &str, ports: [u16; 2], protocol: u8) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), src_port: ports[0], dst_port: ports[1], protocol }
}

/// On every kernel, the event of a name and what it says.
fn on_each(name: &str, check: impl Fn(&str, &ConntrackEvent, Event)) {
    for (kernel, text) in CAPTURED {
        let (_, _, raw) =
            captured(text).find(|(of, ..)| *of == name).unwrap_or_else(|| panic!("{kernel} has no {name}"));
        check(kernel, &raw, decode(&raw, &layout(text), &CLOCKS).unwrap());
    }
}

#[test]
fn a_translated_connection_has_both_tuples() {
    for name in ["New-6-80", "Destroy-6-80"] {
        on_each(name, |kernel, _, Event { kind, entry }| {
            let port = entry.original.src_port;
            assert_eq!(entry.original, tuple("10.0.1.2", "10.96.0.10", [port, 80], 6), "{kernel}");
            assert_eq!(entry.reply, tuple("10.0.2.2", "10.0.1.2", [8080, port], 6), "{kernel}");
            assert_ne!(entry.status & status::DST_NAT, 0, "{kernel}");
            assert_eq!((entry.zone, entry.mark, entry.labels), (0, 0, None), "{kernel}");
            assert_eq!(kind == Kind::New, name.starts_with("New"), "{kernel}");
        });
    }
}

#[test]
fn a_new_connection_has_a_timeout_and_no_end() {
    on_each("New-6-80", |kernel, _, Event { entry, .. }| {
        // A SYN's: two minutes.
        assert!(entry.timeout.is_some_and(|seconds| (118..=120).contains(&seconds)), "{kernel}: {:?}", entry.timeout);
        assert_eq!((entry.stop, entry.status & status::SEEN_REPLY), (None, 0), "{kernel}");
    });
}

#[test]
fn an_ended_connection_has_counters_and_times() {
    on_each("Destroy-6-80", |kernel, _, Event { entry, .. }| {
        let counts = entry.counters.unwrap();
        assert!(counts.iter().all(|count| count.packets >= 4 && count.bytes > 52 * 4), "{kernel}: {counts:?}");
        // A kilobyte went back.
        assert!(counts[1].bytes > 1_000 && counts[0].bytes < 1_000, "{kernel}: {counts:?}");
        assert_eq!(entry.tcp_state, Some(crate::conntrack::tcp::TIME_WAIT), "{kernel}");
        assert!(entry.start.unwrap() < entry.stop.unwrap(), "{kernel}");
        assert_ne!(entry.status & status::SEEN_REPLY, 0, "{kernel}");
    });
}

#[test]
fn marks_labels_zones_and_both_families_are_read() {
    on_each("Destroy-6-8081", |kernel, _, Event { entry, .. }| {
        assert_eq!((entry.mark, entry.labels), (0x1234, Some([1 << 3, 1 << 63])), "{kernel}");
    });
    on_each("Destroy-17-5555", |kernel, _, Event { entry, .. }| {
        assert_eq!((entry.zone, entry.tcp_state), (7, None), "{kernel}");
    });
    on_each("Destroy-6-8090", |kernel, _, Event { entry, .. }| {
        let port = entry.original.src_port;
        assert_eq!(entry.original, tuple("fd01::2", "fd02::2", [port, 8090], 6), "{kernel}");
        assert_eq!(entry.reply, tuple("fd02::2", "fd01::2", [8090, port], 6), "{kernel}");
    });
}

#[test]
fn pings_have_identifier_type_and_code() {
    on_each("Destroy-1-2048", |kernel, _, Event { entry, .. }| {
        assert_eq!((entry.original.dst_port, entry.reply.dst_port), (8 << 8, 0), "{kernel}");
        assert_eq!(entry.original.src_port, entry.reply.src_port, "{kernel}");
    });
    on_each("Destroy-58-32768", |kernel, _, Event { entry, .. }| {
        assert_eq!((entry.original.dst_port, entry.reply.dst_port), (128 << 8, 129 << 8), "{kernel}");
    });
}

#[test]
fn connections_have_netlinks_numbers() {
    for (kernel, text) in CAPTURED {
        let layout = layout(text);
        let mut count = 0;
        for (name, id, raw) in captured(text) {
            assert_eq!(decode(&raw, &layout, &CLOCKS).unwrap().entry.id, id, "{kernel} {name}");
            count += 1;
        }
        assert!(count > 5, "{kernel}: {count}");
    }
}

#[test]
fn the_end_is_that_of_the_timeout_where_the_kernel_notes_none() {
    on_each("Destroy-17-5555", |kernel, raw, _| {
        let text = CAPTURED.iter().find(|(of, _)| *of == kernel).unwrap().1;
        let layout = layout(text);
        let mut event = *raw;
        event.parts &= !PART_TIMES;
        let mut bytes: Vec<u8> = event.conn.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = layout.timeout as usize;
        // It expired half a second, 125 ticks, ago; the tick's lower half has just begun anew.
        event.jiffies = 0x1_0000_0010;
        bytes[at..at + 4].copy_from_slice(&(0x10_u32.wrapping_sub(125)).to_le_bytes());
        for (word, bytes) in event.conn.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        let entry = decode(&event, &layout, &CLOCKS).unwrap().entry;
        let at = Timestamp::from_nanos(1_000_000_000_000_000_000 + event.at_ns);
        assert_eq!((entry.start, entry.stop.map(|stop| at.since(stop).as_millis())), (None, Some(500)), "{kernel}");
        assert_eq!(entry.timeout, None, "{kernel}");
    });
}

#[test]
fn what_is_cut_short_is_none() {
    on_each("New-6-80", |kernel, raw, _| {
        let text = CAPTURED.iter().find(|(of, _)| *of == kernel).unwrap().1;
        for length in [0, 8, 100] {
            assert_eq!(decode(&ConntrackEvent { length, ..*raw }, &layout(text), &CLOCKS), None, "{kernel}");
        }
    });
}

#[test]
fn the_tick_is_one_that_kernels_are_built_with() {
    let clocks = Clocks::now();
    assert!([10_000_000, 4_000_000, 3_333_333, 1_000_000].contains(&clocks.tick_ns), "{clocks:?}");
    assert!(clocks.wall_ns > 0);
}

prop_compose! {
    fn any_event()(
        head in prop::array::uniform13(any::<u64>()),
        halves in prop::array::uniform4(any::<u32>()),
        conn in prop::collection::vec(any::<u64>(), CONN_WORDS),
        ended: bool,
    ) -> ConntrackEvent {
        let words: Vec<u64> = head.into_iter().chain(halves.map(u64::from)).chain(conn).collect();
        let kind = if ended { CONNTRACK_END } else { 0 };
        ConntrackEvent { kind, ..event(&words) }
    }
}

prop_compose! {
    fn any_layout()(offsets in prop::collection::vec(prop_oneof![0_u32..300, any::<u32>()], 17)) -> ConnLayout {
        let words: Vec<String> = offsets.iter().map(ToString::to_string).collect();
        layout(&format!("layout {}", words.join(" ")))
    }
}

proptest! {
    #[test]
    fn no_event_and_no_layout_is_any_harm(event in any_event(), layout in any_layout(), wall_ns: i64, tick_ns: u64) {
        let _ = decode(&event, &layout, &Clocks { wall_ns, tick_ns });
    }

    /// A kernel's own events with some words changed.
    #[test]
    fn a_damaged_event_is_no_harm(
        which in 0..CAPTURED.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..8),
        tick_ns: u64,
    ) {
        let (_, text) = CAPTURED[which];
        for (_, _, mut event) in captured(text) {
            for (at, word) in &damage {
                event.conn[at.index(CONN_WORDS)] = *word;
            }
            let _ = decode(&event, &layout(text), &Clocks { wall_ns: i64::MAX, tick_ns });
        }
    }
}
