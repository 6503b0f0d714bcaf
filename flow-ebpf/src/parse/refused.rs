//! ICMP errors that say that packets do not arrive, and the packets that they are about.
//!
//! An error shows the beginning of the packet that caused it, of which the IP header says how long it was.

use super::{Frame, IPV4, IPV6, Load, Packet, packet};

/// ICMP and its message "destination unreachable", of which one code only says that the packet is too big.
const ICMP: u8 = 1;
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// The same of ICMPv6, where too big is another message.
const ICMP6: u8 = 58;
const UNREACHABLE6: u8 = 1;
/// Bytes before the packet that an error is about.
const ERROR: u32 = 8;

/// Whether it may be such an error.
#[inline(always)]
pub fn is_icmp(packet: &Packet) -> bool {
    matches!(packet.protocol, ICMP | ICMP6)
}

/// Reads the packet that `error` says did not arrive; false if it is no such error, or does not show so much.
#[inline(always)]
pub fn refused<L: Load>(load: &L, error: &Packet, into: &mut Packet) -> bool {
    let [_, _, kind, code] = error.key.ports().to_ne_bytes();
    let protocol = match (error.family, error.protocol, kind) {
        (4, ICMP, UNREACHABLE) if code != FRAGMENTATION_NEEDED => IPV4,
        (6, ICMP6, UNREACHABLE6) => IPV6,
        _ => return false,
    };
    let frame = Frame { protocol, link: error.transport.wrapping_add(ERROR), length: u32::MAX, gso: false };
    packet(load, frame, into).is_ok()
}
