//! The common packets, each at the price of one or two bounds checks: TCP and UDP straight behind an IP header without faults.
//!
//! Knows nothing else, and gives nothing for anything else; where it gives something, [`super::packet`] gives the same.

use super::header::{FRAGMENTED, Ipv4Ports, Ipv6Ports};
use super::{Load, TCP, UDP, above6, destination, source, swapped, transport};
use flow_common::abi::{Key4, Key6};

/// What the common packets come to.
#[derive(Clone, Copy, Debug)]
pub struct Plain<K> {
    /// The flow's key.
    pub key: K,
    /// Whether it goes from the key's end 1 to end 0.
    pub reversed: bool,
    /// Layer-3 bytes.
    pub bytes: u32,
    /// TCP flags; 0 for UDP.
    pub flags: u32,
    /// Offset of the transport header.
    pub transport: u32,
}

/// TCP or UDP over IPv4 without options, fragments or faults; none for anything else.
#[inline(always)]
pub fn plain4<L: Load>(load: &L, link: u32, length: u32) -> Option<Plain<Key4>> {
    let header: Ipv4Ports = load.load(link)?;
    let ip = &header.ip;
    let bytes = u32::from(u16::from_be(ip.total));
    if ip.version_ihl != 0x45 || ip.fragment & FRAGMENTED != 0 || link.wrapping_add(bytes) > length {
        return None;
    }
    let transport = link.wrapping_add(20);
    let flags = plain_flags(load, ip.protocol, transport, bytes.wrapping_sub(20), bytes >= 28)?;
    let reversed = ip.src > ip.dst || (ip.src == ip.dst && source(header.ports) > destination(header.ports));
    let key = if reversed {
        Key4::new([ip.dst, ip.src], swapped(header.ports), ip.protocol)
    } else {
        Key4::new([ip.src, ip.dst], header.ports, ip.protocol)
    };
    Some(Plain { key, reversed, bytes, flags, transport })
}

/// TCP or UDP over IPv6 without extension headers or faults; none for anything else.
#[inline(always)]
pub fn plain6<L: Load>(load: &L, link: u32, length: u32) -> Option<Plain<Key6>> {
    let header: Ipv6Ports = load.load(link)?;
    let ip = &header.ip;
    let payload = u32::from(u16::from_be(ip.payload));
    let bytes = payload.wrapping_add(40);
    if ip.version & 0xf0 != 0x60 || link.wrapping_add(bytes) > length {
        return None;
    }
    let transport = link.wrapping_add(40);
    let flags = plain_flags(load, ip.next, transport, payload, payload >= 8)?;
    let [ports, _] = header.ports;
    let reversed = above6(&ip.src, &ip.dst, source(ports), destination(ports));
    let key = if reversed {
        Key6::new([ip.dst, ip.src], swapped(ports), ip.next)
    } else {
        Key6::new([ip.src, ip.dst], ports, ip.next)
    };
    Some(Plain { key, reversed, bytes, flags, transport })
}

/// Flags of a whole TCP header, 0 for a whole UDP one, none for everything else.
#[inline(always)]
fn plain_flags<L: Load>(load: &L, protocol: u8, transport: u32, payload: u32, udp_fits: bool) -> Option<u32> {
    match protocol {
        TCP if udp_fits && payload >= 20 => transport::tcp_flags(load, transport),
        UDP if udp_fits => Some(0),
        _ => None,
    }
}
