//! The network interfaces of this namespace: a dump and events over a netlink socket.
//!
//! Takes bytes of NETLINK_ROUTE, gives [`Link`]s. Reads only what the attaching depends on; decides nothing.

use super::LinkCounters;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use std::io;

/// An interface as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// ARPHRD number: what stands before the IP header.
    pub(super) layer: u16,
    /// `veth`, `bond`, `vlan`, ... ; empty for physical ones.
    pub(super) kind: String,
    /// Whether it is one of a pair whose other end is in another namespace.
    pub(super) peer_elsewhere: bool,
    pub(super) counters: LinkCounters,
}

/// A change of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is there, new or changed.
    Present(Link),
    /// It went.
    Gone(u32),
}

/// An open socket that is told of changes.
pub(super) struct Links {
    events: Socket,
    buffer: Vec<u8>,
}

/// What the events socket had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Events {
    /// These changes, in order.
    Changes(Vec<Change>),
    /// Some were lost: only a dump knows how things stand.
    Lost,
}

const RTMGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
/// No message of a dump is longer: the kernel sizes them by the reader's buffer, at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Dumps in a row, if interfaces come and go all the time.
const DUMPS: usize = 8;

impl Links {
    /// Subscribes to changes. A dump afterwards misses nothing.
    pub(super) fn open() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, RTMGRP_LINK))?;
        events.set_non_blocking(true)?;
        Ok(Self { events, buffer: vec![0; BUFFER] })
    }

    /// What changed since the last call. Never blocks.
    pub(super) fn changes(&mut self) -> io::Result<Events> {
        let mut changes = Vec::new();
        loop {
            match self.events.recv(&mut self.buffer.as_mut_slice(), 0) {
                Ok(size) => {
                    messages(self.buffer.get(..size).unwrap_or_default(), &mut changes)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Events::Changes(changes)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Events::Lost);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Every interface as it is now, its counters included.
    pub(super) fn dump(&mut self) -> io::Result<Vec<Link>> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        let mut changes = Vec::new();
        for _ in 0..DUMPS {
            changes.clear();
            if self.dump_once(&mut socket, &mut changes)? {
                break;
            }
        }
        Ok(present(changes).collect())
    }

    /// One interface as it is now.
    pub(super) fn one(&mut self, index: u32) -> io::Result<Option<Link>> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.send_to(&of_link(0, index), &SocketAddr::new(0, 0), 0)?;
        let size = socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
        let mut changes = Vec::new();
        messages(self.buffer.get(..size).unwrap_or_default(), &mut changes)?;
        Ok(present(changes).next())
    }

    /// False if interfaces came or went meanwhile: some that are there may be missing then.
    fn dump_once(&mut self, socket: &mut Socket, changes: &mut Vec<Change>) -> io::Result<bool> {
        socket.send_to(&of_link(NLM_F_DUMP, 0), &SocketAddr::new(0, 0), 0)?;
        let mut is_whole = true;
        loop {
            let size = socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            let read = messages(self.buffer.get(..size).unwrap_or_default(), changes)?;
            is_whole &= !read.is_interrupted;
            if read.is_last {
                return Ok(is_whole);
            }
        }
    }
}

fn present(changes: Vec<Change>) -> impl Iterator<Item = Link> {
    changes.into_iter().filter_map(|change| match change {
        Change::Present(link) => Some(link),
        Change::Gone(_) => None,
    })
}

/// What a datagram was.
#[derive(Debug, Default, PartialEq, Eq)]
struct Datagram {
    /// It ends a dump.
    is_last: bool,
    /// The list has changed since the dump began.
    is_interrupted: bool,
}

/// The present name of an interface.
pub(super) fn name(index: u32) -> Option<String> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, index).ok()
}

/// The `struct ifinfomsg` of an interface, or of all: family and layer, index, flags, what changes of them.
fn of_link(flags: u16, index: u32) -> Vec<u8> {
    request(RTM_GETLINK, flags, &[0, index, 0, 0])
}

/// A request: `struct nlmsghdr`, and the words of its message.
pub(super) fn request(kind: u16, flags: u16, message: &[u32]) -> Vec<u8> {
    const HEADER: u32 = 16;
    let length = HEADER + size_of_val(message) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and sender: no answer is told from another by them.
    bytes.extend([0; 8]);
    message.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes
}

/// Reads the messages of one datagram.
fn messages(mut bytes: &[u8], changes: &mut Vec<Change>) -> io::Result<Datagram> {
    let mut datagram = Datagram::default();
    while let Some((length, body)) = bytes.get(..4).and_then(word).zip(bytes.get(16..)) {
        let length = length as usize;
        let kind = bytes.get(4..6).and_then(half).unwrap_or_default();
        let body = body.get(..length.saturating_sub(16)).unwrap_or(body);
        let flags = bytes.get(6..8).and_then(half).unwrap_or_default();
        datagram.is_interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match kind {
            NLMSG_DONE => return Ok(Datagram { is_last: true, ..datagram }),
            NLMSG_ERROR => {
                let code = body.get(..4).and_then(word).unwrap_or_default().cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            RTM_NEWLINK => changes.extend(link(body).map(Change::Present)),
            RTM_DELLINK => changes.extend(link(body).map(|link| Change::Gone(link.index))),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    Ok(datagram)
}

/// `struct ifinfomsg` and its attributes; none for messages of a bridge's ports, which have the same type.
fn link(body: &[u8]) -> Option<Link> {
    if body.first().copied()? != 0 {
        return None;
    }
    let mut link = Link { layer: half(body.get(2..4)?)?, index: word(body.get(4..8)?)?, ..Link::default() };
    for (kind, value) in Attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK_NETNSID => link.peer_elsewhere = true,
            IFLA_STATS64 => link.counters = counters(value),
            IFLA_LINKINFO => {
                let info = Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = info.map(|(_, name)| text(name)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

/// The first four fields of `struct rtnl_link_stats64`.
fn counters(value: &[u8]) -> LinkCounters {
    let at = |offset: usize| {
        let bytes = value.get(offset..).and_then(|rest| rest.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    LinkCounters { rx_packets: at(0), tx_packets: at(8), rx_bytes: at(16), tx_bytes: at(24) }
}

/// Attributes: length, type, value, padding to four bytes.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(half(self.0.get(..2)?)?);
        let kind = half(self.0.get(2..4)?)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

fn half(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 16).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn veth(netns: bool) -> Vec<u8> {
        let mut body = vec![0, 0, 1, 0, 7, 0, 0, 0];
        body.extend([0; 8]);
        body.extend(attribute(IFLA_IFNAME, b"veth1\0"));
        let stats: Vec<u8> = [3_u64, 5, 300, 500, 1].iter().flat_map(|field| field.to_ne_bytes()).collect();
        body.extend(attribute(IFLA_STATS64, &stats));
        body.extend(attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0")));
        if netns {
            body.extend(attribute(IFLA_LINK_NETNSID, &[0; 4]));
        }
        body
    }

    #[test]
    fn a_datagram_gives_its_links_in_order() {
        let mut datagram = message(RTM_NEWLINK, &veth(true));
        datagram.extend(message(RTM_DELLINK, &veth(false)));
        datagram.extend(message(NLMSG_DONE, &[0; 4]));
        let mut changes = Vec::new();
        let read = messages(&datagram, &mut changes).expect("no error in it");
        assert_eq!(read, Datagram { is_last: true, is_interrupted: false });
        let counters = LinkCounters { rx_packets: 3, tx_packets: 5, rx_bytes: 300, tx_bytes: 500 };
        let link =
            Link { index: 7, name: "veth1".into(), layer: 1, kind: "veth".into(), peer_elsewhere: true, counters };
        assert_eq!(changes, [Change::Present(link), Change::Gone(7)]);
    }

    #[test]
    fn a_dump_during_which_the_list_changed_says_so() {
        let mut datagram = message(RTM_NEWLINK, &veth(true));
        datagram[6..8].copy_from_slice(&(0x2 | NLM_F_DUMP_INTR).to_ne_bytes());
        datagram.extend(message(NLMSG_DONE, &[0; 4]));
        let mut changes = Vec::new();
        let read = messages(&datagram, &mut changes).expect("no error in it");
        assert_eq!((read, changes.len()), (Datagram { is_last: true, is_interrupted: true }, 1));
    }

    #[test]
    fn a_kernel_error_is_one() {
        let datagram = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        let error = messages(&datagram, &mut Vec::new()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn no_bytes_fail(bytes: Vec<u8>) {
            let _ = messages(&bytes, &mut Vec::new());
        }

        #[test]
        fn no_cut_fails(cut in 0_usize..200) {
            let datagram = message(RTM_NEWLINK, &veth(true));
            let _ = messages(&datagram[..cut.min(datagram.len())], &mut Vec::new());
        }
    }
}
