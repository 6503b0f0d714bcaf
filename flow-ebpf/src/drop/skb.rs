//! A socket buffer as the kernel keeps it: whose it is, and its headers.
//!
//! Every read is by a helper that refuses addresses which are none, because what a buffer's fields mean depends on who had it last.

use crate::maps::{namespace, offset};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use flow_ebpf::parse::{self, Frame, Header, Load, Packet};

/// `_skb_refdst` has a flag in its lowest bit.
const NOT_COUNTED: u64 = 1;

/// `_nfct` has in its lowest bits how the packet stands to its connection, of which this one is: it begins it.
const STANDING: u64 = 7;
const BEGINS: u64 = 2;

/// Bits of `nf_conn.status`: it is in the table; an end of it is translated.
const CONFIRMED: u64 = 1 << 3;
const TRANSLATED: u64 = 1 << 4 | 1 << 5;

/// Longest packet whose IP length says how long it is.
const LONGEST: u32 = 0xffff;

/// A socket buffer's address.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) u64);

/// Where a packet's headers lie.
#[derive(Clone, Copy)]
pub(crate) struct Headers {
    /// Address of the network header.
    network: u64,
    /// Bytes from there that lie together.
    together: u32,
    /// What the parser is to know; there is no link layer.
    pub(crate) frame: Frame,
}

#[inline(always)]
fn read<T>(structure: u64, offset: usize) -> Option<T> {
    let at = structure.wrapping_add(offset as u64) as *const T;
    // SAFETY: the helper refuses what is no address, and any bytes are a `T`: integers here.
    unsafe { bpf_probe_read_kernel(at).ok() }
}

impl Skb {
    /// Index of its interface, if that is in our namespace. What a host sends has a route before it has an interface.
    #[inline(always)]
    pub(crate) fn interface(self) -> Option<u32> {
        if let Some(dev) = read::<u64>(self.0, offset!(skb_dev))
            && let Some(ifindex) = ours(dev)
        {
            return Some(ifindex);
        }
        let route = read::<u64>(self.0, offset!(skb_dst))? & !NOT_COUNTED;
        if route == 0 {
            return None;
        }
        ours(read(route, offset!(dst_dev))?)
    }

    /// Gives a packet that would have begun a translated connection the key that it came with. It got no further than to be translated: no
    /// tc program saw it as it is now, and connection tracking tells nobody of what it did not keep.
    #[inline(always)]
    pub(crate) fn as_it_came(self, packet: &mut Packet) {
        if offset!(skb_conn) == 0 {
            return;
        }
        let tracked = read::<u64>(self.0, offset!(skb_conn)).unwrap_or_default();
        let conn = tracked & !STANDING;
        if conn == 0 || tracked & STANDING != BEGINS {
            return;
        }
        let status = read::<u64>(conn, offset!(conn_status)).unwrap_or_default();
        if status & TRANSLATED == 0 || status & CONFIRMED != 0 {
            return;
        }
        let ends = (address(conn, offset!(conn_src_addr), packet), address(conn, offset!(conn_dst_addr), packet));
        let ports = (read::<u16>(conn, offset!(conn_src_port)), read::<u16>(conn, offset!(conn_dst_port)));
        if let ((Some(src), Some(dst)), (Some(src_port), Some(dst_port))) = (ends, ports) {
            (packet.datagram.src, packet.datagram.dst) = (src, dst);
            parse::between(packet, src_port as u32 | (dst_port as u32) << 16);
        }
    }

    /// Its headers, if it has any.
    #[inline(always)]
    pub(crate) fn headers(self) -> Option<Headers> {
        let head = read::<u64>(self.0, offset!(skb_head))?;
        let data = read::<u64>(self.0, offset!(skb_data))?;
        let length = read::<u32>(self.0, offset!(skb_len))?;
        let elsewhere = read::<u32>(self.0, offset!(skb_data_len))?;
        let network = read::<u16>(self.0, offset!(skb_network_header))?;
        let protocol = read::<u16>(self.0, offset!(skb_protocol))?;
        // `data` may stand before or behind the network header, by how far up the packet had come.
        let before = (head as u32).wrapping_add(network as u32).wrapping_sub(data as u32);
        let length = length.wrapping_sub(before);
        let frame = Frame { protocol, link: 0, length, gso: length > LONGEST };
        let network = head.wrapping_add(network as u64);
        Some(Headers { network, together: length.wrapping_sub(elsewhere), frame })
    }
}

/// An address of a connection as a packet of the family has it.
#[inline(always)]
fn address(conn: u64, offset: usize, packet: &Packet) -> Option<[u64; 2]> {
    if packet.family == 4 { Some([read::<u32>(conn, offset)? as u64, 0]) } else { read(conn, offset) }
}

/// Index of a device, if it is in our namespace.
#[inline(always)]
fn ours(dev: u64) -> Option<u32> {
    if dev == 0 {
        return None;
    }
    let net = read::<u64>(dev, offset!(dev_net))?;
    if read::<u32>(net, offset!(net_inum))? != namespace() {
        return None;
    }
    read(dev, offset!(dev_ifindex))
}

impl Load for Headers {
    #[inline(always)]
    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let end = offset.wrapping_add(size_of::<T>() as u32);
        if end > self.together {
            return None;
        }
        read(self.network, offset as usize)
    }
}
