//! Outgoing connections: one message at a time, whole.
//!
//! Takes an address and, for TLS, the certificates; gives a [`Connection`] that sends messages and tells when the other
//! end is gone. A name is resolved anew at every connect and each of its addresses is tried.

use super::{Address, ByteStream, Protocol, STREAM_MESSAGE_LIMIT, TlsClient};
use rustls::pki_types::ServerName;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// One attempt: resolving, connecting and the TLS handshake each take no longer.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Data that the other end did not acknowledge for so long means that the connection is lost.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// RFC 7011, 10.3.3: without a known path MTU a message is no longer than this.
const DATAGRAM_MESSAGE_LIMIT_UNKNOWN: usize = 512;
const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// DNS does not know the name.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name asked for.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The host does not answer or refuses.
    #[error("cannot connect to {peer} ({protocol}): {source}")]
    Connect {
        /// Who was asked.
        peer: SocketAddr,
        /// Over what.
        protocol: Protocol,
        /// What the system said.
        source: io::Error,
    },
    /// TLS refused one of the ends.
    #[error("TLS with {name} at {peer} failed: {source}{}", remedy(source))]
    Handshake {
        /// The name that the certificate must be for.
        name: String,
        /// Who was asked.
        peer: SocketAddr,
        /// What TLS said.
        source: io::Error,
    },
    /// The address wants TLS and no certificates were given.
    #[error("{name} is to be reached by tls, but no certificates are configured: set tls.ca, tls.cert and tls.key")]
    NoCertificates {
        /// The name that the certificate must be for.
        name: String,
    },
}

/// A connection to a collector.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
    local: SocketAddr,
}

#[derive(Debug)]
enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// Connects to the address; of several addresses of a name the first that answers. `tls` is needed where the
/// address's protocol is tls.
pub async fn connect(address: &Address, tls: Option<&TlsClient>) -> Result<Connection, ConnectError> {
    connect_as(address, &address.server_name(), tls).await
}

/// Connects to the address; the TLS certificate must be for `name`, whatever the address is.
pub async fn connect_as(address: &Address, name: &str, tls: Option<&TlsClient>) -> Result<Connection, ConnectError> {
    let host = address.server_name();
    let unresolved = |source| ConnectError::Resolve { host: host.clone(), source };
    let peers = match timeout(ATTEMPT, lookup_host((host.as_str(), address.port))).await {
        Ok(found) => found.map_err(unresolved)?,
        Err(late) => return Err(unresolved(late.into())),
    };
    let mut failure = unresolved(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for peer in peers {
        match connect_to(peer, address.protocol, name, tls).await {
            Ok(connection) => return Ok(connection),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Connects to a known address; the TLS certificate must be for `name`.
pub async fn connect_to(
    peer: SocketAddr,
    protocol: Protocol,
    name: &str,
    tls: Option<&TlsClient>,
) -> Result<Connection, ConnectError> {
    let refused = |source| ConnectError::Connect { peer, protocol, source };
    let (stream, local) = match protocol {
        Protocol::Udp => {
            let socket = datagram_socket(peer).await.map_err(refused)?;
            let local = socket.local_addr().map_err(refused)?;
            (Stream::Udp(socket), local)
        }
        Protocol::Tcp => {
            let stream = stream_socket(peer).await.map_err(refused)?;
            let local = stream.local_addr().map_err(refused)?;
            (Stream::Tcp(stream), local)
        }
        Protocol::Tls => {
            let tls = tls.ok_or_else(|| ConnectError::NoCertificates { name: name.to_owned() })?;
            let stream = stream_socket(peer).await.map_err(refused)?;
            let local = stream.local_addr().map_err(refused)?;
            let secured = handshake(stream, name, tls).await;
            let secured = secured.map_err(|source| ConnectError::Handshake { name: name.to_owned(), peer, source })?;
            (Stream::Tls(Box::new(secured)), local)
        }
    };
    Ok(Connection { stream, peer, local })
}

impl Connection {
    /// The longest message that [`send`](Self::send) takes now. Over UDP it is the path MTU that the kernel knows,
    /// less the headers, and may change with the path.
    pub fn message_limit(&self) -> usize {
        match &self.stream {
            Stream::Tls(_) | Stream::Tcp(_) => STREAM_MESSAGE_LIMIT,
            Stream::Udp(socket) => datagram_limit(socket, self.peer),
        }
    }

    /// What carries the messages.
    pub fn protocol(&self) -> Protocol {
        match &self.stream {
            Stream::Tls(_) => Protocol::Tls,
            Stream::Tcp(_) => Protocol::Tcp,
            Stream::Udp(_) => Protocol::Udp,
        }
    }

    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// This end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends one message: one datagram, or all its bytes into the stream. Not cancel-safe on streams: after a
    /// cancelled call the connection is of no more use. A UDP peer's refusal (nobody listens there) is an error of
    /// the next call.
    pub async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.write_all(message).await,
            Stream::Tcp(stream) => stream.write_all(message).await,
            Stream::Udp(socket) => socket.send(message).await.map(|_| ()),
        }
    }

    /// Hands everything sent so far to the kernel.
    pub async fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.flush().await,
            Stream::Tcp(_) | Stream::Udp(_) => Ok(()),
        }
    }

    /// Ends the stream in order: what was sent is delivered, and the other end sees the end.
    pub async fn close(mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.shutdown().await,
            Stream::Tcp(stream) => stream.shutdown().await,
            Stream::Udp(_) => Ok(()),
        }
    }

    /// The stream itself, for protocols that are no one-way street; `None` of datagrams.
    pub fn into_stream(self) -> Option<ByteStream> {
        match self.stream {
            Stream::Tls(stream) => Some(stream),
            Stream::Tcp(stream) => Some(Box::new(stream)),
            Stream::Udp(_) => None,
        }
    }

    /// Waits until the other end closes or refuses, and says how. Collectors do not answer, so whatever arrives is
    /// thrown away. Cancel-safe; with TLS 1.3 this is where a refused client certificate shows.
    pub async fn closed(&mut self) -> io::Error {
        let mut answer = [0; 512];
        loop {
            let read = match &mut self.stream {
                Stream::Tls(stream) => stream.read(&mut answer).await,
                Stream::Tcp(stream) => stream.read(&mut answer).await,
                Stream::Udp(socket) => socket.recv(&mut answer).await.map(|length| length.max(1)),
            };
            match read {
                Ok(0) => {
                    return io::Error::new(io::ErrorKind::ConnectionAborted, "the collector closed the connection");
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }
}

async fn stream_socket(peer: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(ATTEMPT, TcpStream::connect(peer)).await??;
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED.as_millis().try_into().unwrap_or(u32::MAX))?;
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, UNACKNOWLEDGED)?;
    Ok(stream)
}

async fn datagram_socket(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(peer).await?;
    Ok(socket)
}

async fn handshake(stream: TcpStream, name: &str, tls: &TlsClient) -> io::Result<TlsStream<TcpStream>> {
    let name =
        ServerName::try_from(name.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    timeout(ATTEMPT, TlsConnector::from(tls.0.clone()).connect(name, stream)).await?
}

/// A datagram may be no longer than 65,535 bytes with its headers, whatever the interface allows.
fn datagram_limit(socket: &UdpSocket, peer: SocketAddr) -> usize {
    let (mtu, headers, longest) = if peer.is_ipv4() {
        (
            rustix::net::sockopt::ip_mtu(socket),
            IPV4_HEADER + UDP_HEADER,
            STREAM_MESSAGE_LIMIT - IPV4_HEADER - UDP_HEADER,
        )
    } else {
        (rustix::net::sockopt::ipv6_mtu(socket), IPV6_HEADER + UDP_HEADER, STREAM_MESSAGE_LIMIT - UDP_HEADER)
    };
    match mtu.ok().and_then(|mtu| usize::try_from(mtu).ok()) {
        Some(mtu) if mtu > DATAGRAM_MESSAGE_LIMIT_UNKNOWN => (mtu - headers).min(longest),
        _ => DATAGRAM_MESSAGE_LIMIT_UNKNOWN,
    }
}

/// What to do about the commonest refusals of TLS.
fn remedy(error: &io::Error) -> &'static str {
    use rustls::{CertificateError, Error};
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else { return "" };
    match error {
        // Two CAs of one name, as `certs init --force` makes them, differ in their signatures.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            ". Its certificate is of another CA: use the ca.crt that signed it"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            ". Its certificate is for other names: have it made for this one (ours: `flow-aggregator certs init --san`)"
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            ". Its certificate has expired: renew it"
        }
        _ => "",
    }
}
