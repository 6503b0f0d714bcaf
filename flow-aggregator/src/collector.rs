//! Receives the exporters' bytes: TLS, TCP or UDP.
//!
//! Takes a bound listener; gives whole IPFIX messages in read buffers, each under the number of its session, over a
//! bounded channel. It decodes nothing but the length of messages. A stream whose framing is broken, here or where the
//! messages are decoded, is closed with a logged reason; a datagram alone is ignored. Sessions are bounded, in all and of
//! one address, and whoever says nothing for long makes room.

mod datagrams;

use crate::{
    input::{Input, SessionId},
    metrics::{CollectorMetrics, ReasonLabel},
};
use bytes::BytesMut;
use flow_common::{
    daemon::Shutdown,
    ipfix::{
        message::{Header, MessageError},
        wire::Reader,
    },
    net::{Bounds, Full, Handshake, Incoming, Listener, Place, Places, StreamListener},
};
use std::{future::pending, io, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// A read of a busy session: enough records to work on together, and little enough that the allocator keeps the memory.
const LARGEST_READ: usize = 64 * 1024;
/// A read of a session that says little: most do.
const SMALLEST_READ: usize = 16 * 1024;
/// A message that was begun must be whole by then: who sends a byte from time to time holds no place for ever.
const MESSAGE: Duration = Duration::from_secs(10);
/// After a failed accept (no file descriptors left) the next waits, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What sessions there may be. Those that are open beyond a lower bound stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At one time.
    pub sessions: Bounds,
    /// A stream of which nothing came for so long is closed; without it none is.
    pub idle: Option<Duration>,
}

/// Collects until the end is requested.
#[derive(Debug)]
pub struct Collector {
    /// Where to.
    pub output: mpsc::Sender<Input>,
    /// They may change.
    pub limits: watch::Receiver<Limits>,
    /// What is counted.
    pub metrics: CollectorMetrics,
}

impl Collector {
    /// Serves the listener; returns when the end is requested and every session is closed.
    pub async fn run(self, listener: Listener, shutdown: Shutdown) {
        match listener {
            Listener::Stream(listener) => self.streams(listener, shutdown).await,
            Listener::Datagram(listener) => self.datagrams(listener, shutdown).await,
        }
    }

    async fn streams(self, listener: StreamListener, mut shutdown: Shutdown) {
        let mut sessions = JoinSet::new();
        let places = Places::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = sessions.join_next(), if !sessions.is_empty() => continue,
                () = shutdown.requested() => break,
            };
            let handshake = match accepted {
                Ok(handshake) => handshake,
                Err(error) => {
                    self.refuse("accept", &error);
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (peer, bounds) = (handshake.peer(), self.limits.borrow().sessions);
            let place = match places.take(peer.ip(), bounds) {
                Ok(place) => place,
                Err(full) => {
                    let (open, whence, key) = match full {
                        Full::All => (bounds.all, "", "maxSessions"),
                        Full::OfOne => (bounds.of_one, " from its address", "maxSessionsPerAddress"),
                    };
                    let said = format_args!("{peer}: {open} are connected{whence}; if all are yours, set {key} higher");
                    self.refuse(reason(full), &said);
                    continue;
                }
            };
            let session = StreamSession {
                output: self.output.clone(),
                limits: self.limits.clone(),
                metrics: self.metrics.clone(),
                shutdown: shutdown.clone(),
            };
            sessions.spawn(session.run(handshake, place));
        }
        drop(listener);
        while sessions.join_next().await.is_some() {}
    }

    fn refuse(&self, reason: &'static str, error: &dyn std::fmt::Display) {
        self.metrics.refused.get_or_create(&ReasonLabel { reason }).inc();
        tracing::warn!("an exporter was turned away: {error}");
    }
}

/// The label of those who are turned away for want of a place.
fn reason(full: Full) -> &'static str {
    match full {
        Full::All => "sessions",
        Full::OfOne => "address",
    }
}

struct StreamSession {
    output: mpsc::Sender<Input>,
    limits: watch::Receiver<Limits>,
    metrics: CollectorMetrics,
    shutdown: Shutdown,
}

impl StreamSession {
    async fn run(mut self, handshake: Handshake, place: Place) {
        let peer = handshake.peer();
        let completed = tokio::select! {
            completed = handshake.complete() => completed,
            () = self.shutdown.requested() => return,
        };
        let incoming = match completed {
            Ok(incoming) => incoming,
            Err(error) => {
                self.metrics.refused.get_or_create(&ReasonLabel { reason: "handshake" }).inc();
                return tracing::warn!("an exporter was turned away: {peer}: {error}");
            }
        };
        self.metrics.accepted.inc();
        self.metrics.sessions.inc();
        let session = SessionId::next();
        tracing::info!("exporter {peer} connected");
        match self.serve(session, incoming).await {
            Ok(()) => tracing::info!("exporter {peer} closed its connection"),
            Err(Ending::Lost(error)) => tracing::warn!("exporter {peer} is lost: {error}"),
            Err(ending) => {
                match ending.reason() {
                    Some(reason) => self.metrics.refused.get_or_create(&ReasonLabel { reason }).inc(),
                    None => self.metrics.malformed_sessions.inc(),
                };
                tracing::warn!("exporter {peer} is disconnected: {ending}");
            }
        }
        drop(place);
        self.metrics.sessions.dec();
        let _ = self.output.send(Input::Closed { session }).await;
    }

    async fn serve(&mut self, session: SessionId, mut incoming: Incoming) -> Result<(), Ending> {
        let (close, mut closed) = oneshot::channel();
        let opened = Input::Opened { session, peer: incoming.peer().ip(), datagrams: false, close: Some(close) };
        let _ = self.output.send(opened).await;
        let mut buffer = BytesMut::new();
        let mut size = SMALLEST_READ;
        // When the message that was begun must be whole.
        let mut due: Option<Instant> = None;
        let mut heard = Instant::now();
        loop {
            buffer.reserve(size);
            let idle = self.limits.borrow_and_update().idle;
            let filled = tokio::select! {
                biased;
                Ok(error) = &mut closed => return Err(Ending::Malformed(error)),
                () = self.shutdown.requested() => return Ok(()),
                // Before the deadline: what has come in time may have waited here.
                filled = incoming.fill(&mut buffer) => filled.map_err(Ending::Lost)?,
                () = reached(due) => return Err(Ending::Stalled),
                limit = silent(heard, idle) => return Err(Ending::Idle(limit)),
                Ok(()) = self.limits.changed() => continue,
            };
            heard = Instant::now();
            self.metrics.bytes.inc_by(filled as u64);
            if filled == 0 {
                let cut = buffer.is_empty();
                let rest = io::Error::new(io::ErrorKind::UnexpectedEof, "it ended within a message");
                return if cut { Ok(()) } else { Err(Ending::Lost(rest)) };
            }
            size = if filled >= size {
                size * 2
            } else if filled < size / 4 {
                size / 2
            } else {
                size
            };
            size = size.clamp(SMALLEST_READ, LARGEST_READ);
            let whole = whole_messages(&buffer).map_err(Ending::Malformed)?;
            if whole > 0 {
                let bytes = buffer.split_to(whole).freeze();
                let _ = self.output.send(Input::Messages { session, bytes }).await;
                due = None;
            }
            due = if buffer.is_empty() { None } else { due.or_else(|| Some(Instant::now() + MESSAGE)) };
        }
    }
}

/// Why a stream ended that its exporter did not close.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("{0}")]
    Malformed(MessageError),
    #[error("a message was not whole within {MESSAGE:?}")]
    Stalled,
    #[error("it sent nothing for {0:?}; if it may be quiet for longer, set sessionIdleTimeout higher")]
    Idle(Duration),
    #[error("{0}")]
    Lost(io::Error),
}

impl Ending {
    /// The label of those who are sent away, though what they sent makes sense.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Ending::Stalled => Some("stalled"),
            Ending::Idle(_) => Some("idle"),
            Ending::Malformed(_) | Ending::Lost(_) => None,
        }
    }
}

/// Waits for a moment, if there is one.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Waits until nothing was heard for so long, if that matters.
async fn silent(heard: Instant, limit: Option<Duration>) -> Duration {
    reached(limit.map(|limit| heard + limit)).await;
    limit.unwrap_or_default()
}

/// How many bytes at the front are whole messages.
fn whole_messages(bytes: &[u8]) -> Result<usize, MessageError> {
    let mut whole = 0;
    while let Some(header) = bytes.get(whole..).and_then(|rest| Header::read(&mut Reader::new(rest))) {
        let length = usize::from(header?.length);
        if bytes.len() - whole < length {
            break;
        }
        whole += length;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u16) -> Vec<u8> {
        let mut bytes = vec![0, 10];
        bytes.extend(length.to_be_bytes());
        bytes.resize(length.into(), 0);
        bytes
    }

    #[test]
    fn messages_are_cut_where_they_end() {
        let two = [message(16), message(40)].concat();
        assert_eq!(whole_messages(&two), Ok(56));
        assert_eq!(whole_messages(&two[..55]), Ok(16));
        assert_eq!(whole_messages(&two[..3]), Ok(0));
        assert_eq!(whole_messages(&[]), Ok(0));
    }

    #[test]
    fn what_is_no_message_is_named() {
        let mut bytes = message(16);
        bytes.extend([0, 9, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(whole_messages(&bytes), Err(MessageError::Version(9)));
        assert_eq!(whole_messages(&[0, 10, 0, 15]), Err(MessageError::Length(15)));
    }
}
