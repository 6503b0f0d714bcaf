//! Keys of map entries, as the kernel programs build them, and the tuples that they stand for.

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow_common::abi::{Key4, Key6};

use crate::conntrack::Tuple;

/// Protocols whose messages have ports where the kernel programs look for them.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// Whether the protocol is the family's ICMP: no ports, but an identifier and a type.
pub(super) fn is_icmp(addr: IpAddr, protocol: u8) -> bool {
    protocol == if addr.is_ipv4() { 1 } else { 58 }
}

/// The key of a map entry of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// In the IPv4 map.
    V4(Key4),
    /// In the IPv6 map.
    V6(Key6),
}

impl Key {
    /// The key that packets of `tuple` have, and whether its sender is the key's end 1. `icmp` is type * 256 + code of
    /// the request, which the tuple of an answer does not tell. None where the addresses are of two families.
    pub fn of(tuple: &Tuple, icmp: u16) -> Option<(Self, bool)> {
        let is_icmp = is_icmp(tuple.src, tuple.protocol);
        let ports = match tuple.protocol {
            _ if is_icmp => [tuple.src_port.to_be(), icmp.to_be()],
            protocol if WITH_PORTS.contains(&protocol) => [tuple.src_port.to_be(), tuple.dst_port.to_be()],
            _ => [0, 0],
        };
        let order = |addrs: Ordering| match addrs {
            Ordering::Equal if !is_icmp => ports[0] > ports[1],
            addrs => addrs == Ordering::Greater,
        };
        let sorted = |reversed: bool| if reversed && !is_icmp { [ports[1], ports[0]] } else { ports };
        match (tuple.src, tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (src, dst) = (u32::from_ne_bytes(src.octets()), u32::from_ne_bytes(dst.octets()));
                let reversed = order(src.cmp(&dst));
                let addr = if reversed { [dst, src] } else { [src, dst] };
                Some((
                    Self::V4(Key4 { addr, port: sorted(reversed), protocol: tuple.protocol, scope: [0; 3] }),
                    reversed,
                ))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (src, dst) = (halves(src), halves(dst));
                let reversed = order(src.cmp(&dst));
                let addr = if reversed { [dst, src] } else { [src, dst] };
                Some((
                    Self::V6(Key6 { addr, port: sorted(reversed), protocol: tuple.protocol, scope: [0; 3] }),
                    reversed,
                ))
            }
            _ => None,
        }
    }

    /// Number of the IP protocol.
    pub fn protocol(&self) -> u8 {
        match self {
            Self::V4(key) => key.protocol,
            Self::V6(key) => key.protocol,
        }
    }

    /// Addresses and ports of sender and receiver where the sender is end 0, or end 1 if `reversed`. Of ICMP the
    /// sender's port is the identifier, the receiver's type * 256 + code.
    pub(super) fn ends(&self, reversed: bool) -> [(IpAddr, u16); 2] {
        let (addrs, ports) = match self {
            Self::V4(key) => (key.addr.map(|addr| IpAddr::V4(Ipv4Addr::from(addr.to_ne_bytes()))), key.port),
            Self::V6(key) => (key.addr.map(|halves| IpAddr::V6(address(halves))), key.port),
        };
        let [low, high] = ports.map(u16::from_be);
        match (reversed, is_icmp(addrs[0], self.protocol())) {
            (false, _) => [(addrs[0], low), (addrs[1], high)],
            (true, false) => [(addrs[1], high), (addrs[0], low)],
            (true, true) => [(addrs[1], low), (addrs[0], high)],
        }
    }
}

fn halves(addr: Ipv6Addr) -> [u64; 2] {
    let octets = addr.octets();
    let (mut high, mut low) = ([0; 8], [0; 8]);
    high.copy_from_slice(&octets[..8]);
    low.copy_from_slice(&octets[8..]);
    [u64::from_ne_bytes(high), u64::from_ne_bytes(low)]
}

fn address(halves: [u64; 2]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&halves[0].to_ne_bytes());
    octets[8..].copy_from_slice(&halves[1].to_ne_bytes());
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: &str, dst: &str, ports: [u16; 2], protocol: u8) -> Tuple {
        Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), src_port: ports[0], dst_port: ports[1], protocol }
    }

    #[test]
    fn both_directions_have_one_key_and_give_their_ends_back() {
        for (src, dst) in
            [("10.0.1.2", "10.0.2.2"), ("10.0.1.2", "10.0.1.2"), ("fd01::2", "fd02::2"), ("::1:2", "::1:1")]
        {
            for protocol in [6, 17, 132] {
                let there = tuple(src, dst, [40_000, 80], protocol);
                let back = tuple(dst, src, [80, 40_000], protocol);
                let ((key, reversed), (same, other)) = (Key::of(&there, 0).unwrap(), Key::of(&back, 0).unwrap());
                assert_eq!(key, same);
                assert_ne!(reversed, other);
                assert_eq!(key.ends(reversed), [(there.src, 40_000), (there.dst, 80)]);
                assert_eq!(key.ends(other), [(there.dst, 80), (there.src, 40_000)]);
            }
        }
    }

    #[test]
    fn an_icmp_answer_has_its_requests_key() {
        let request = tuple("10.0.2.2", "10.0.1.2", [77, 0x0800], 1);
        let answer = tuple("10.0.1.2", "10.0.2.2", [77, 0], 1);
        let ((key, reversed), (same, other)) = (Key::of(&request, 0x0800).unwrap(), Key::of(&answer, 0x0800).unwrap());
        assert_eq!(key, same);
        assert_ne!(reversed, other);
        assert_eq!(key.ends(reversed), [(request.src, 77), (request.dst, 0x0800)]);
        assert_eq!(key.ends(other), [(request.dst, 77), (request.src, 0x0800)]);
    }

    #[test]
    fn what_has_no_ports_has_none_in_its_key() {
        let gre = tuple("10.0.1.2", "10.0.2.2", [1, 2], 47);
        let (key, reversed) = Key::of(&gre, 0).unwrap();
        assert_eq!(key.ends(reversed), [(gre.src, 0), (gre.dst, 0)]);
    }
}
