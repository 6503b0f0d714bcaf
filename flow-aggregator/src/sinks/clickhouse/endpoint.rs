//! Where a ClickHouse server is reached: `SCHEME://HOST:PORT`.
//!
//! Takes the text of the configuration; gives scheme, host and port, or what is wrong with it. It resolves nothing.

use flow_common::net::{Address, AddressError, Protocol};
use std::fmt;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The native protocol in the clear.
    Tcp,
    /// The native protocol by TLS.
    Tls,
    /// HTTP in the clear.
    Http,
    /// HTTP by TLS.
    Https,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Where it is.
    pub address: Address,
}

/// Why a text is no endpoint. It may hold a password, so none of it is said.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// No `SCHEME://`, or one that we do not speak.
    #[error("unsupported scheme: write tcp://, tls://, http:// or https:// and HOST:PORT")]
    Scheme,
    /// More than host and port.
    #[error(
        "only HOST:PORT may follow the scheme; user and password are taken from CH_USERNAME and CH_PASSWORD, the database from clickHouse.database"
    )]
    More,
    /// Host or port.
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl Scheme {
    const ALL: [Scheme; 4] = [Scheme::Tcp, Scheme::Tls, Scheme::Http, Scheme::Https];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// Whether it is the native protocol.
    pub fn is_native(self) -> bool {
        matches!(self, Scheme::Tcp | Scheme::Tls)
    }

    /// Whether it is by TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Tls | Scheme::Https)
    }

    fn port(self) -> u16 {
        match self {
            Scheme::Tcp => 9000,
            Scheme::Tls => 9440,
            Scheme::Http => 8123,
            Scheme::Https => 8443,
        }
    }
}

impl Endpoint {
    /// Parses `SCHEME://HOST[:PORT][/]`; the port is the scheme's usual one if there is none.
    pub fn parse(text: &str) -> Result<Endpoint, EndpointError> {
        let (scheme, rest) = text.split_once("://").ok_or(EndpointError::Scheme)?;
        let scheme = Scheme::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(scheme));
        let scheme = scheme.ok_or(EndpointError::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '@', '#']) {
            return Err(EndpointError::More);
        }
        let protocol = if scheme.is_secure() { Protocol::Tls } else { Protocol::Tcp };
        let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let full = if has_port { rest.to_owned() } else { format!("{rest}:{}", scheme.port()) };
        Ok(Endpoint { scheme, address: Address::parse(&full, protocol)? })
    }
}

impl Endpoint {
    /// `HOST:PORT`.
    pub fn authority(&self) -> String {
        let host = self.address.server_name();
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        format!("{host}:{}", self.address.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written_back() {
        for (text, shown) in [
            (
                "tcp://clickhouse-clickhouse.flow-visibility.svc:9000",
                "tcp://clickhouse-clickhouse.flow-visibility.svc:9000",
            ),
            ("TLS://db", "tls://db:9440"),
            ("http://[::1]/", "http://[::1]:8123"),
            ("https://192.0.2.7", "https://192.0.2.7:8443"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn faults_say_what_to_write() {
        let said = |text| Endpoint::parse(text).unwrap_err().to_string();
        assert!(said("clickhouse:9000").contains("write tcp://"));
        assert!(said("clickhouse://db:9000").contains("unsupported scheme"));
        assert!(said("tcp://user:pw@db:9000").contains("CH_USERNAME"));
        assert!(["tcp://user:pw@db", "clickhouse://user:pw@db"].iter().all(|text| !said(text).contains("pw")));
        assert!(said("tcp://db:9000?database=flows").contains("clickHouse.database"));
        assert!(said("tcp://db:90000").contains("port out of range"));
    }
}
