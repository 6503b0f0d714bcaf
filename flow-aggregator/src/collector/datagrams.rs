//! Exporters by datagrams: whoever sends is a session, until it is silent for long.
//!
//! Takes datagrams; gives each as it came, in order, over the collector's channel. What the table has no room for waits
//! here, bounded, and is counted where it is refused. Sessions are bounded, too, and silent ones make room.

use super::{ACCEPT_PAUSE, Collector, Input, SessionId};
use crate::metrics::ReasonLabel;
use bytes::{Bytes, BytesMut};
use flow_common::{daemon::Shutdown, net::DatagramListener};
use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// An exporter by UDP that is silent so long is forgotten: three times the interval at which templates are sent again.
const DATAGRAM_SESSION: Duration = Duration::from_secs(1800);
const DATAGRAM_SWEEP: Duration = Duration::from_secs(60);
/// Where `maxSessions` are heard of, one that is silent so long makes room: three times as long as an agent is that has
/// nothing to tell but its accounts. Whoever sends from ever new ports keeps nobody out for longer.
const QUIET: Duration = Duration::from_secs(180);
/// How often such ones are looked for at most.
const CROWDED: Duration = Duration::from_secs(1);
const DATAGRAM: usize = 65_535;
/// What datagrams are received into, one behind the other.
const DATAGRAM_BUFFER: usize = 256 * 1024;
/// Bytes of datagrams that wait for the table: a burst of many exporters' full records.
const WAITING: usize = 8 << 20;
/// And how many of them: empty ones have no bytes.
const WAITING_INPUTS: usize = 65_536;

/// Exporters by datagrams.
#[derive(Default)]
struct Peers {
    /// Each with its session and when it was heard of last.
    known: HashMap<SocketAddr, (SessionId, Instant)>,
    /// When room for another was looked for.
    crowded: Option<Instant>,
}

/// What came by datagrams and waits for room before the table, in order. Begins and ends of sessions always find room:
/// they are bounded by the number of sessions.
#[derive(Default)]
struct Waiting {
    inputs: VecDeque<Input>,
    bytes: usize,
}

impl Waiting {
    fn next(&mut self) -> Option<Input> {
        let next = self.inputs.pop_front()?;
        if let Input::Messages { bytes, .. } = &next {
            self.bytes -= bytes.len();
        }
        Some(next)
    }
}

impl Collector {
    /// Serves the port until the end is requested.
    pub(super) async fn datagrams(self, listener: DatagramListener, mut shutdown: Shutdown) {
        let mut peers = Peers::default();
        let mut waiting = Waiting::default();
        let mut sweep = interval(DATAGRAM_SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = BytesMut::new();
        loop {
            if buffer.capacity() - buffer.len() < DATAGRAM {
                buffer = BytesMut::with_capacity(DATAGRAM_BUFFER);
            }
            tokio::select! {
                received = listener.receive(&mut buffer) => match received {
                    Ok((length, peer)) => {
                        let bytes = buffer.split_to(length).freeze();
                        self.datagram(&mut peers, &mut waiting, peer, bytes, Instant::now());
                    }
                    Err(error) => {
                        tracing::debug!("receiving a datagram failed: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                room = self.output.reserve(), if !waiting.inputs.is_empty() => match (room, waiting.next()) {
                    (Ok(room), Some(input)) => room.send(input),
                    // The table is gone only when the process ends.
                    _ => break,
                },
                _ = sweep.tick() => self.forget(&mut peers, &mut waiting, Instant::now(), DATAGRAM_SESSION),
                () = shutdown.requested() => break,
            }
        }
        while let Some(input) = waiting.next() {
            let _ = self.output.send(input).await;
        }
    }

    /// Hands a datagram on. A table that is far behind loses datagrams, as it would in the kernel's buffer, but counted.
    fn datagram(&self, peers: &mut Peers, waiting: &mut Waiting, peer: SocketAddr, bytes: Bytes, now: Instant) {
        self.metrics.bytes.inc_by(bytes.len() as u64);
        if !peers.known.contains_key(&peer) && !self.has_room(peers, waiting, now) {
            self.metrics.refused.get_or_create(&ReasonLabel { reason: "sessions" }).inc();
            return;
        }
        let entry = peers.known.entry(peer).or_insert((SessionId(0), now));
        entry.1 = now;
        if entry.0 == SessionId(0) {
            entry.0 = SessionId::next();
            self.metrics.accepted.inc();
            self.metrics.sessions.inc();
            let opened = Input::Opened { session: entry.0, peer: peer.ip(), datagrams: true, close: None };
            waiting.inputs.push_back(opened);
        }
        if waiting.bytes + bytes.len() > WAITING || waiting.inputs.len() >= WAITING_INPUTS {
            self.metrics.dropped_datagrams.inc();
        } else {
            waiting.bytes += bytes.len();
            waiting.inputs.push_back(Input::Messages { session: entry.0, bytes });
        }
    }

    fn has_room(&self, peers: &mut Peers, waiting: &mut Waiting, now: Instant) -> bool {
        let max = *self.max_sessions.borrow();
        let full = peers.known.len() >= max;
        if full && peers.crowded.is_none_or(|last| now.duration_since(last) >= CROWDED) {
            peers.crowded = Some(now);
            self.forget(peers, waiting, now, QUIET);
        }
        peers.known.len() < max
    }

    fn forget(&self, peers: &mut Peers, waiting: &mut Waiting, now: Instant, silence: Duration) {
        let silent = |heard: &Instant| now.duration_since(*heard) > silence;
        for (_, (session, _)) in peers.known.extract_if(|_, (_, heard)| silent(heard)) {
            self.metrics.sessions.dec();
            waiting.inputs.push_back(Input::Closed { session });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CollectorMetrics;
    use tokio::sync::{mpsc, watch};

    #[test]
    fn silent_senders_of_datagrams_make_room_and_those_that_are_heard_stay() {
        let (output, _messages) = mpsc::channel(1);
        let (_max, max_sessions) = watch::channel(3);
        let collector = Collector { output, max_sessions, metrics: CollectorMetrics::default() };
        let (mut peers, mut waiting, begin) = (Peers::default(), Waiting::default(), Instant::now());
        let mut hear = |port: u16, seconds: u64| {
            let bytes = Bytes::from_static(&[0; 16]);
            let at = begin + Duration::from_secs(seconds);
            collector.datagram(&mut peers, &mut waiting, ([192, 0, 2, 1], port).into(), bytes, at);
            let closed = waiting.inputs.iter().filter(|input| matches!(input, Input::Closed { .. })).count();
            (peers.known.len(), closed, collector.metrics.sessions.get())
        };
        for port in 1..=3 {
            hear(port, 0);
        }
        assert_eq!(hear(4, 100), (3, 0, 3), "nobody is silent for long");
        assert_eq!(hear(1, 150), (3, 0, 3));
        assert_eq!(hear(4, 200), (2, 2, 2), "two were");
        assert_eq!(hear(5, 201), (3, 2, 3));
        assert_eq!(hear(1, 202), (3, 2, 3), "who was heard of is known yet");
        let turned_away = collector.metrics.refused.get_or_create(&ReasonLabel { reason: "sessions" }).get();
        assert_eq!(turned_away, 1);
    }
}
