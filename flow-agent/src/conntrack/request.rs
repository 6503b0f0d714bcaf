//! Writes the two requests there are: a dump, and one connection by a tuple of it.

use std::net::IpAddr;

use super::Tuple;

const GET: u16 = 1 << 8 | 1;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Which connection a request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// A tuple of either of its directions.
    pub tuple: Tuple,
    /// Its zone.
    pub zone: u16,
}

/// A dump of both address families, of one zone or of all.
pub(super) fn dump(zone: Option<u16>, sequence: u32, out: &mut Vec<u8>) {
    message(REQUEST | DUMP, 0, sequence, out, |out| {
        if let Some(zone) = zone {
            in_zone(zone, out);
        }
    });
}

/// The connection that has this tuple.
pub(super) fn get(scope: &Scope, sequence: u32, out: &mut Vec<u8>) {
    let family = if scope.tuple.src.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    message(REQUEST, family as u8, sequence, out, |out| {
        tuple(&scope.tuple, out);
        if scope.zone != 0 {
            in_zone(scope.zone, out);
        }
    });
}

/// CTA_ZONE.
fn in_zone(zone: u16, out: &mut Vec<u8>) {
    attribute(18, out, |out| out.extend(zone.to_be_bytes()));
}

fn tuple(tuple: &Tuple, out: &mut Vec<u8>) {
    attribute(NESTED | 1, out, |out| {
        attribute(NESTED | 1, out, |out| match (tuple.src, tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                attribute(1, out, |out| out.extend(src.octets()));
                attribute(2, out, |out| out.extend(dst.octets()));
            }
            (src, dst) => {
                attribute(3, out, |out| out.extend(octets(src)));
                attribute(4, out, |out| out.extend(octets(dst)));
            }
        });
        attribute(NESTED | 2, out, |out| {
            attribute(1, out, |out| out.push(tuple.protocol));
            ports(tuple, out);
        });
    });
}

fn ports(tuple: &Tuple, out: &mut Vec<u8>) {
    let [icmp_type, icmp_code] = tuple.dst_port.to_be_bytes();
    let id = match tuple.protocol {
        ICMP => 4,
        ICMPV6 => 7,
        _ => {
            attribute(2, out, |out| out.extend(tuple.src_port.to_be_bytes()));
            return attribute(3, out, |out| out.extend(tuple.dst_port.to_be_bytes()));
        }
    };
    attribute(id, out, |out| out.extend(tuple.src_port.to_be_bytes()));
    attribute(id + 1, out, |out| out.push(icmp_type));
    attribute(id + 2, out, |out| out.push(icmp_code));
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

/// A netlink header and a netfilter one around `body`.
fn message(flags: u16, family: u8, sequence: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend([0; 4]);
    out.extend(GET.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family, 0, 0, 0]);
    body(out);
    let length = (out.len() - begin) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
}

/// An attribute's header around `value`, padded.
fn attribute(kind: u16, out: &mut Vec<u8>, value: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    value(out);
    let length = (out.len() - begin) as u16;
    out[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}
