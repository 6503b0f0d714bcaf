//! The kernel's connection tracking. Over netlink: a dump of its table, its events as they happen, one connection by its
//! tuple. And its events as programs in the kernel tell them: [`Hooks`].
//!
//! Takes nothing but the network namespace that it is opened in; gives [`Entry`]s as plain values. Joins them with
//! nothing, keeps none, and never blocks for an event. What the kernel could not queue is counted and has to be
//! answered by a new dump.

use std::io;
use std::net::IpAddr;

use flow_common::abi::Count;
use flow_common::time::Timestamp;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

mod attribute;
pub mod decode;
mod hooks;
pub mod message;
mod recent;
mod request;
mod siphash;
pub mod switches;
#[cfg(test)]
mod tests;
mod zones;

pub use hooks::{HookStatistics, Hooks};
pub use request::Scope;
pub use zones::Zones;

use message::{Message, Messages};

/// Room for what the kernel puts into one datagram of a dump, and for a burst of events.
const BUFFER: usize = 1 << 18;

/// What the kernel may queue for us before it drops events: a collection of garbage ends tens of thousands at once.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Requests that are sent at once; the answers of as many fit the receive buffer that every socket has.
const READ_TOGETHER: usize = 64;

/// How long a read of connections waits for the answers to what it has sent.
const ANSWER_WITHIN_SECONDS: u64 = 2;

/// The ends of one direction as connection tracking has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// Port of the sender; of ICMP the identifier.
    pub src_port: u16,
    /// Port of the receiver; of ICMP type * 256 + code.
    pub dst_port: u16,
    /// Number of the IP protocol.
    pub protocol: u8,
}

/// One tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From the originator, before any translation.
    pub original: Tuple,
    /// From the responder, after translation.
    pub reply: Tuple,
    /// Zone, 0 where none is set.
    pub zone: u16,
    /// The kernel's number for it; not unique over time.
    pub id: u32,
    /// Bits of [`status`].
    pub status: u32,
    /// The connection's mark.
    pub mark: u32,
    /// Seconds after which the kernel forgets it; of an ended one those that were left, where any were.
    pub timeout: Option<u32>,
    /// State of TCP as the kernel numbers it, see [`tcp`].
    pub tcp_state: Option<u8>,
    /// Packets and layer-3 bytes of the originator and of the responder, where the kernel counts them.
    pub counters: Option<[Count; 2]>,
    /// Its 128 labels, where any is set; netlink leaves them out at the end.
    pub labels: Option<[u64; 2]>,
    /// When it began, where the kernel notes that and the message says so (that of a new connection does not).
    pub start: Option<Timestamp>,
    /// When it ended: at its expiry, which may be long before the message.
    pub stop: Option<Timestamp>,
}

/// Bits of [`Entry::status`].
pub mod status {
    /// A packet of the responder was seen.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// The originator's address or port is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// The responder's address or port is translated.
    pub const DST_NAT: u32 = 1 << 5;
    /// Its packets pass by a flow table, past connection tracking.
    pub const OFFLOAD: u32 = 1 << 14;
    /// Its packets pass in hardware.
    pub const HW_OFFLOAD: u32 = 1 << 15;
}

/// Numbers of [`Entry::tcp_state`].
pub mod tcp {
    /// The SYN was seen.
    pub const SYN_SENT: u8 = 1;
    /// Its answer was.
    pub const SYN_RECV: u8 = 2;
    /// Both ends talk.
    pub const ESTABLISHED: u8 = 3;
    /// One end is done.
    pub const FIN_WAIT: u8 = 4;
    /// The other end knows.
    pub const CLOSE_WAIT: u8 = 5;
    /// Both ends are done, and the last acknowledgement is missing.
    pub const LAST_ACK: u8 = 6;
    /// Both ends are done; the kernel waits for strays.
    pub const TIME_WAIT: u8 = 7;
    /// Reset.
    pub const CLOSE: u8 = 8;
    /// Both ends sent a SYN.
    pub const SYN_SENT2: u8 = 9;

    /// Where a number stands in [`flow_common::abi::Flow::state`] of a value that connection tracking tells: above what the kernel
    /// programs set.
    pub const SHIFT: u32 = 8;
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    New,
    /// Something about it changed.
    Update,
    /// The kernel has forgotten it; its counters are final.
    Destroy,
}

/// A message of the event groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// To which connection.
    pub entry: Entry,
}

/// Which events to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// New connections.
    pub new: bool,
    /// Changes of connections that go on; a busy Node has several a connection.
    pub update: bool,
    /// Connections that the kernel forgets.
    pub end: bool,
}

impl Groups {
    /// All that begins and ends.
    pub const NEW_AND_END: Self = Self { new: true, update: false, end: true };

    /// A bit a group: NFNLGRP_CONNTRACK_NEW and its neighbours.
    fn bits(self) -> u32 {
        u32::from(self.new) | u32::from(self.update) << 1 | u32::from(self.end) << 2
    }
}

/// Why connection tracking cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket was refused.
    #[error("cannot open a netlink socket for connection tracking: {0}")]
    Open(#[source] io::Error),
    /// No right to listen.
    #[error("listening to connection tracking is refused: the agent needs CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel has no such module.
    #[error("this kernel does not answer for connection tracking: load the module nf_conntrack_netlink")]
    NotThere,
    /// A request failed.
    #[error("{request} of connection tracking: {source}")]
    Request {
        /// What was asked.
        request: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What was read and lost since the opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Events read.
    pub events: u64,
    /// How often the kernel had no room for further events.
    pub overruns: u64,
    /// Messages that could not be understood.
    pub malformed: u64,
}

/// Connection tracking of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    /// Of the event groups; never written to.
    events: OwnedFd,
    /// For requests, so that their answers do not stand behind events.
    requests: OwnedFd,
    sequence: u32,
    request: Vec<u8>,
    buffer: Vec<u8>,
    statistics: Statistics,
}

impl Conntrack {
    /// Opens it and listens: what happens from here on comes with [`Self::poll`].
    pub fn open(groups: Groups) -> Result<Self, Error> {
        let events = socket(SocketFlags::NONBLOCK, groups.bits())?;
        // Without the right to do so it has what the system's limit allows, and overruns earlier.
        if sockopt::set_socket_recv_buffer_size_force(&events, RECEIVE_BUFFER).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&events, RECEIVE_BUFFER);
        }
        let requests = socket(SocketFlags::empty(), 0)?;
        let wait = std::time::Duration::from_secs(ANSWER_WITHIN_SECONDS);
        sockopt::set_socket_timeout(&requests, sockopt::Timeout::Recv, Some(wait))
            .map_err(|error| Error::Open(error.into()))?;
        Ok(Self {
            events,
            requests,
            sequence: 0,
            request: Vec::new(),
            buffer: vec![0; BUFFER],
            statistics: Statistics::default(),
        })
    }

    /// Every connection of these zones and of both address families, as it is now, one after the other: a table of hundreds of
    /// thousands never is in memory twice.
    pub fn dump(&mut self, zones: &Zones, mut each: impl FnMut(&Entry)) -> Result<(), Error> {
        for zone in zones.asked() {
            let mut chooses = true;
            self.dump_zone(zone, |entry| {
                chooses &= zone.is_none_or(|zone| zone == entry.zone);
                if zones.has(entry.zone) {
                    each(entry);
                }
            })?;
            if !chooses {
                // Kernels below 6.8 take no notice of the zone: that was everything.
                break;
            }
        }
        Ok(())
    }

    fn dump_zone(&mut self, zone: Option<u16>, mut each: impl FnMut(&Entry)) -> Result<(), Error> {
        let request = "a dump";
        let sequence = self.next_sequence();
        self.request.clear();
        request::dump(zone, sequence, &mut self.request);
        self.send().map_err(|error| refused(request, error))?;
        loop {
            let length = self.receive().map_err(|error| refused(request, error))?;
            for (of, message) in Messages(self.buffer.get(..length).unwrap_or(&self.buffer)) {
                match message {
                    Message::Malformed => self.statistics.malformed += 1,
                    _ if of != sequence => {}
                    Message::Connection(event) => each(&event.entry),
                    Message::Done => return Ok(()),
                    Message::Error(code) => refusal(code).map_err(|error| refused(request, error))?,
                }
            }
        }
    }

    /// Appends the events that have come. True if the kernel had to drop some: only a new dump tells what they said.
    pub fn poll(&mut self, events: &mut Vec<Event>) -> Result<bool, Error> {
        let mut overrun = false;
        loop {
            let length = match net::recv(&self.events, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, length)) => length,
                Err(Errno::AGAIN) => return Ok(overrun),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    self.statistics.overruns += 1;
                    overrun = true;
                    continue;
                }
                Err(error) => return Err(Error::Request { request: "reading events", source: error.into() }),
            };
            for (_, message) in Messages(self.buffer.get(..length).unwrap_or(&self.buffer)) {
                match message {
                    Message::Connection(event) => {
                        self.statistics.events += 1;
                        events.push(event);
                    }
                    Message::Done | Message::Error(_) => {}
                    Message::Malformed => self.statistics.malformed += 1,
                }
            }
        }
    }

    /// Reads connections by their tuples, as they are now: as many answers as questions, absent where there is no such
    /// connection.
    pub fn read(&mut self, scopes: &[Scope], entries: &mut Vec<Option<Entry>>) -> Result<(), Error> {
        entries.clear();
        entries.resize(scopes.len(), None);
        for (scopes, entries) in scopes.chunks(READ_TOGETHER).zip(entries.chunks_mut(READ_TOGETHER)) {
            self.read_together(scopes, entries).map_err(|error| refused("reading a connection", error))?;
        }
        Ok(())
    }

    /// What was read and lost since the opening.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The kernel answers each request with one message: the connection, or an error.
    fn read_together(&mut self, scopes: &[Scope], entries: &mut [Option<Entry>]) -> Result<(), Errno> {
        self.request.clear();
        let first = self.sequence.wrapping_add(1);
        for scope in scopes {
            let sequence = self.next_sequence();
            request::get(scope, sequence, &mut self.request);
        }
        self.send()?;
        let mut waiting = scopes.len();
        while waiting > 0 {
            let length = self.receive()?;
            for (of, message) in Messages(self.buffer.get(..length).unwrap_or(&self.buffer)) {
                let Some(entry) = entries.get_mut(of.wrapping_sub(first) as usize) else {
                    continue;
                };
                waiting = waiting.saturating_sub(1);
                match message {
                    Message::Connection(event) => *entry = Some(event.entry),
                    Message::Malformed => self.statistics.malformed += 1,
                    Message::Done | Message::Error(_) => {}
                }
            }
        }
        Ok(())
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self) -> Result<(), Errno> {
        net::send(&self.requests, &self.request, SendFlags::empty()).map(|_| ())
    }

    /// One datagram of answers. What is longer than the buffer is cut, which the last message in it shows.
    fn receive(&mut self) -> Result<usize, Errno> {
        loop {
            match net::recv(&self.requests, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => return received.map(|(_, length)| length),
            }
        }
    }
}

fn socket(flags: SocketFlags, groups: u32) -> Result<OwnedFd, Error> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))
        .map_err(|error| if error == Errno::PROTONOSUPPORT { Error::NotThere } else { Error::Open(error.into()) })?;
    net::bind(&socket, &netlink::SocketAddrNetlink::new(0, groups)).map_err(|error| match error {
        Errno::PERM | Errno::ACCESS => Error::NotPermitted,
        error => Error::Open(error.into()),
    })?;
    Ok(socket)
}

/// An error number that came as an answer; 0 is none.
fn refusal(code: i32) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}

/// Netfilter's answer where the part for connection tracking is missing is "invalid".
fn refused(request: &'static str, error: Errno) -> Error {
    match error {
        Errno::PERM | Errno::ACCESS => Error::NotPermitted,
        Errno::INVAL | Errno::OPNOTSUPP => Error::NotThere,
        _ => Error::Request { request, source: error.into() },
    }
}
