//! TLS from PEM files: both ends show a certificate, both check the other's against the same CA.
//!
//! Takes paths; gives what [`connect`](super::connect) and [`Listener`](super::Listener) need, or an error that names
//! the file and what to do. The one provider of cryptography is aws-lc-rs, named explicitly, so that nothing depends
//! on which crate was linked or installed first.

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The three PEM files of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA that signed the other end's certificate.
    pub ca: PathBuf,
    /// This end's certificate, with intermediates if there are any.
    pub cert: PathBuf,
    /// The private key of `cert`.
    pub key: PathBuf,
}

/// What a client needs.
#[derive(Clone, Debug)]
pub struct TlsClient(pub(super) Arc<ClientConfig>);

/// What a server needs.
#[derive(Clone, Debug)]
pub struct TlsServer(pub(super) Arc<ServerConfig>);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable, or not PEM.
    #[error("cannot read {}: {source}. `flow-aggregator certs init DIR` makes a CA, a server and a client pair", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What reading it said.
        source: pem::Error,
    },
    /// The file is PEM, but of something else.
    #[error("{} holds no certificate: it must have a block BEGIN CERTIFICATE", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file has no private key.
    #[error("{} holds no private key: it must have a block BEGIN PRIVATE KEY (or EC or RSA PRIVATE KEY)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A certificate of the CA file cannot be used as one.
    #[error("{} is not the certificate of a CA: {source}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The key does not belong to the certificate, or its kind is unknown.
    #[error("{} and {} do not make a pair: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The protocol versions cannot be set up with this provider.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

impl TlsClient {
    /// Trusts `files.ca` alone and shows `files.cert`.
    pub fn load(files: &TlsFiles) -> Result<TlsClient, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots(&files.ca)?)
            .with_client_auth_cert(certificates(&files.cert)?, key(&files.key)?)
            .map_err(|source| pair(files, source))?;
        Ok(TlsClient(Arc::new(config)))
    }
}

impl TlsServer {
    /// Shows `files.cert` and demands a certificate that `files.ca` signed.
    pub fn load(files: &TlsFiles) -> Result<TlsServer, TlsError> {
        let roots = Arc::new(roots(&files.ca)?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(|source| {
            TlsError::Ca { path: files.ca.clone(), source: rustls::Error::General(source.to_string()) }
        })?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates(&files.cert)?, key(&files.key)?)
            .map_err(|source| pair(files, source))?;
        Ok(TlsServer(Arc::new(config)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Ca { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Read { path: path.to_owned(), source };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::NoKey { path: path.to_owned() },
        source => TlsError::Read { path: path.to_owned(), source },
    })
}

fn pair(files: &TlsFiles, source: rustls::Error) -> TlsError {
    TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source }
}
