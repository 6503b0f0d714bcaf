//! Transports of flow messages: UDP, TCP and TLS, outgoing and incoming.
//!
//! Takes addresses and certificate files from the configuration; gives connections that carry whole messages and know
//! how long a message may be. It deliberately knows nothing of IPFIX or JSON, keeps no queue and does not reconnect
//! by itself: [`Backoff`] says when, the caller decides what became of its data. Nothing else imports rustls.

mod address;
mod backoff;
mod connection;
mod listener;
mod places;
#[cfg(test)]
mod tests;
mod tls;

pub use address::{Address, AddressError, Host};
pub use backoff::Backoff;
pub use connection::{ConnectError, Connection, connect, connect_as, connect_to};
pub use listener::{DatagramListener, Handshake, Incoming, ListenError, Listener, StreamListener};
pub use places::{Bounds, Full, Place, Places};
pub use tls::{SuiteError, TlsClient, TlsError, TlsFiles, TlsServer, TlsSuites, TlsTrust, TlsVersion, Trust};

use std::{
    fmt::{self, Debug},
    str::FromStr,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// The port that IANA assigned to IPFIX.
pub const IPFIX_PORT: u16 = 4739;

/// The longest message that the IPFIX header can express, and the limit on streams.
pub const STREAM_MESSAGE_LIMIT: usize = 65_535;

/// A connected stream, in the clear or by TLS, for protocols that talk both ways.
pub type ByteStream = Box<dyn Duplex>;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Debug + Send + Unpin> Duplex for S {}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TLS 1.2 or later over TCP, both ends with a certificate.
    Tls,
    /// Plain TCP.
    Tcp,
    /// One message a datagram.
    Udp,
}

impl Protocol {
    /// As it is written in addresses.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tls => "tls",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A protocol name that is none of tls, tcp and udp.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unsupported protocol \"{0}\": write tls, tcp or udp")]
pub struct UnsupportedProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnsupportedProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Protocol::Tls, Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnsupportedProtocol(text.to_owned()))
    }
}
