//! The API's port: its certificate and its token.
//!
//! Takes the configuration; serves requests until the end is requested. What was made at the start, a certificate and a
//! token, stands in a folder for the command line on the same host as long as this lives.

use super::{Desk, router, token::Token};
use crate::{certs, config::Config};
use anyhow::{Context, Result};
use axum::Router;
use flow_common::{
    daemon::{
        Shutdown,
        http::{self, Connections},
    },
    net::{ListenError, Protocol, StreamListener, TlsServer},
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Names of the files in `apiServer.folder`.
pub(crate) const CERTIFICATE: &str = "api.crt";
pub(crate) const TOKEN: &str = "token";

/// The bound port.
#[derive(Debug)]
pub struct Api {
    listener: StreamListener,
    local: SocketAddr,
    router: Router,
    counts: Connections,
    shared: Shared,
}

/// Files that go with the process.
#[derive(Debug, Default)]
struct Shared(Vec<PathBuf>);

impl Api {
    /// Binds the port that the configuration names, if it names one.
    pub async fn bind(config: &Config, desk: Desk) -> Result<Option<Api>> {
        let Some(port) = config.api_port else { return Ok(None) };
        let mut shared = Shared::default();
        let (least, suites) = (config.api_least.version, &config.api_suites.suites);
        let (tls, made) = match config.api_cert.as_ref().zip(config.api_key.as_ref()) {
            Some((cert, key)) => (TlsServer::open(cert, key, least, suites)?, None),
            None => {
                let made = certs::own(names(config), SystemTime::now())?;
                (TlsServer::open_made(&made.cert, &made.key, least, suites)?, Some(made.cert))
            }
        };
        let token = Token::new(desk.token_file.clone())?;
        let addr = SocketAddr::new(config.api_addr.0, port);
        let refused = |source| ListenError::Bind { addr, protocol: Protocol::Tls, source };
        let listener = StreamListener::bind(addr, Some(&tls)).await.map_err(refused);
        let listener = listener.context("the API (apiServer.apiPort)")?;
        let local = listener.local()?;
        // Only whoever has the port: another aggregator's files stay while that runs.
        if let Some(cert) = made {
            shared.put(&config.api_folder, CERTIFICATE, &cert, 0o644);
        }
        shared.put(&config.api_folder, TOKEN, token.made(), 0o600);
        let counts = desk.metrics.api.connections.clone();
        Ok(Some(Api { listener, local, router: router(desk, token), counts, shared }))
    }

    /// Where it listens.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Serves until the end is requested; answers that are under way are broken off then.
    pub async fn run(self, shutdown: Shutdown) {
        let Api { listener, router, counts, shared, .. } = self;
        http::serve(listener, router, counts, shutdown).await;
        drop(shared);
    }
}

/// What the made certificate is for.
fn names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = certs::NAMES.iter().map(|name| (*name).to_owned()).collect();
    names.extend(Some(config.own_address.clone()).filter(|name| !name.is_empty()));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // A host may be called what no certificate can say.
    let plain = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    names.extend(Some(host.trim()).filter(plain).map(str::to_owned));
    names
}

impl Shared {
    /// The API works without it, only the command line then has to be told where to look.
    fn put(&mut self, folder: &Path, name: &str, text: &str, mode: u32) {
        let path = folder.join(name);
        match write(folder, &path, text, mode) {
            Ok(()) => self.0.push(path),
            Err(error) => tracing::warn!(
                "cannot write {} (apiServer.folder): {error}; the command line finds it there by default",
                path.display()
            ),
        }
    }
}

/// Whoever reads the file meanwhile sees the old one or the new one, and others never the token.
fn write(folder: &Path, path: &Path, text: &str, mode: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let new = path.with_extension("new");
    // A file that is there already would keep its mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}

impl Drop for Shared {
    fn drop(&mut self) {
        for path in &self.0 {
            // Somebody may have removed it already.
            let _ = fs::remove_file(path);
        }
    }
}
