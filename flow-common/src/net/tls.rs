//! TLS from PEM files: between our own both ends show a certificate and check the other's against the same CA; towards
//! others either end may do without.
//!
//! Takes paths; gives what [`connect`](super::connect) and [`Listener`](super::Listener) need, or an error that names
//! the file and what to do. The one provider of cryptography is aws-lc-rs, named explicitly, so that nothing depends
//! on which crate was linked or installed first.

mod choice;
mod server;

pub use choice::{SuiteError, TlsSuites, TlsVersion};
pub use server::TlsServer;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
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

/// Whose certificates a client takes that shows none itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those that this CA signed (PEM).
    Ca(PathBuf),
    /// Those of the CAs that the system trusts.
    System,
    /// Everybody's: encrypted, but to whomever it is that answers.
    Anyone,
}

/// Whom a client trusts that is not among our own, and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsTrust {
    /// Whose certificates are taken.
    pub trust: Trust,
    /// Certificate and private key that are shown, if any.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The least version.
    pub least: TlsVersion,
}

impl Trust {
    /// That CA, or where none is named those that the system trusts.
    pub fn of(ca: Option<PathBuf>) -> Trust {
        ca.map_or(Trust::System, Trust::Ca)
    }
}

impl From<Trust> for TlsTrust {
    fn from(trust: Trust) -> TlsTrust {
        TlsTrust { trust, pair: None, least: TlsVersion::default() }
    }
}

/// What a client needs.
#[derive(Clone, Debug)]
pub struct TlsClient(pub(super) Arc<ClientConfig>);

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
    /// The system has no CAs.
    #[error(
        "this system trusts no CA: {0}; install its CA certificates (the package ca-certificates) or configure the server's CA"
    )]
    NoSystemCa(String),
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

    /// Trusts whom `trust` says, and shows what it says.
    pub fn trusting(trust: &TlsTrust) -> Result<TlsClient, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&trust.least.accepted())
            .map_err(TlsError::Setup)?;
        let builder = match &trust.trust {
            Trust::Ca(path) => builder.with_root_certificates(roots(path)?),
            Trust::System => builder.with_root_certificates(system_roots()?),
            Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider()))),
        };
        let config = match &trust.pair {
            None => builder.with_no_client_auth(),
            Some((cert, key_file)) => builder
                .with_client_auth_cert(certificates(cert)?, key(key_file)?)
                .map_err(|source| TlsError::Pair { cert: cert.clone(), key: key_file.clone(), source })?,
        };
        Ok(TlsClient(Arc::new(config)))
    }
}

/// Takes every certificate, but not every signature: the other end must hold the certificate's key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
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

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry certificates that no strict reader takes; the others are what is trusted.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let faults: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoSystemCa(faults.join(", ")));
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
