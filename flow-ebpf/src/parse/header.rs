//! The headers as they stand in a packet: network byte order, whatever the alignment.

use super::Header;

/// A VLAN tag behind its ethertype.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Tag {
    pub(super) control: u16,
    pub(super) protocol: u16,
}

/// RFC 791.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ipv4 {
    pub(super) version_ihl: u8,
    pub(super) service: u8,
    pub(super) total: u16,
    pub(super) id: u16,
    pub(super) fragment: u16,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    pub(super) checksum: u16,
    pub(super) src: u32,
    pub(super) dst: u32,
}

/// More fragments, or an offset, in [`Ipv4::fragment`] as loaded.
pub(super) const FRAGMENTED: u16 = 0x3fff_u16.to_be();
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();

/// With what follows if there are no options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ipv4Ports {
    pub(super) ip: Ipv4,
    pub(super) ports: u32,
}

/// RFC 8200.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ipv6 {
    pub(super) version: u8,
    pub(super) label: [u8; 3],
    pub(super) payload: u16,
    pub(super) next: u8,
    pub(super) hops: u8,
    pub(super) src: [u64; 2],
    pub(super) dst: [u64; 2],
}

/// With what follows if there are no extension headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ipv6Ports {
    pub(super) ip: Ipv6,
    // Two pairs to be free of padding; with UDP's and TCP's shortest header they are there.
    pub(super) ports: [u32; 2],
}

/// First eight bytes of any extension header; `fragment` and `id` mean that only in a fragment header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Extension {
    pub(super) next: u8,
    pub(super) length: u8,
    pub(super) fragment: u16,
    pub(super) id: u32,
}

pub(super) const OFFSET6: u16 = 0xfff8_u16.to_be();
pub(super) const MORE6: u16 = 0x0001_u16.to_be();

// SAFETY: integers only, no padding.
unsafe impl Header for Tag {}
// SAFETY: integers only, no padding.
unsafe impl Header for Ipv4 {}
// SAFETY: integers only, no padding.
unsafe impl Header for Ipv4Ports {}
// SAFETY: integers only, no padding.
unsafe impl Header for Ipv6 {}
// SAFETY: integers only, no padding.
unsafe impl Header for Ipv6Ports {}
// SAFETY: integers only, no padding.
unsafe impl Header for Extension {}

const _: () = assert!(size_of::<Ipv4>() == 20 && size_of::<Ipv4Ports>() == 24);
const _: () = assert!(size_of::<Ipv6>() == 40 && size_of::<Ipv6Ports>() == 48 && size_of::<Extension>() == 8);
