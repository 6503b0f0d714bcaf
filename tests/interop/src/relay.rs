//! A way to a server, or to another one later, that can be cut: before, amid and after what is sent, and before the answer comes back. By TLS on
//! our side where certificates are given, in the clear on the server's.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::{Certificates, PATIENCE};

/// Where the next connection that sends a commit is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Once so many bytes went to the server.
    Amid(u64),
    /// Once so many bytes went to the server, and instead of whatever it answers then.
    Answer(u64),
}

/// The way.
#[derive(Debug)]
pub struct Relay {
    /// Where it begins.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    cut: Mutex<Option<Cut>>,
    cuts: AtomicUsize,
    /// Bytes that went to the server over all connections.
    sent: watch::Sender<u64>,
}

impl Relay {
    /// A way to `server`.
    pub async fn start(server: SocketAddr, certificates: Option<&Certificates>) -> Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let tls = certificates.map(acceptor).transpose()?;
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            cut: Mutex::new(None),
            cuts: AtomicUsize::new(0),
            sent: watch::Sender::new(0),
        });
        let task = tokio::spawn(serve(listener, tls, shared.clone()));
        Ok(Relay { addr, shared, task })
    }

    /// Leads further connections to another server.
    pub fn lead(&self, server: SocketAddr) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// Cuts the next connection that comes so far, once.
    pub fn cut(&self, cut: Cut) {
        *self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
    }

    /// Leaves further connections whole.
    pub fn mend(&self) {
        *self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How often it was cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Bytes that went to the server over all connections.
    pub fn sent(&self) -> u64 {
        *self.shared.sent.borrow()
    }

    /// Waits until so many bytes went to the server.
    pub async fn until_sent(&self, bytes: u64) -> Result<()> {
        let mut sent = self.shared.sent.subscribe();
        timeout(PATIENCE, sent.wait_for(|sent| *sent >= bytes)).await??;
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Whether the connection is to be cut: `sent` bytes went to the server, `answers` are on their way back.
    fn is_due(&self, sent: u64, answers: bool) -> bool {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let due = match *cut {
            Some(Cut::Amid(bytes)) => sent >= bytes && !answers,
            Some(Cut::Answer(bytes)) => sent >= bytes && answers,
            None => false,
        };
        if due {
            *cut = None;
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        due
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let addr = *shared.server.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(server) = TcpStream::connect(addr).await else { return };
            match tls {
                None => carry(client, server, &shared).await,
                Some(tls) => {
                    if let Ok(client) = tls.accept(client).await {
                        carry(client, server, &shared).await;
                    }
                }
            }
        });
    }
}

/// Until either end is gone or the way is cut; both are dropped then.
async fn carry(client: impl AsyncRead + AsyncWrite, server: TcpStream, shared: &Shared) {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_server, mut to_server) = split(server);
    let sent = AtomicU64::new(0);
    let there = async {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
            let total = sent.load(Ordering::SeqCst) + length as u64;
            if shared.is_due(total, false) {
                return;
            }
            if to_server.write_all(&bytes[..length]).await.is_err() {
                break;
            }
            sent.store(total, Ordering::SeqCst);
            shared.sent.send_modify(|sent| *sent += length as u64);
        }
        // What the server still has to say comes.
        let _ = to_server.shutdown().await;
        std::future::pending::<()>().await;
    };
    let back = async {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
            if shared.is_due(sent.load(Ordering::SeqCst), true) || to_client.write_all(&bytes[..length]).await.is_err()
            {
                return;
            }
            let _ = to_client.flush().await;
        }
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

fn acceptor(certificates: &Certificates) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificates.path("server.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
