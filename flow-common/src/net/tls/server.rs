//! What a server shows and demands. Files that were renewed are used from the next connection on, without a restart.
//!
//! Nothing watches them: who is about to accept a connection looks, once a second at most, whether a file is another one.

use super::{TlsError, TlsFiles, TlsSuites, TlsVersion, certificates, key, pair, provider, roots};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The least time between two looks.
const LOOK: Duration = Duration::from_secs(1);

type Load = dyn Fn() -> Result<ServerConfig, TlsError> + Send + Sync;

/// What a server needs.
#[derive(Clone)]
pub struct TlsServer(Arc<Renewed>);

struct Renewed {
    files: Vec<PathBuf>,
    load: Box<Load>,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    /// What the files were when they were read last.
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
    /// Why they could not be read last.
    fault: Option<String>,
}

/// What tells a file from the one that was there before: device, inode, size, and time of its last change.
type Stamp = (u64, u64, u64, (i64, i64));

impl TlsServer {
    /// Shows `files.cert` and demands a certificate that `files.ca` signed.
    pub fn load(files: &TlsFiles) -> Result<TlsServer, TlsError> {
        let TlsFiles { ca, cert, key } = files.clone();
        let files = files.clone();
        TlsServer::of(vec![ca, cert, key], move || mutual(&files))
    }

    /// Shows `cert` and asks nobody for a certificate.
    pub fn open(cert: &Path, key_file: &Path, least: TlsVersion, suites: &TlsSuites) -> Result<TlsServer, TlsError> {
        let (cert, key_file, suites) = (cert.to_owned(), key_file.to_owned(), suites.clone());
        TlsServer::of(vec![cert.clone(), key_file.clone()], move || {
            let shown = showing(certificates(&cert)?, key(&key_file)?, least, &suites)?;
            shown.map_err(|source| TlsError::Pair { cert: cert.clone(), key: key_file.clone(), source })
        })
    }

    /// The same with a certificate and a key that are PEM texts and in no file.
    pub fn open_made(cert: &str, key: &str, least: TlsVersion, suites: &TlsSuites) -> Result<TlsServer, TlsError> {
        let (cert, key, suites) = (cert.to_owned(), key.to_owned(), suites.clone());
        TlsServer::of(Vec::new(), move || {
            let made = |error: pem::Error| TlsError::Setup(rustls::Error::General(error.to_string()));
            let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().map_err(made)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(made)?;
            showing(chain, key, least, &suites)?.map_err(TlsError::Setup)
        })
    }

    fn of(
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<ServerConfig, TlsError> + Send + Sync + 'static,
    ) -> Result<TlsServer, TlsError> {
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamps = stamps(&files);
        let state = State { config: Arc::new(load()?), stamps, looked: Instant::now(), fault: None };
        Ok(TlsServer(Arc::new(Renewed { files, load: Box::new(load), state: Mutex::new(state) })))
    }

    /// As the files are now, or were when they could be used last.
    pub(in crate::net) fn current(&self) -> Arc<ServerConfig> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.files.is_empty() && state.looked.elapsed() >= LOOK {
            self.0.look(&mut state);
            state.looked = Instant::now();
        }
        state.config.clone()
    }
}

impl Renewed {
    fn look(&self, state: &mut State) {
        let stamps = stamps(&self.files);
        if stamps == state.stamps && state.fault.is_none() {
            return;
        }
        match (self.load)() {
            Ok(config) => {
                *state = State { config: Arc::new(config), stamps, looked: state.looked, fault: None };
                tracing::info!("{} was renewed: new connections see it", self.name());
            }
            // They may be amid being replaced: the next look tries again.
            Err(error) => {
                let fault = error.to_string();
                if state.fault.as_ref() != Some(&fault) {
                    tracing::warn!("{fault}; new connections still see what {} was before", self.name());
                }
                state.fault = Some(fault);
            }
        }
    }

    fn name(&self) -> String {
        self.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsServer").field(&self.0.files).finish()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &PathBuf| {
        let data = fs::metadata(file).ok()?;
        Some((data.dev(), data.ino(), data.size(), (data.ctime(), data.ctime_nsec())))
    };
    files.iter().map(stamp).collect()
}

fn mutual(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let roots = Arc::new(roots(&files.ca)?);
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(|source| {
        TlsError::Ca { path: files.ca.clone(), source: rustls::Error::General(source.to_string()) }
    })?;
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(&files.cert)?, key(&files.key)?)
        .map_err(|source| pair(files, source))
}

/// The inner error is that the two do not make a pair.
fn showing(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    least: TlsVersion,
    suites: &TlsSuites,
) -> Result<Result<ServerConfig, rustls::Error>, TlsError> {
    let builder = ServerConfig::builder_with_provider(suites.provider())
        .with_protocol_versions(&least.accepted())
        .map_err(TlsError::Setup)?
        .with_no_client_auth();
    Ok(builder.with_single_cert(chain, key))
}
