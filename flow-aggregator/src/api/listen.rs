//! The API's port: its certificate and token, its connections and their bounds.
//!
//! Takes the configuration; serves requests until the end is requested. What was made at the start, a certificate and a
//! token, stands in a folder for the command line on the same host as long as this lives.

use super::{Desk, router, token::Token};
use crate::{certs, config::Config, metrics::ApiMetrics};
use anyhow::{Context, Result};
use axum::Router;
use flow_common::{
    daemon::Shutdown,
    net::{Handshake, Listener, Protocol, StreamListener, TlsServer},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::{task::JoinSet, time::sleep};

/// Connections at one time.
const CONNECTIONS: usize = 256;
/// Connections of one address: one client cannot take all.
const OF_ONE: usize = 32;
/// A request's header must be there by then.
const HEADER: Duration = Duration::from_secs(5);
/// Bytes of a header, and of what is read and written at a time.
const BUFFER: usize = 16 * 1024;
/// After a failed accept (no file descriptors left) the next waits, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Names of the files in `apiServer.folder`.
pub(crate) const CERTIFICATE: &str = "api.crt";
pub(crate) const TOKEN: &str = "token";

/// The bound port.
#[derive(Debug)]
pub struct Api {
    listener: StreamListener,
    local: SocketAddr,
    router: Router,
    metrics: ApiMetrics,
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
        let tls = match config.api_cert.as_ref().zip(config.api_key.as_ref()) {
            Some((cert, key)) => TlsServer::open(cert, key, least, suites)?,
            None => {
                let made = certs::own(names(config), SystemTime::now())?;
                shared.put(&config.api_folder, CERTIFICATE, &made.cert, 0o644);
                TlsServer::open_made(&made.cert, &made.key, least, suites)?
            }
        };
        let token = Token::new(desk.token_file.clone())?;
        shared.put(&config.api_folder, TOKEN, token.made(), 0o600);
        let addr = SocketAddr::new(config.api_addr.0, port);
        let listener = Listener::bind(addr, Protocol::Tls, Some(&tls)).await.context("the API (apiServer.apiPort)")?;
        let local = listener.local()?;
        let Listener::Stream(listener) = listener else { return Ok(None) };
        let metrics = desk.metrics.api.clone();
        Ok(Some(Api { listener, local, router: router(desk, token), metrics, shared }))
    }

    /// Where it listens.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Serves until the end is requested; answers that are under way are broken off then.
    pub async fn run(self, mut shutdown: Shutdown) {
        let Api { listener, router, metrics, shared, .. } = self;
        let mut connections: JoinSet<IpAddr> = JoinSet::new();
        let mut of: HashMap<IpAddr, usize> = HashMap::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    // A connection's task that failed has no address: its place is lost until the restart.
                    ended.map(|peer| leave(&mut of, peer)).unwrap_or_default();
                    continue;
                }
                () = shutdown.requested() => break,
            };
            let handshake = match accepted {
                Ok(handshake) => handshake,
                Err(error) => {
                    tracing::debug!("the API cannot accept a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer = handshake.peer().ip();
            let taken = of.entry(peer).or_default();
            if *taken >= OF_ONE || connections.len() >= CONNECTIONS {
                if *taken == 0 {
                    of.remove(&peer);
                }
                metrics.refused.inc();
                continue;
            }
            *taken += 1;
            metrics.connections.inc();
            let (router, metrics) = (router.clone(), metrics.clone());
            connections.spawn(async move {
                serve(handshake, router).await;
                metrics.connections.dec();
                peer
            });
        }
        drop(shared);
    }
}

fn leave(of: &mut HashMap<IpAddr, usize>, peer: IpAddr) {
    if let Some(taken) = of.get_mut(&peer) {
        *taken -= 1;
        if *taken == 0 {
            of.remove(&peer);
        }
    }
}

/// One request; another needs another connection, so that an idle one holds no place.
async fn serve(handshake: Handshake, router: Router) {
    let peer = handshake.peer();
    let incoming = match handshake.complete().await {
        Ok(incoming) => incoming,
        Err(error) => return tracing::debug!("{peer} does not speak TLS as the API does: {error}"),
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(incoming.into_duplex()), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!("a request of {peer} ended early: {error}");
    }
}

/// What the made certificate is for.
fn names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = certs::NAMES.iter().map(|name| (*name).to_owned()).collect();
    names.extend(Some(config.own_address.clone()).filter(|name| !name.is_empty()));
    names.extend(fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned()));
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
