//! Exporters by datagrams: whoever sends is a session, until it is silent for long.
//!
//! Takes datagrams; gives each as it came, in order, over the collector's channel. What the table has no room for waits
//! here, bounded, and is counted where it is refused. Sessions are bounded, too, and silent ones make room.

use super::{ACCEPT_PAUSE, Collector, reason};
use crate::{
    input::{Input, SessionId},
    metrics::ReasonLabel,
};
use bytes::{Bytes, BytesMut};
use flow_common::{
    daemon::Shutdown,
    net::{DatagramListener, Full, Place, Places},
};
use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// An exporter by UDP that is silent so long is forgotten: three times the interval at which templates are sent again.
const DATAGRAM_SESSION: Duration = Duration::from_secs(1800);
const DATAGRAM_SWEEP: Duration = Duration::from_secs(60);
/// Where `maxSessions` are heard of, or `maxSessionsPerAddress` of one address, one that is silent so long makes room:
/// three times as long as an agent is that has nothing to tell but its accounts. Whoever sends from ever new ports keeps
/// nobody out for longer.
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
    known: HashMap<SocketAddr, Peer>,
    places: Places,
    /// When room for another was looked for.
    crowded: Option<Instant>,
}

struct Peer {
    session: SessionId,
    /// Last.
    heard: Instant,
    _place: Place,
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
        let session = match peers.known.get_mut(&peer) {
            Some(known) => {
                known.heard = now;
                known.session
            }
            None => match self.admit(peers, waiting, peer, now) {
                Ok(session) => session,
                Err(full) => {
                    self.metrics.refused.get_or_create(&ReasonLabel { reason: reason(full) }).inc();
                    return;
                }
            },
        };
        if waiting.bytes + bytes.len() > WAITING || waiting.inputs.len() >= WAITING_INPUTS {
            self.metrics.dropped_datagrams.inc();
        } else {
            waiting.bytes += bytes.len();
            waiting.inputs.push_back(Input::Messages { session, bytes });
        }
    }

    /// Begins a session with a peer that is not known, if there is a place for it.
    fn admit(
        &self,
        peers: &mut Peers,
        waiting: &mut Waiting,
        peer: SocketAddr,
        now: Instant,
    ) -> Result<SessionId, Full> {
        let bounds = self.limits.borrow().sessions;
        let place = match peers.places.take(peer.ip(), bounds) {
            Err(_) if peers.crowded.is_none_or(|last| now.duration_since(last) >= CROWDED) => {
                peers.crowded = Some(now);
                self.forget(peers, waiting, now, QUIET);
                peers.places.take(peer.ip(), bounds)
            }
            taken => taken,
        }?;
        let session = SessionId::next();
        peers.known.insert(peer, Peer { session, heard: now, _place: place });
        self.metrics.accepted.inc();
        self.metrics.sessions.inc();
        waiting.inputs.push_back(Input::Opened { session, peer: peer.ip(), datagrams: true, close: None });
        Ok(session)
    }

    fn forget(&self, peers: &mut Peers, waiting: &mut Waiting, now: Instant, silence: Duration) {
        for (_, gone) in peers.known.extract_if(|_, peer| now.duration_since(peer.heard) > silence) {
            self.metrics.sessions.dec();
            waiting.inputs.push_back(Input::Closed { session: gone.session });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collector::Limits, metrics::CollectorMetrics};
    use flow_common::net::Bounds;
    use std::net::IpAddr;
    use tokio::sync::{mpsc, watch};

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    /// A collector before a table that takes nothing.
    struct Crowded {
        collector: Collector,
        peers: Peers,
        waiting: Waiting,
        begin: Instant,
    }

    impl Crowded {
        fn new(sessions: Bounds) -> Crowded {
            let (output, _) = mpsc::channel(1);
            let (_, limits) = watch::channel(Limits { sessions, idle: None });
            let collector = Collector { output, limits, metrics: CollectorMetrics::default() };
            Crowded { collector, peers: Peers::default(), waiting: Waiting::default(), begin: Instant::now() }
        }

        /// A datagram of this peer: how many are known then, and how many were forgotten so far.
        fn hear(&mut self, addr: IpAddr, port: u16, seconds: u64) -> (usize, usize) {
            let at = self.begin + Duration::from_secs(seconds);
            let bytes = Bytes::from_static(&[0; 16]);
            self.collector.datagram(&mut self.peers, &mut self.waiting, (addr, port).into(), bytes, at);
            let closed = self.waiting.inputs.iter().filter(|input| matches!(input, Input::Closed { .. })).count();
            let known = self.peers.known.len();
            assert_eq!(self.collector.metrics.sessions.get(), known as i64);
            (known, closed)
        }

        fn turned_away(&self, full: Full) -> u64 {
            self.collector.metrics.refused.get_or_create(&ReasonLabel { reason: reason(full) }).get()
        }
    }

    #[test]
    fn silent_senders_of_datagrams_make_room_and_those_that_are_heard_stay() {
        let mut crowd = Crowded::new(Bounds { all: 3, of_one: usize::MAX });
        for port in 1..=3 {
            crowd.hear(ONE, port, 0);
        }
        assert_eq!(crowd.hear(ONE, 4, 100), (3, 0), "nobody is silent for long");
        assert_eq!(crowd.hear(ONE, 1, 150), (3, 0));
        assert_eq!(crowd.hear(ONE, 4, 200), (2, 2), "two were");
        assert_eq!(crowd.hear(ONE, 5, 201), (3, 2));
        assert_eq!(crowd.hear(ONE, 1, 202), (3, 2), "who was heard of is known yet");
        assert_eq!((crowd.turned_away(Full::All), crowd.turned_away(Full::OfOne)), (1, 0));
    }

    #[test]
    fn one_address_keeps_no_other_out() {
        let mut crowd = Crowded::new(Bounds { all: 100, of_one: 2 });
        for port in 1..=50 {
            assert!(crowd.hear(ONE, port, 0).0 <= 2);
        }
        assert_eq!(crowd.hear(OTHER, 1, 1), (3, 0));
        assert_eq!((crowd.turned_away(Full::All), crowd.turned_away(Full::OfOne)), (0, 48));
        assert_eq!(crowd.hear(ONE, 51, 200), (1, 3), "whoever was silent makes room");
    }
}
