//! Which TLS is spoken: the least version and the cipher suites, by the names that Go and IANA give them.
//!
//! Takes names; gives what a client or a server is set up with, or an error that names what we do not have.

use rustls::{
    SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    version::{TLS12, TLS13},
};
use std::sync::Arc;

/// The least version that an end accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2 or 1.3.
    #[default]
    Tls12,
    /// 1.3 alone.
    Tls13,
}

/// Cipher suites of TLS 1.2 that may be used; none named means all. Those of TLS 1.3 always may.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsSuites(Vec<SupportedCipherSuite>);

/// A name in a list of cipher suites that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuiteError {
    /// It is none of ours: unknown, or too weak.
    #[error("no cipher suite \"{name}\" here; there are {}", names().join(", "))]
    Unknown {
        /// As written.
        name: String,
    },
    /// It belongs to TLS 1.3, whose suites are not chosen.
    #[error("\"{0}\" is of TLS 1.3, whose cipher suites are always on and are not listed")]
    Tls13(String),
}

impl TlsVersion {
    pub(super) fn accepted(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            TlsVersion::Tls12 => vec![&TLS13, &TLS12],
            TlsVersion::Tls13 => vec![&TLS13],
        }
    }
}

impl TlsSuites {
    /// Reads names with commas between them.
    pub fn parse(text: &str) -> Result<TlsSuites, SuiteError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(suite).collect::<Result<_, _>>().map(TlsSuites)
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        if !self.0.is_empty() {
            provider.cipher_suites.retain(|suite| is_newest(suite) || self.0.contains(suite));
        }
        Arc::new(provider)
    }
}

fn suite(name: &str) -> Result<SupportedCipherSuite, SuiteError> {
    // Go has short names for the two ChaCha20 suites.
    let full = if name.ends_with("_CHACHA20_POLY1305") { format!("{name}_SHA256") } else { name.to_owned() };
    let known = aws_lc_rs::ALL_CIPHER_SUITES.iter().find(|suite| {
        let ours = name_of(suite);
        ours == full || ours.strip_prefix("TLS13_").is_some_and(|rest| full.strip_prefix("TLS_") == Some(rest))
    });
    match known {
        Some(suite) if is_newest(suite) => Err(SuiteError::Tls13(name.to_owned())),
        Some(suite) => Ok(*suite),
        None => Err(SuiteError::Unknown { name: name.to_owned() }),
    }
}

fn name_of(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite())
}

fn names() -> Vec<String> {
    aws_lc_rs::ALL_CIPHER_SUITES.iter().filter(|suite| !is_newest(suite)).map(name_of).collect()
}

fn is_newest(suite: &SupportedCipherSuite) -> bool {
    suite.tls13().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_go_are_understood_or_refused_by_name() {
        let text = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305";
        let suites = TlsSuites::parse(text).unwrap();
        let kept: Vec<String> = suites.provider().cipher_suites.iter().map(name_of).collect();
        assert_eq!(kept.iter().filter(|name| name.starts_with("TLS13_")).count(), 3);
        assert_eq!(kept.len(), 5, "{kept:?}");
        assert_eq!(TlsSuites::parse(" ").unwrap(), TlsSuites::default());
        for refused in ["TLS_RSA_WITH_RC4_128_SHA", "TLS_AES_128_GCM_SHA256"] {
            let said = TlsSuites::parse(refused).unwrap_err().to_string();
            assert!(said.contains(refused), "{said}");
        }
    }
}
