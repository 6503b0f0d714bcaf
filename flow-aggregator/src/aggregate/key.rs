//! What connects the records of a connection: both ends as the server's side sees them, and the protocol.
//!
//! IPv4 and IPv6 have tables of their own; [`Addr`] is what differs between them.

use flow_common::record::{Extended, Family, Head};
use std::{
    fmt::Debug,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An address of one family.
pub(super) trait Addr: Copy + Eq + Debug + Send + Sync + 'static {
    /// Which.
    const FAMILY: Family;
    /// Stands for no address.
    const NONE: Self;
    /// Of either family; an IPv4 address has its mapped form in IPv6.
    fn new(addr: IpAddr) -> Self;
    /// Of either family.
    fn ip(self) -> IpAddr;
    /// Feeds two addresses to a hasher.
    fn hash_pair(src: Self, dst: Self, state: &mut impl Hasher);
    /// Appends its bytes.
    fn write(self, out: &mut Vec<u8>);
    /// Takes what [`write`](Self::write) appended from the front.
    fn read(from: &mut &[u8]) -> Self;
}

impl Addr for Ipv4Addr {
    const FAMILY: Family = Family::V4;
    const NONE: Self = Ipv4Addr::UNSPECIFIED;

    #[inline]
    fn new(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => addr,
            IpAddr::V6(addr) => addr.to_ipv4_mapped().unwrap_or(Self::NONE),
        }
    }

    fn ip(self) -> IpAddr {
        self.into()
    }

    #[inline]
    fn hash_pair(src: Self, dst: Self, state: &mut impl Hasher) {
        state.write_u64(u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits()));
    }

    #[inline]
    fn write(self, out: &mut Vec<u8>) {
        out.extend(self.octets());
    }

    #[inline]
    fn read(from: &mut &[u8]) -> Self {
        take::<4>(from).into()
    }
}

impl Addr for Ipv6Addr {
    const FAMILY: Family = Family::V6;
    const NONE: Self = Ipv6Addr::UNSPECIFIED;

    #[inline]
    fn new(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Self::NONE,
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        }
    }

    fn ip(self) -> IpAddr {
        self.into()
    }

    #[inline]
    fn hash_pair(src: Self, dst: Self, state: &mut impl Hasher) {
        state.write_u128(src.to_bits());
        state.write_u128(dst.to_bits());
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend(self.octets());
    }

    fn read(from: &mut &[u8]) -> Self {
        take::<16>(from).into()
    }
}

/// The 5-tuple after all translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<A> {
    /// Originator, or what it was translated to.
    pub(super) src: A,
    /// Responder after DNAT.
    pub(super) dst: A,
    /// Port of `src`; of ICMP the identifier.
    pub(super) src_port: u16,
    /// Port of `dst`; of ICMP type * 256 + code.
    pub(super) dst_port: u16,
    /// IP protocol.
    pub(super) protocol: u8,
}

/// The originator's own end, where the key has a translated one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client<A> {
    /// Its address; [`Addr::NONE`] if nothing was translated.
    pub(super) addr: A,
    /// Its port.
    pub(super) port: u16,
}

impl<A: Addr> Key<A> {
    /// Key and originator of a record.
    #[inline]
    pub(super) fn of(head: &Head, extended: &Extended) -> (Key<A>, Client<A>) {
        let (own, dst) = (Client { addr: A::new(head.src_addr), port: head.src_port }, A::new(head.dst_addr));
        let nat = Client { addr: A::new(extended.nat_src_addr), port: extended.nat_src_port };
        let (src, client) = if nat.addr == A::NONE { (own, Client::NONE) } else { (nat, own) };
        let key = Key { src: src.addr, dst, src_port: src.port, dst_port: head.dst_port, protocol: head.protocol };
        (key, client)
    }

    /// Appends its bytes.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.src.write(out);
        self.dst.write(out);
        out.extend(self.src_port.to_le_bytes());
        out.extend(self.dst_port.to_le_bytes());
        out.push(self.protocol);
    }

    /// Takes what [`write`](Self::write) appended from the front.
    #[inline]
    pub(super) fn read(from: &mut &[u8]) -> Key<A> {
        let (src, dst) = (A::read(from), A::read(from));
        let [src_port, dst_port] = [take(from), take(from)].map(u16::from_le_bytes);
        let [protocol] = take(from);
        Key { src, dst, src_port, dst_port, protocol }
    }
}

/// The first bytes; zeroes where there are none.
#[inline]
fn take<const N: usize>(from: &mut &[u8]) -> [u8; N] {
    let Some((first, rest)) = from.split_first_chunk() else { return [0; N] };
    *from = rest;
    *first
}

impl<A: Addr> Client<A> {
    /// Nothing was translated, as far as is known.
    pub(super) const NONE: Client<A> = Client { addr: A::NONE, port: 0 };

    /// Whether there is one.
    pub(super) fn is_known(&self) -> bool {
        self.addr != A::NONE
    }
}

impl<A: Addr> Hash for Key<A> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        A::hash_pair(self.src, self.dst, state);
        state.write_u64(u64::from(self.src_port) << 32 | u64::from(self.dst_port) << 16 | u64::from(self.protocol));
    }
}
