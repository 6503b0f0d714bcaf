//! The address of a collector as users write it: `HOST[:PORT][:PROTO]`.
//!
//! Takes the text; gives host, port and protocol, or an error that names what is wrong with which part. It resolves
//! nothing.

use super::{IPFIX_PORT, Protocol, UnsupportedProtocol};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The part before the port.
    pub host: Host,
    /// 1 to 65,535.
    pub port: u16,
    /// What carries the messages.
    pub protocol: Protocol,
}

/// The host of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address of either family.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
    /// A Kubernetes Service, written `namespace/service`.
    Service {
        /// The Service's Namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
}

/// Why a text is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// The text is not of the form `HOST[:PORT][:PROTO]`.
    #[error("invalid format \"{text}\": {reason}; write HOST[:PORT][:PROTO], an IPv6 address in brackets")]
    InvalidFormat {
        /// The whole text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The protocol is none of ours.
    #[error("\"{text}\": {source}")]
    UnsupportedProtocol {
        /// The whole text.
        text: String,
        /// Names the protocol.
        source: UnsupportedProtocol,
    },
    /// The port is a number that no port can have.
    #[error("\"{text}\": port out of range: {port}; ports are 1 to 65535")]
    PortOutOfRange {
        /// The whole text.
        text: String,
        /// The port as written.
        port: String,
    },
}

impl Address {
    /// Parses `HOST[:PORT][:PROTO]`. Without a port it is [`IPFIX_PORT`], without a protocol the given one. HOST is a
    /// DNS name, an IPv4 address, an IPv6 address in brackets, or `namespace/service`.
    pub fn parse(text: &str, protocol: Protocol) -> Result<Address, AddressError> {
        Address::parse_or(text, IPFIX_PORT, protocol)
    }

    /// The same, for what has another port than collectors where none is given.
    pub fn parse_or(text: &str, port_or: u16, protocol: Protocol) -> Result<Address, AddressError> {
        let invalid = |reason| AddressError::InvalidFormat { text: text.to_owned(), reason };
        if text.contains("://") {
            return Err(invalid("this is a URL"));
        }
        let (host, rest) = split_host(text).map_err(invalid)?;
        let mut parts = rest.split(':');
        let (port, transport) = match (parts.next(), parts.next(), parts.next()) {
            (None | Some(""), None, _) => ("", ""),
            (Some(word), None, _) if word.starts_with(|c: char| c.is_ascii_alphabetic()) => ("", word),
            (Some(port), transport, None) => (port, transport.unwrap_or_default()),
            _ => return Err(invalid("too many colons")),
        };
        let port = match port {
            "" => port_or,
            digits if !digits.bytes().all(|b| b.is_ascii_digit()) => return Err(invalid("the port is not a number")),
            digits => digits
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| AddressError::PortOutOfRange { text: text.to_owned(), port: digits.to_owned() })?,
        };
        let protocol = match transport {
            "" => protocol,
            word => {
                word.parse().map_err(|source| AddressError::UnsupportedProtocol { text: text.to_owned(), source })?
            }
        };
        Ok(Address { host, port, protocol })
    }

    /// The name that the collector's certificate must be for, and that DNS is asked for: the HOST as it stands, or
    /// `service.namespace.svc`.
    pub fn server_name(&self) -> String {
        match &self.host {
            Host::Ip(addr) => addr.to_string(),
            Host::Name(name) => name.clone(),
            Host::Service { namespace, name } => format!("{name}.{namespace}.svc"),
        }
    }
}

/// The host and what follows its colon ("" if nothing does).
fn split_host(text: &str) -> Result<(Host, &str), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (addr, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
        let addr: Ipv6Addr = addr.parse().map_err(|_| "what stands in brackets is no IPv6 address")?;
        let rest =
            if rest.is_empty() { rest } else { rest.strip_prefix(':').ok_or("a colon must follow the bracket")? };
        return Ok((Host::Ip(IpAddr::V6(addr)), rest));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err("an IPv6 address needs brackets");
    }
    let (host, rest) = text.split_once(':').unwrap_or((text, ""));
    Ok((parse_host(host)?, rest))
}

fn parse_host(host: &str) -> Result<Host, &'static str> {
    if host.is_empty() {
        return Err("the host is empty");
    }
    if let Ok(addr) = host.parse() {
        return Ok(Host::Ip(addr));
    }
    match host.split_once('/') {
        None if is_name(host) => Ok(Host::Name(host.to_owned())),
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(Host::Service { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("the host is no DNS name, address or namespace/service"),
    }
}

/// Letters, digits, hyphens, underscores in labels of 1 to 63 bytes; not all digits, which is a mistyped address.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    name.len() <= 253 && name.split('.').all(label) && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(addr)) => write!(f, "[{addr}]")?,
            Host::Ip(IpAddr::V4(addr)) => write!(f, "{addr}")?,
            Host::Name(name) => f.write_str(name)?,
            Host::Service { namespace, name } => write!(f, "{namespace}/{name}")?,
        }
        write!(f, ":{}:{}", self.port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, AddressError> {
        Address::parse(text, Protocol::Tls)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let shown = |text| parse(text).unwrap().to_string();
        assert_eq!(shown("collector.example"), "collector.example:4739:tls");
        assert_eq!(shown("collector.example:"), "collector.example:4739:tls");
        assert_eq!(shown("collector.example:2055"), "collector.example:2055:tls");
        assert_eq!(shown("collector.example:udp"), "collector.example:4739:udp");
        assert_eq!(shown("collector.example::tcp"), "collector.example:4739:tcp");
        assert_eq!(shown("192.0.2.7:4740:UDP"), "192.0.2.7:4740:udp");
        assert_eq!(shown("[2001:db8::7]"), "[2001:db8::7]:4739:tls");
        assert_eq!(shown("[2001:db8::7]:9995:tcp"), "[2001:db8::7]:9995:tcp");
        assert_eq!(shown("flow-aggregator/flow-aggregator:4739:tls"), "flow-aggregator/flow-aggregator:4739:tls");
        let api = Address::parse_or("aggregator.example", 10_348, Protocol::Tls).unwrap();
        assert_eq!(api.to_string(), "aggregator.example:10348:tls");
    }

    #[test]
    fn the_certificate_is_for_the_host() {
        let name = |text| parse(text).unwrap().server_name();
        assert_eq!(name("observe/flow-aggregator"), "flow-aggregator.observe.svc");
        assert_eq!(name("aggregator.example:4739"), "aggregator.example");
        assert_eq!(name("[2001:db8::7]:4739"), "2001:db8::7");
    }

    #[test]
    fn errors_name_the_part_that_is_wrong() {
        let wrong = [
            "",
            ":4739",
            "host:4739:tls:x",
            "host:47x9",
            "2001:db8::7",
            "[2001:db8::7",
            "[2001:db8::7]4739",
            "[192.0.2.7]:4739",
            "192.0.2.256:4739",
            "a/b/c:4739",
            "-host:1",
            "https://host:4739",
            "host:4739:sctp",
            "host:sctp",
            "host:0",
            "host:65536",
            "host:99999999999999999999",
        ];
        let errors: Vec<String> = wrong.iter().map(|text| parse(text).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(errors.join("\n"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in "\\PC{0,40}") {
            if let Ok(address) = parse(&text) {
                proptest::prop_assert_eq!(parse(&address.to_string()), Ok(address));
            }
        }
    }
}
