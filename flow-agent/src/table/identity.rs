//! The number that is one connection's for its life: the same on every export, and after a restart of the agent where
//! connection tracking knows when the connection began.

use std::net::IpAddr;

use super::Ends;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a of 64 bits over the Node's name, a zero byte, source and original destination address (16 bytes each, IPv4
/// mapped), source and original destination port, protocol, zone and start in nanoseconds since 1970, all in network
/// byte order. Never 0, which stands for "not known".
pub(super) fn flow_id(node: &str, ends: &Ends, zone: u16, start_ns: u64) -> u64 {
    let (dst, dst_port) = ends.original_dst.unwrap_or((ends.dst, ends.dst_port));
    let parts: [&[u8]; 9] = [
        node.as_bytes(),
        &[0],
        &octets(ends.src),
        &octets(dst),
        &ends.src_port.to_be_bytes(),
        &dst_port.to_be_bytes(),
        &[ends.protocol],
        &zone.to_be_bytes(),
        &start_ns.to_be_bytes(),
    ];
    let hash = parts.into_iter().flatten().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    hash.max(1)
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number is on the wire: it may not change with a version.
    #[test]
    fn the_hash_is_the_documented_one() {
        let ends = Ends {
            src: IpAddr::from([10, 0, 1, 2]),
            dst: IpAddr::from([10, 0, 2, 2]),
            src_port: 40_000,
            dst_port: 8080,
            protocol: 6,
            original_dst: Some((IpAddr::from([10, 96, 0, 10]), 80)),
            nat_src: None,
            at_pod: true,
        };
        let id = flow_id("node-a", &ends, 0, 1_700_000_000_123_456_789);
        assert_eq!(id, 0x7176_9bd8_43a6_021a);
        let direct = Ends { original_dst: None, ..ends };
        assert_ne!(flow_id("node-a", &direct, 0, 1_700_000_000_123_456_789), id);
    }
}
