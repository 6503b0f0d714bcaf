//! Reads netlink messages: headers, then the attributes of a connection. Bytes from the kernel, whatever they are,
//! never panic; a connection without both tuples is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow_common::abi::Count;
use flow_common::time::Timestamp;

use super::attribute::{Attributes, number};
use super::{Entry, Event, Kind, Tuple};

/// Bytes of a netlink header, and of the netfilter one behind it.
const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// Types of netlink's own messages.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;

/// Subsystem and types of connection tracking's.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;

/// Header flags of an event about something new.
const CREATE: u16 = 0x400;

/// What one message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are of the large one")]
pub enum Message {
    /// A connection; in a dump and as an answer its kind is `Update`.
    Connection(Event),
    /// A request failed with this error number, or succeeded with 0.
    Error(i32),
    /// A dump is complete.
    Done,
    /// Not a connection that can be understood.
    Malformed,
}

/// The messages of one datagram, each with the number of the request that it answers (0 for an event).
#[derive(Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl Iterator for Messages<'_> {
    type Item = (u32, Message);

    fn next(&mut self) -> Option<(u32, Message)> {
        if self.0.is_empty() {
            return None;
        }
        let Some((kind, flags, sequence, body)) = self.split() else {
            self.0 = &[];
            return Some((0, Message::Malformed));
        };
        let message = match kind {
            DONE => done(body),
            ERROR => {
                number(body).map_or(Message::Malformed, |code| Message::Error(i32::from_ne_bytes(code).wrapping_neg()))
            }
            OVERRUN => Message::Error(rustix::io::Errno::NOBUFS.raw_os_error()),
            NEW | DELETE => connection(kind, flags, body).map_or(Message::Malformed, Message::Connection),
            _ => Message::Malformed,
        };
        Some((sequence, message))
    }
}

impl<'a> Messages<'a> {
    /// Takes the first message off: type, flags, sequence number, what follows the header.
    fn split(&mut self) -> Option<(u16, u16, u32, &'a [u8])> {
        let length = usize::try_from(u32::from_ne_bytes(number(self.0)?)).ok()?;
        let kind = u16::from_ne_bytes(number(self.0.get(4..)?)?);
        let flags = u16::from_ne_bytes(number(self.0.get(6..)?)?);
        let sequence = u32::from_ne_bytes(number(self.0.get(8..)?)?);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, sequence, body))
    }
}

/// The end of a dump carries an error number where the dump broke off.
fn done(body: &[u8]) -> Message {
    match number(body).map(i32::from_ne_bytes) {
        Some(code) if code < 0 => Message::Error(code.wrapping_neg()),
        _ => Message::Done,
    }
}

fn connection(kind: u16, flags: u16, body: &[u8]) -> Option<Event> {
    let entry = entry(body.get(NETFILTER_HEADER..)?)?;
    let kind = match kind {
        DELETE => Kind::Destroy,
        _ if flags & CREATE != 0 => Kind::New,
        _ => Kind::Update,
    };
    Some(Event { kind, entry })
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let (mut original, mut reply) = (None, None);
    let (mut zone, mut id, mut status, mut mark) = (None, 0, 0, 0);
    let (mut timeout, mut tcp_state, mut start, mut stop) = (None, None, None, None);
    let (mut sent, mut answered, mut labels) = (None, None, None);
    for (kind, value) in Attributes(bytes) {
        match kind {
            1 => original = Some(tuple(value)?),
            2 => reply = Some(tuple(value)?),
            3 => status = u32::from_be_bytes(number(value)?),
            4 => tcp_state = state(value),
            7 => timeout = Some(u32::from_be_bytes(number(value)?)),
            8 => mark = u32::from_be_bytes(number(value)?),
            9 => sent = Some(count(value)),
            10 => answered = Some(count(value)),
            12 => id = u32::from_be_bytes(number(value)?),
            18 => zone = Some(u16::from_be_bytes(number(value)?)),
            20 => [start, stop] = times(value),
            22 => labels = words(value),
            _ => {}
        }
    }
    let ((original, zone_of_original), (reply, _)) = (original?, reply?);
    let zone = zone.or(zone_of_original).unwrap_or(0);
    let counters = sent.zip(answered).map(|(sent, answered)| [sent, answered]);
    Some(Entry { original, reply, zone, id, status, mark, timeout, tcp_state, counters, labels, start, stop })
}

/// A tuple, and the zone of this direction where it has one of its own.
fn tuple(bytes: &[u8]) -> Option<(Tuple, Option<u16>)> {
    let (mut addrs, mut ports, mut zone) = (None, None, None);
    for (kind, value) in Attributes(bytes) {
        match kind {
            1 => addrs = addresses(value),
            2 => ports = protocol(value),
            3 => zone = Some(u16::from_be_bytes(number(value)?)),
            _ => {}
        }
    }
    let ((src, dst), (protocol, src_port, dst_port)) = (addrs?, ports?);
    Some((Tuple { src, dst, src_port, dst_port, protocol }, zone))
}

fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut src, mut dst) = (None, None);
    for (kind, value) in Attributes(bytes) {
        match kind {
            1 => src = Some(IpAddr::V4(Ipv4Addr::from(number::<4>(value)?))),
            2 => dst = Some(IpAddr::V4(Ipv4Addr::from(number::<4>(value)?))),
            3 => src = Some(IpAddr::V6(Ipv6Addr::from(number::<16>(value)?))),
            4 => dst = Some(IpAddr::V6(Ipv6Addr::from(number::<16>(value)?))),
            _ => {}
        }
    }
    src.zip(dst)
}

/// Protocol, port or ICMP identifier of the sender, port or ICMP type and code of the receiver.
fn protocol(bytes: &[u8]) -> Option<(u8, u16, u16)> {
    let (mut protocol, mut src_port, mut dst_port) = (None, 0, 0);
    let (mut icmp_type, mut icmp_code) = (None, 0);
    for (kind, value) in Attributes(bytes) {
        match kind {
            1 => protocol = Some(*value.first()?),
            2 | 4 | 7 => src_port = u16::from_be_bytes(number(value)?),
            3 => dst_port = u16::from_be_bytes(number(value)?),
            5 | 8 => icmp_type = Some(*value.first()?),
            6 | 9 => icmp_code = *value.first()?,
            _ => {}
        }
    }
    if let Some(icmp_type) = icmp_type {
        dst_port = u16::from_be_bytes([icmp_type, icmp_code]);
    }
    Some((protocol?, src_port, dst_port))
}

fn count(bytes: &[u8]) -> Count {
    let mut count = Count::default();
    for (kind, value) in Attributes(bytes) {
        match (kind, number(value)) {
            (1, Some(packets)) => count.packets = u64::from_be_bytes(packets),
            (2, Some(octets)) => count.bytes = u64::from_be_bytes(octets),
            _ => {}
        }
    }
    count
}

/// The kernel's own words, as they stand in its memory.
fn words(bytes: &[u8]) -> Option<[u64; 2]> {
    let word = |at| Some(u64::from_ne_bytes(number(bytes.get(at..)?)?));
    Some([word(0)?, word(8)?]).filter(|labels| *labels != [0, 0])
}

fn times(bytes: &[u8]) -> [Option<Timestamp>; 2] {
    let mut times = [None, None];
    for (kind, value) in Attributes(bytes) {
        let time = number(value).map(|nanos| Timestamp::from_nanos(u64::from_be_bytes(nanos)));
        match kind {
            1 => times[0] = time.filter(|time| *time != Timestamp::ZERO),
            2 => times[1] = time.filter(|time| *time != Timestamp::ZERO),
            _ => {}
        }
    }
    times
}

/// The state of TCP within the protocol's own part.
fn state(bytes: &[u8]) -> Option<u8> {
    let (_, tcp) = Attributes(bytes).find(|(kind, _)| *kind == 1)?;
    let (_, state) = Attributes(tcp).find(|(kind, _)| *kind == 1)?;
    state.first().copied()
}
