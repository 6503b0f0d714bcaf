//! TLS from PEM files: between our own both ends show a certificate and check the other's against the same CA; towards
//! others either end may do without.
//!
//! Takes paths; gives what [`connect`](super::connect) and [`Listener`](super::Listener) need, or an error that names
//! the file and what to do. The one provider of cryptography is aws-lc-rs, named explicitly, so that nothing depends
//! on which crate was linked or installed first.

mod choice;

pub use choice::{SuiteError, TlsSuites, TlsVersion};

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

/// Whom a client trusts that is not among our own, and what it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsTrust {
    /// The CA that signed the server's certificate; none: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// Certificate and private key that are shown, if any.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The least version.
    pub least: TlsVersion,
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
    /// No file of the machine's CAs was found.
    #[error("this machine has no list of CAs (looked for {}): name the CA's file", SYSTEM_CAS.join(", "))]
    NoSystemCas,
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

    /// Trusts whom `trust` says.
    pub fn trusting(trust: &TlsTrust) -> Result<TlsClient, TlsError> {
        let roots = match &trust.ca {
            Some(ca) => roots(ca)?,
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&trust.least.accepted())
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots);
        let config = match &trust.pair {
            None => builder.with_no_client_auth(),
            Some((cert, key_file)) => builder
                .with_client_auth_cert(certificates(cert)?, key(key_file)?)
                .map_err(|source| TlsError::Pair { cert: cert.clone(), key: key_file.clone(), source })?,
        };
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

    /// Shows `cert` and asks nobody for a certificate.
    pub fn open(cert: &Path, key_file: &Path, least: TlsVersion, suites: &TlsSuites) -> Result<TlsServer, TlsError> {
        let config = ServerConfig::builder_with_provider(suites.provider())
            .with_protocol_versions(&least.accepted())
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_single_cert(certificates(cert)?, key(key_file)?)
            .map_err(|source| TlsError::Pair { cert: cert.to_owned(), key: key_file.to_owned(), source })?;
        Ok(TlsServer(Arc::new(config)))
    }

    /// The same with a certificate and a key that are PEM texts and in no file.
    pub fn open_made(cert: &str, key: &str, least: TlsVersion, suites: &TlsSuites) -> Result<TlsServer, TlsError> {
        let made = |error: pem::Error| TlsError::Setup(rustls::Error::General(error.to_string()));
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().map_err(made)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(made)?;
        let config = ServerConfig::builder_with_provider(suites.provider())
            .with_protocol_versions(&least.accepted())
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(TlsError::Setup)?;
        Ok(TlsServer(Arc::new(config)))
    }
}

/// Where distributions keep the CAs that a machine trusts.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Certificates among them that TLS cannot use are left out: one odd CA must not shut out all others.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut files = named.into_iter().chain(SYSTEM_CAS.iter().map(PathBuf::from));
    let file = files.find(|file| file.exists()).ok_or(TlsError::NoSystemCas)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&file)?);
    Ok(roots)
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
