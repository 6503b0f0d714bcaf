//! From header bytes to a flow key: what a packet is, between whom, and how many layer-3 bytes it has.
//!
//! Takes anything that loads headers from an offset: the packet in the kernel, a slice in tests. [`plain4`] and [`plain6`]
//! know only the common packets, each at the price of one or two bounds checks; [`packet`] knows all, and agrees with them.
//! Counts nothing and looks nothing up: joining fragments is left to the caller.

use crate::origin;
use flow_common::abi::Key6;

mod header;
mod plain;
mod refused;
mod transport;

use header::{Extension, FRAGMENT_OFFSET, FRAGMENTED, Ipv4, Ipv6, MORE6, OFFSET6, Tag};
pub use plain::{Plain, plain4, plain6};
pub use refused::{is_icmp, refused};
pub use transport::Transport;

/// Bytes of a header as they stand in the packet.
///
/// # Safety
/// Any bit pattern is a value, and there is no padding.
pub unsafe trait Header: Copy {}

/// Where headers come from.
pub trait Load {
    /// The header at an offset from the frame's beginning; none if the frame ends before it does.
    fn load<T: Header>(&self, offset: u32) -> Option<T>;
}

/// A frame in memory, for tests.
#[cfg(not(target_arch = "bpf"))]
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

#[cfg(not(target_arch = "bpf"))]
impl Load for Bytes<'_> {
    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let bytes = self.0.get(usize::try_from(offset).ok()?..)?.get(..size_of::<T>())?;
        // SAFETY: as many bytes as a `T` has, and any bytes are one.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

/// A frame as the hook shows it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Ethertype of the outermost header behind the link layer, as loaded.
    pub protocol: u16,
    /// Length of the link-layer header: 14, or 0 on a layer-3 device.
    pub link: u32,
    /// Length of the whole frame.
    pub length: u32,
    /// Whether the packet stands for several segments, so that an IP length of 0 means the frame's.
    pub gso: bool,
}

/// A packet of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// 4 or 6.
    pub family: u32,
    /// The flow's key; IPv4 as [`Key6::from`] puts it.
    pub key: Key6,
    /// Index of its direction: 1 if it goes from the key's end 1 to end 0.
    pub direction: u32,
    /// Layer-3 bytes.
    pub bytes: u32,
    /// TCP flags; 0 for other protocols.
    pub flags: u32,
    /// Protocol number behind the extension headers, as in the key.
    pub protocol: u8,
    /// Offset of the transport header.
    pub transport: u32,
    /// Offset of the first byte behind the packet.
    pub end: u32,
    /// [`flow_common::abi::Flow::state`] of a flow that begins with this packet.
    pub state: u32,
    /// Whether it is a part of a datagram.
    pub fragment: Fragment,
    /// Which datagram's, if it is a part.
    pub datagram: Datagram,
}

/// Part of a datagram.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// No: all of it.
    #[default]
    Whole,
    /// The first, which has the ports.
    First,
    /// A later one, whose ports are those of the first.
    Later,
}

/// What fragments of one datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// Source address; IPv4 in the first half.
    pub src: [u64; 2],
    /// Destination address.
    pub dst: [u64; 2],
    /// The datagram's identification, as loaded.
    pub id: u32,
    /// IPv4: the protocol. IPv6: 0, because only the first fragment shows it.
    pub protocol: u32,
}

/// Why a frame has no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Headers that contradict themselves or the frame.
    Malformed,
    /// Not IP but this ethertype, as loaded.
    NotIp(u16),
    /// More than six extension headers.
    Unsupported,
}

/// Ethertype of IPv4, as loaded.
pub const IPV4: u16 = 0x0800_u16.to_be();
/// Ethertype of IPv6, as loaded.
pub const IPV6: u16 = 0x86dd_u16.to_be();
/// Ethertype of a VLAN tag, as loaded.
const VLAN: u16 = 0x8100_u16.to_be();
/// Ethertype of a provider's VLAN tag, as loaded.
const PROVIDER_VLAN: u16 = 0x88a8_u16.to_be();

/// Protocol number.
pub const TCP: u8 = 6;
/// Protocol number.
pub const UDP: u8 = 17;

/// Extension headers that are followed.
const EXTENSIONS: u32 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Reads the packet in any frame into a place of the caller's, because a program has little stack of its own.
#[inline(always)]
pub fn packet<L: Load>(load: &L, frame: Frame, into: &mut Packet) -> Result<(), Refusal> {
    let mut offset = frame.link;
    let mut protocol = frame.protocol;
    for _ in 0..2 {
        if protocol == VLAN || protocol == PROVIDER_VLAN {
            let tag: Tag = load.load(offset).ok_or(Refusal::Malformed)?;
            protocol = tag.protocol;
            offset = offset.wrapping_add(4);
        }
    }
    match protocol {
        IPV4 => ipv4(load, frame, offset, into),
        IPV6 => ipv6(load, frame, offset, into),
        other => Err(Refusal::NotIp(other)),
    }
}

/// The source port of a pair as loaded.
#[inline(always)]
fn source(ports: u32) -> u16 {
    let [a, b, _, _] = ports.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// The destination port of a pair as loaded.
#[inline(always)]
fn destination(ports: u32) -> u16 {
    source(swapped(ports))
}

/// The pair the other way round.
#[inline(always)]
fn swapped(ports: u32) -> u32 {
    ports.rotate_left(16)
}

#[inline(always)]
fn above6(src: &[u64; 2], dst: &[u64; 2], src_port: u16, dst_port: u16) -> bool {
    let ([a, b], [c, d]) = (*src, *dst);
    if a != c {
        a > c
    } else if b != d {
        b > d
    } else {
        src_port > dst_port
    }
}

#[inline(always)]
fn ipv4<L: Load>(load: &L, frame: Frame, offset: u32, into: &mut Packet) -> Result<(), Refusal> {
    let ip: Ipv4 = load.load(offset).ok_or(Refusal::Malformed)?;
    let header = u32::from(ip.version_ihl & 0x0f).wrapping_mul(4);
    let room = frame.length.wrapping_sub(offset);
    let bytes = match u32::from(u16::from_be(ip.total)) {
        0 if frame.gso => room,
        total => total,
    };
    if ip.version_ihl & 0xf0 != 0x40 || header < 20 || bytes < header || bytes > room {
        return Err(Refusal::Malformed);
    }
    into.family = 4;
    into.bytes = bytes;
    into.end = offset.wrapping_add(bytes);
    into.transport = offset.wrapping_add(header);
    into.protocol = ip.protocol;
    into.datagram.src = [u64::from(ip.src), 0];
    into.datagram.dst = [u64::from(ip.dst), 0];
    into.datagram.id = u32::from(ip.id);
    into.datagram.protocol = u32::from(ip.protocol);
    into.fragment = if ip.fragment & FRAGMENTED == 0 {
        Fragment::Whole
    } else if ip.fragment & FRAGMENT_OFFSET == 0 {
        Fragment::First
    } else {
        Fragment::Later
    };
    ends(load, into);
    Ok(())
}

#[inline(always)]
fn ipv6<L: Load>(load: &L, frame: Frame, offset: u32, into: &mut Packet) -> Result<(), Refusal> {
    let ip: Ipv6 = load.load(offset).ok_or(Refusal::Malformed)?;
    let room = frame.length.wrapping_sub(offset);
    let bytes = match u32::from(u16::from_be(ip.payload)) {
        0 if frame.gso || ip.next == HOP_BY_HOP => room,
        payload => payload.wrapping_add(40),
    };
    if ip.version & 0xf0 != 0x60 || bytes < 40 || bytes > room {
        return Err(Refusal::Malformed);
    }
    into.family = 6;
    into.bytes = bytes;
    into.end = offset.wrapping_add(bytes);
    into.transport = offset.wrapping_add(40);
    into.protocol = ip.next;
    into.datagram.src = ip.src;
    into.datagram.dst = ip.dst;
    into.datagram.id = 0;
    into.datagram.protocol = 0;
    into.fragment = Fragment::Whole;
    extensions(load, into)?;
    ends(load, into);
    Ok(())
}

/// Walks along IPv6 extension headers to the transport header, or to the end of what a later fragment shows.
#[inline(always)]
fn extensions<L: Load>(load: &L, into: &mut Packet) -> Result<(), Refusal> {
    for _ in 0..EXTENSIONS {
        let next = into.protocol;
        if !is_extension(next) || into.fragment == Fragment::Later {
            return Ok(());
        }
        let header: Extension = load.load(into.transport).ok_or(Refusal::Malformed)?;
        let units = u32::from(header.length);
        let size = match next {
            FRAGMENT => 8,
            AUTHENTICATION => units.wrapping_add(2).wrapping_mul(4),
            _ => units.wrapping_add(1).wrapping_mul(8),
        };
        into.transport = into.transport.wrapping_add(size);
        into.protocol = header.next;
        if into.transport > into.end {
            return Err(Refusal::Malformed);
        }
        if next == FRAGMENT && header.fragment & (OFFSET6 | MORE6) != 0 {
            into.datagram.id = header.id;
            into.fragment = if header.fragment & OFFSET6 != 0 { Fragment::Later } else { Fragment::First };
        }
    }
    if is_extension(into.protocol) && into.fragment != Fragment::Later {
        return Err(Refusal::Unsupported);
    }
    Ok(())
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// Reads the transport header and sorts the ends.
#[inline(always)]
fn ends<L: Load>(load: &L, into: &mut Packet) {
    let transport = match into.fragment {
        Fragment::Later => Transport::NONE,
        _ => Transport::load(load, into.family, into.protocol, into.transport, into.end),
    };
    let reversed = sort(into, transport.ports, transport.query);
    into.flags = transport.flags;
    into.state = match transport.query {
        Some(reply) if transport.answers => origin::known(reversed != reply),
        _ => origin::of(transport.flags, reversed),
    };
}

/// Makes the key of the ends that the datagram has, and of these ports. Gives whether the packet goes from end 1.
#[inline(always)]
fn sort(into: &mut Packet, ports: u32, query: Option<bool>) -> bool {
    let (src, dst) = (into.datagram.src, into.datagram.dst);
    let reversed = match query {
        Some(reply) if src == dst => reply,
        Some(_) => above6(&src, &dst, 0, 0),
        None => above6(&src, &dst, source(ports), destination(ports)),
    };
    let addr = if reversed { [dst, src] } else { [src, dst] };
    // An ICMP identifier and type belong to no end.
    let ports = if reversed && query.is_none() { swapped(ports) } else { ports };
    into.key = Key6::new(addr, ports, into.protocol);
    into.direction = u32::from(reversed);
    reversed
}

/// Gives a first packet the key that it had between these ends; the addresses stand in its datagram. An ICMP identifier stays, and what
/// has no ports has none.
#[inline(always)]
pub fn between(into: &mut Packet, ports: u32) {
    let known = into.key.ports();
    if is_icmp(into) {
        sort(into, known, Some(false));
    } else {
        sort(into, if known == 0 { 0 } else { ports }, None);
    }
}
