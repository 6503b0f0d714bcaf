//! HTTP/1.1 for operators and their tools: a few clients, none of which can hold up the others.
//!
//! Takes a bound port and a router; serves one request a connection until the end is requested.
//! Connections are bounded, in all and of one address; a header that does not come, and an answer that nobody takes,
//! end them. Knows no path.

use super::Shutdown;
use crate::net::{Bounds, Handshake, Places, StreamListener};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::time::Duration;
use tokio::{task::JoinSet, time::sleep};

/// Connections at one time.
pub const CONNECTIONS: usize = 256;
/// One client cannot take all.
const BOUNDS: Bounds = Bounds { all: CONNECTIONS, of_one: 32 };
/// A request's header must be there by then.
const HEADER: Duration = Duration::from_secs(5);
/// Bytes of a header, and of what is read and written at a time.
const BUFFER: usize = 16 * 1024;
/// After a failed accept (no file descriptors left) the next waits, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is counted of a port's connections.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// Open now.
    pub open: Gauge,
    /// Turned away because there were too many, in all or of one address.
    pub refused: Counter,
}

/// Serves a port until the end is requested; answers that are under way are broken off then.
pub async fn serve(port: StreamListener, router: Router, counts: Connections, mut shutdown: Shutdown) {
    let mut served = JoinSet::new();
    let places = Places::default();
    loop {
        let accepted = tokio::select! {
            accepted = port.accept() => accepted,
            Some(_) = served.join_next(), if !served.is_empty() => {
                counts.open.dec();
                continue;
            }
            () = shutdown.requested() => return,
        };
        let handshake = match accepted {
            Ok(handshake) => handshake,
            Err(error) => {
                tracing::debug!("a connection cannot be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.take(handshake.peer().ip(), BOUNDS) else {
            counts.refused.inc();
            continue;
        };
        counts.open.inc();
        let router = router.clone();
        served.spawn(async move {
            answer(handshake, router).await;
            drop(place);
        });
    }
}

/// One request; another needs another connection, so that an idle one holds no place.
async fn answer(handshake: Handshake, router: Router) {
    let peer = handshake.peer();
    let stream = match handshake.complete().await {
        Ok(incoming) => incoming.into_stream(),
        Err(error) => {
            tracing::debug!("{peer} does not speak as this port does: {error}");
            return;
        }
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!("a request of {peer} ended early: {error}");
    }
}
