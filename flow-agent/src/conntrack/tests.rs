//! Messages as a kernel sent them, bytes that nobody sent, and this machine's own connection tracking in network
//! namespaces of the tests' own (which needs root, nft and iproute2).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::message::{Message, Messages};
use super::switches::Switch;
use super::*;

/// Captured on Linux 6.18: a name and the bytes of a datagram a line.
const CAPTURED: &str = include_str!("fixtures/messages.txt");

fn captured() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    CAPTURED.lines().map(|line| {
        let (name, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (name, (0..hex.len()).step_by(2).map(byte).collect())
    })
}

fn event(name: &str) -> Event {
    let (_, bytes) = captured().find(|(of, _)| *of == name).unwrap();
    match Messages(&bytes).next() {
        Some((_, Message::Connection(event))) => event,
        other => panic!("{name}: {other:?}"),
    }
}

fn tuple(src: &str, dst: &str, ports: [u16; 2], protocol: u8) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), src_port: ports[0], dst_port: ports[1], protocol }
}

#[test]
fn a_translated_connection_has_both_tuples() {
    let Event { kind, entry } = event("tcp-dnat-new-0");
    let port = entry.original.src_port;
    assert_eq!(kind, Kind::New);
    assert_eq!(entry.original, tuple("127.0.0.1", "127.0.0.9", [port, 80], 6));
    assert_eq!(entry.reply, tuple("127.0.0.1", "127.0.0.1", [8080, port], 6));
    assert_ne!(entry.status & status::DST_NAT, 0);
    assert_eq!((entry.start, entry.stop, entry.counters), (None, None, None));
    assert_eq!(event("tcp-dnat-update-5").kind, Kind::Update);
}

#[test]
fn an_ended_connection_tells_counters_and_times() {
    let Event { kind, entry } = event("flush-destroy-2");
    assert_eq!(kind, Kind::Destroy);
    assert_eq!((entry.original.dst_port, entry.original.protocol), (5353, 17));
    assert_eq!(entry.counters, Some([abi_count(1, 51), abi_count(1, 52)]));
    let (start, stop) = (entry.start.unwrap(), entry.stop.unwrap());
    assert!(start < stop && stop.since(start).as_secs() < 60, "{start:?} {stop:?}");
}

#[test]
fn identifiers_types_marks_and_zones_are_read() {
    let ping = event("icmp6-new-0").entry;
    assert_eq!((ping.original.protocol, ping.original.dst_port, ping.reply.dst_port), (58, 128 << 8, 129 << 8));
    assert_eq!(ping.original.src_port, ping.reply.src_port);
    assert_eq!(event("zone-new-0").entry.zone, 7);
    let marked = event("flush-destroy-1").entry;
    assert_eq!((marked.original.protocol, marked.mark), (1, 0x1234));
    assert_eq!(event("flush-destroy-0").entry.id, event("zone-new-0").entry.id);
}

fn abi_count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

proptest! {
    #[test]
    fn bytes_that_nobody_sent_are_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Messages(&bytes).count() <= bytes.len());
    }

    /// A message with some bytes changed, and cut anywhere.
    #[test]
    fn a_damaged_message_is_no_harm(
        which in 0..captured().count(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length in any::<prop::sample::Index>(),
    ) {
        let (_, mut bytes) = captured().nth(which).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        prop_assert!(Messages(&bytes).count() <= bytes.len());
    }
}

/// This thread, its sockets and its child processes are in a network namespace of their own from here on, in which
/// everything is tracked.
fn namespace() {
    #[expect(deprecated, reason = "its successor is unsafe because of flags that this call does not have")]
    let entered = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
    entered.expect("these tests make network namespaces: run them as root, `sudo -E cargo test -p flow-agent`");
    run("ip", &["link", "set", "lo", "up"], "");
    let rules = "
        table inet zones {
            chain output {
                type filter hook output priority -300
                udp dport 5555 ct zone set 7
            }
        }
        table inet tracked {
            chain output {
                type filter hook output priority 0
                ct state new accept
            }
        }
        table ip translated {
            chain output {
                type nat hook output priority -100
                ip daddr 127.0.0.9 tcp dport 80 dnat to 127.0.0.1:8080
            }
        }
        ";
    run("nft", &["-f", "-"], rules);
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect(program);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
}

/// One request and answer through the translation.
fn talk() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
    let mut client = TcpStream::connect("127.0.0.9:80").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    client.local_addr().unwrap().port()
}

#[test]
fn events_dump_and_reads_agree_with_the_traffic() {
    namespace();
    let switches = switches::turn_on(Path::new(switches::FOLDER));
    assert_eq!((switches.accounting, switches.timestamps), (Switch::TurnedOn, Switch::TurnedOn));
    let mut conntrack = Conntrack::open(Groups::NEW_AND_END).unwrap();
    let (server, client) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    for _ in 0..3 {
        client.send_to(b"abc", server.local_addr().unwrap()).unwrap();
    }
    let port = talk();

    let mut events = Vec::new();
    assert!(!conntrack.poll(&mut events).unwrap());
    let known: Vec<Entry> = events.iter().filter(|event| event.kind == Kind::New).map(|event| event.entry).collect();
    let udp = known.iter().find(|entry| entry.original.protocol == 17).unwrap();
    let tcp = known.iter().find(|entry| entry.original.protocol == 6).unwrap();
    assert_eq!(tcp.original, tuple("127.0.0.1", "127.0.0.9", [port, 80], 6));
    assert_eq!(tcp.reply, tuple("127.0.0.1", "127.0.0.1", [8080, port], 6));

    let mut dumped = Vec::new();
    conntrack.dump(&Zones::default(), |entry| dumped.push(*entry)).unwrap();
    assert_eq!(dumped.len(), known.len());
    let of = |id: u32| *dumped.iter().find(|entry| entry.id == id).unwrap();
    assert_eq!(of(udp.id).counters.unwrap()[0], abi_count(3, 3 * 51));
    assert_eq!(of(tcp.id).reply, tcp.reply);
    assert!(of(tcp.id).start.is_some());
    assert_eq!(switches::fill(Path::new(switches::FOLDER)).unwrap().0, dumped.len() as u64);

    // By either tuple, more than go together at once; and one that is not there.
    let scope = |tuple| Scope { tuple, zone: 0 };
    let mut scopes = vec![scope(udp.original), scope(tcp.original), scope(tcp.reply)];
    scopes.extend((0..100).map(|port| scope(Tuple { src_port: port, ..udp.original })));
    scopes.push(scope(udp.original));
    let mut read = Vec::new();
    conntrack.read(&scopes, &mut read).unwrap();
    let ids: Vec<Option<u32>> = read.iter().map(|entry| entry.map(|entry| entry.id)).collect();
    assert_eq!(ids[..3], [Some(udp.id), Some(tcp.id), Some(tcp.id)]);
    assert!(ids[3..103].iter().all(Option::is_none));
    assert_eq!((ids[103], ids.len()), (Some(udp.id), 104));

    run("conntrack", &["--flush"], "");
    events.clear();
    conntrack.poll(&mut events).unwrap();
    let ended = events.iter().find(|event| event.entry.id == udp.id).unwrap();
    assert_eq!((ended.kind, ended.entry.counters.unwrap()[0]), (Kind::Destroy, abi_count(3, 3 * 51)));
    assert!(ended.entry.stop >= ended.entry.start);
    assert_eq!(
        conntrack.statistics(),
        Statistics { events: events.len() as u64 + known.len() as u64, overruns: 0, malformed: 0 }
    );
}

#[test]
fn a_dump_has_the_zones_that_are_asked_for() {
    namespace();
    let mut conntrack = Conntrack::open(Groups::NEW_AND_END).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for port in [5555, 5556, 5557] {
        client.send_to(b"abc", ("127.0.0.1", port)).unwrap();
    }
    let mut zones = |zones: &[u16]| {
        let mut found = Vec::new();
        conntrack.dump(&Zones::from(zones.to_vec()), |entry| found.push(entry.zone)).unwrap();
        found.sort_unstable();
        found
    };
    // What is tracked anew where a packet comes in is tracked there once more, in no zone.
    let all = zones(&[]);
    assert!(all.contains(&0) && all.contains(&7), "{all:?}");
    assert_eq!(zones(&[7]), [7]);
    assert_eq!(zones(&[7, 0]), all);
    assert!(zones(&[8]).is_empty());
}

#[test]
fn events_that_found_no_room_are_reported_and_the_dump_has_all() {
    namespace();
    let mut conntrack = Conntrack::open(Groups::NEW_AND_END).unwrap();
    sockopt::set_socket_recv_buffer_size(&conntrack.events, 0).unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let clients: Vec<UdpSocket> = (0..200).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for client in &clients {
        client.send_to(b"abc", server.local_addr().unwrap()).unwrap();
    }
    let mut events = Vec::new();
    assert!(conntrack.poll(&mut events).unwrap());
    assert!(events.len() < 200 && conntrack.statistics().overruns > 0);
    let mut dumped = 0;
    conntrack.dump(&Zones::default(), |_| dumped += 1).unwrap();
    assert_eq!(dumped, 200);
}

#[test]
fn switches_that_cannot_be_turned_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let Switch::Off(sentence) = switches::turn_on(folder.path()).accounting else { panic!("it is not there") };
    assert!(sentence.contains("load the module nf_conntrack"), "{sentence}");
    assert_eq!(switches::fill(folder.path()), None);
    for name in ["nf_conntrack_acct", "nf_conntrack_timestamp"] {
        std::fs::write(folder.path().join(name), "1\n").unwrap();
    }
    assert_eq!(switches::turn_on(folder.path()).timestamps, Switch::On);
}
