//! Incoming sessions: streams that are accepted, and datagrams.
//!
//! Takes a socket address, a protocol and, for TLS, the certificates; gives connected peers and their bytes. It cuts
//! nothing into messages and keeps no list of sessions.

use super::{ByteStream, Protocol, TlsServer};
use bytes::BytesMut;
use std::{fmt, future::poll_fn, io, net::SocketAddr, pin::pin, task::Poll, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// A client that does not finish its handshake by then is sent away.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A peer that vanished without a word is noticed after this and the kernel's probes.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// What is sent to a peer and not taken for so long ends the connection.
const UNTAKEN: Duration = Duration::from_secs(30);
/// Asked of the kernel for datagrams, so that a burst outlives a busy moment.
const RECEIVE_BUFFER: usize = 8 << 20;
const DATAGRAM: usize = 65_535;

/// Why nothing can be received.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not this machine's, or not permitted.
    #[error("cannot listen on {addr} ({protocol}): {source}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The protocol.
        protocol: Protocol,
        /// What the system said.
        source: io::Error,
    },
    /// TLS was asked for without certificates.
    #[error("tls needs certificates: set tls.ca, tls.cert and tls.key, or listen by tcp")]
    NoCertificates,
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP, with or without TLS.
    Stream(StreamListener),
    /// UDP.
    Datagram(DatagramListener),
}

/// Accepts TCP connections.
pub struct StreamListener {
    socket: TcpListener,
    tls: Option<TlsServer>,
}

/// Receives datagrams.
#[derive(Debug)]
pub struct DatagramListener {
    socket: UdpSocket,
}

/// A connection that is accepted; TLS has yet to begin.
pub struct Handshake {
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: SocketAddr,
}

/// A connected peer.
pub struct Incoming {
    stream: Stream,
    peer: SocketAddr,
}

enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Tcp(TcpStream),
}

impl fmt::Debug for StreamListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamListener").field("socket", &self.socket).field("tls", &self.tls.is_some()).finish()
    }
}

impl Listener {
    /// Binds. `[::]` takes IPv4 as well, and is replaced by `0.0.0.0` on a host without IPv6.
    pub async fn bind(addr: SocketAddr, protocol: Protocol, tls: Option<&TlsServer>) -> Result<Listener, ListenError> {
        let tls = match (protocol, tls) {
            (Protocol::Tls, None) => return Err(ListenError::NoCertificates),
            (Protocol::Tls, Some(tls)) => Some(tls),
            (Protocol::Tcp | Protocol::Udp, _) => None,
        };
        let refused = |source| ListenError::Bind { addr, protocol, source };
        Ok(match protocol {
            Protocol::Udp => {
                let socket = match UdpSocket::bind(addr).await {
                    Err(_) if without_ipv6(addr) => UdpSocket::bind(("0.0.0.0", addr.port())).await,
                    bound => bound,
                };
                let socket = socket.map_err(refused)?;
                enlarge(&socket);
                Listener::Datagram(DatagramListener { socket })
            }
            Protocol::Tls | Protocol::Tcp => Listener::Stream(StreamListener::bind(addr, tls).await.map_err(refused)?),
        })
    }

    /// Where it listens: the port that was chosen if 0 was asked for.
    pub fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Stream(listener) => listener.local(),
            Listener::Datagram(listener) => listener.socket.local_addr(),
        }
    }
}

impl StreamListener {
    /// Binds, as [`Listener::bind`] does; in the clear without certificates.
    pub async fn bind(addr: SocketAddr, tls: Option<&TlsServer>) -> io::Result<StreamListener> {
        let socket = match TcpListener::bind(addr).await {
            Err(_) if without_ipv6(addr) => TcpListener::bind(("0.0.0.0", addr.port())).await?,
            bound => bound?,
        };
        Ok(StreamListener { socket, tls: tls.cloned() })
    }

    /// Where it listens: the port that was chosen if 0 was asked for.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection. Cancel-safe. TLS is left to [`Handshake::complete`], so that a slow client holds up
    /// nobody.
    pub async fn accept(&self) -> io::Result<Handshake> {
        let (stream, peer) = self.socket.accept().await?;
        let tls = self.tls.as_ref().map(|tls| TlsAcceptor::from(tls.current()));
        Ok(Handshake { stream, tls, peer: canonical(peer) })
    }
}

impl Handshake {
    /// Who connected.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Finishes TLS where there is any. The error says what was wrong with the client.
    pub async fn complete(self) -> io::Result<Incoming> {
        rustix::net::sockopt::set_socket_keepalive(&self.stream, true)?;
        rustix::net::sockopt::set_tcp_keepidle(&self.stream, KEEPALIVE)?;
        // A peer that takes no answers cannot keep them, and its place, for ever.
        rustix::net::sockopt::set_tcp_user_timeout(&self.stream, UNTAKEN.as_millis().try_into().unwrap_or(u32::MAX))?;
        let stream = match self.tls {
            None => Stream::Tcp(self.stream),
            Some(tls) => Stream::Tls(Box::new(timeout(HANDSHAKE, tls.accept(self.stream)).await??)),
        };
        Ok(Incoming { stream, peer: self.peer })
    }
}

impl Incoming {
    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The stream itself, for a protocol that talks both ways.
    pub fn into_stream(self) -> ByteStream {
        match self.stream {
            Stream::Tls(stream) => stream,
            Stream::Tcp(stream) => Box::new(stream),
        }
    }

    /// Appends to `buffer` what is there, at least one byte and as much as its spare room holds; 0 at the end of the
    /// stream. Cancel-safe.
    pub async fn fill(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tls(stream) => fill(stream.as_mut(), buffer).await,
            Stream::Tcp(stream) => fill(stream, buffer).await,
        }
    }
}

impl DatagramListener {
    /// Appends the next datagram to `buffer`, which must have room for 65,535 bytes. Cancel-safe.
    pub async fn receive(&self, buffer: &mut BytesMut) -> io::Result<(usize, SocketAddr)> {
        buffer.reserve(DATAGRAM);
        let (length, peer) = self.socket.recv_buf_from(buffer).await?;
        Ok((length, canonical(peer)))
    }
}

/// TLS gives at most one of its records (16 KiB) a read; batches want as much as there is.
async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<usize> {
    let mut filled = 0;
    poll_fn(|context| {
        while filled == 0 || buffer.len() < buffer.capacity() {
            match pin!(stream.read_buf(buffer)).poll(context) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(length)) => filled += length,
                Poll::Ready(Err(error)) if filled == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if filled == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(filled))
    })
    .await
}

fn without_ipv6(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// An IPv4 peer of a dual-stack socket under its own address.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Beyond net.core.rmem_max only with CAP_NET_ADMIN; what the kernel gives is good enough otherwise.
fn enlarge(socket: &UdpSocket) {
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_err() {
        let refused = rustix::net::sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER);
        tracing::debug!(?refused, "the receive buffer for datagrams keeps its size");
    }
}
