//! Stream sockets with a chosen local address and protocol. SCTP's one-to-one sockets read, write and shut down as
//! TCP's do, so both are used as std's streams.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use lab::topology::{Family, Protocol};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with};

/// Every connect, read and write ends after this, so that no program of the lab outlives its test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A connection from `from` (port 0: the kernel chooses) to `to`, given up after `patience`.
pub(crate) fn connect_from(
    protocol: Protocol,
    from: SocketAddr,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    let socket = stream(protocol, Family::of(from.ip()))?;
    bind(&socket, &from)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends the first SYN of a TCP connection from `from` to `to` and nothing else.
pub(crate) fn begin_from(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let socket = stream(Protocol::Tcp, Family::of(from.ip()))?;
    bind(&socket, &from)?;
    ioctl_fionbio(&socket, true)?;
    match connect(&socket, &to) {
        Err(Errno::INPROGRESS) => Ok(()),
        result => Ok(result?),
    }
}

/// A listener on all addresses of both families.
pub(crate) fn listen_on(protocol: Protocol, port: u16) -> io::Result<TcpListener> {
    let socket = stream(protocol, Family::V6)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    listen(&socket, 1024)?;
    Ok(TcpListener::from(socket))
}

fn stream(protocol: Protocol, family: Family) -> io::Result<OwnedFd> {
    let number = if protocol == Protocol::Sctp { ipproto::SCTP } else { ipproto::TCP };
    let domain = if family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(socket_with(domain, SocketType::STREAM, SocketFlags::CLOEXEC, Some(number))?)
}
