//! The task that owns the table of connections.
//!
//! Takes the collector's messages and, where a folder of objects is configured, its changes; gives batches of joined flows to every sink's queue. It reads the clock for the
//! table, once a turn, and never waits for a sink.

use crate::{
    aggregate::{Aggregate, Batch},
    collector::{Input, SessionId},
    metrics::{SinkMetrics, TableMetrics},
    sinks::Queue,
};
use flow_common::{ipfix::message::MessageError, k8s::Look, time::Timestamp};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

/// How often the passing of time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Flows of each family that a turn takes from what is due, so that reads are not starved.
const DUE: usize = 2_048;
/// Joined flows that are handed on together at least, while there is more to read.
const HAND_ON: usize = 128;

/// A sink's queue and what is counted of it.
#[derive(Debug)]
pub struct Outlet {
    /// Its queue.
    pub queue: Queue,
    /// Its numbers.
    pub metrics: SinkMetrics,
}

/// Table, sessions and outlets.
#[derive(Debug)]
pub struct Join {
    /// The table.
    pub aggregate: Aggregate,
    /// Where batches go.
    pub outlets: Vec<Outlet>,
    /// What is counted.
    pub metrics: TableMetrics,
    /// What is found in the folder of objects, if there is one.
    objects: Option<mpsc::Receiver<Look>>,
    closers: HashMap<SessionId, oneshot::Sender<MessageError>>,
    begin: Instant,
    due: bool,
}

impl Join {
    /// A table that gives its flows to the outlets.
    pub fn new(aggregate: Aggregate, outlets: Vec<Outlet>, metrics: TableMetrics) -> Join {
        Join { aggregate, outlets, metrics, objects: None, closers: HashMap::new(), begin: Instant::now(), due: false }
    }

    /// Knows what the folder of objects holds, and follows it.
    pub fn follow(mut self, first: Look, further: mpsc::Receiver<Look>) -> Join {
        self.look(first);
        self.objects = Some(further);
        self
    }

    /// Joins until the input closes; then everything that has news is handed on.
    pub async fn run(mut self, mut input: mpsc::Receiver<Input>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                look = next(&mut self.objects), if self.objects.is_some() => match look {
                    Some(look) => self.look(look),
                    None => self.objects = None,
                },
                next = input.recv() => match next {
                    Some(next) => self.take(next),
                    None => break,
                },
                _ = tick.tick() => {
                    self.due = true;
                    self.show();
                }
                // More is due than one turn takes.
                () = std::future::ready(()), if self.due => {}
            }
            if self.due {
                self.due = self.aggregate.expired(self.now(), DUE);
            }
            if self.aggregate.batched() >= HAND_ON || input.is_empty() {
                self.hand_on();
            }
            if self.due {
                tokio::task::yield_now().await;
            }
        }
        self.aggregate.finish(self.now());
        self.hand_on();
        self.show();
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Opened { session, peer, datagrams, close } => {
                self.aggregate.open(session, peer, datagrams);
                self.closers.extend(close.map(|close| (session, close)));
            }
            Input::Closed { session } => {
                self.closers.remove(&session);
                self.aggregate.close(session);
            }
            Input::Messages { session, bytes } => {
                let Err(error) = self.aggregate.feed(session, &bytes, self.now()) else { return };
                match self.closers.remove(&session) {
                    // The session may have ended by itself meanwhile.
                    Some(close) => drop(close.send(error)),
                    None => tracing::debug!("a datagram was ignored: {error}"),
                }
            }
        }
    }

    fn look(&mut self, look: Look) {
        for error in &look.errors {
            tracing::warn!("an object is refused, and what was known before stays: {error}");
        }
        let at = Timestamp::from(SystemTime::now());
        for change in look.changes {
            self.aggregate.change(change, at);
        }
        self.metrics.refused_objects(look.refused.len());
    }

    fn hand_on(&mut self) {
        if self.aggregate.batched() == 0 {
            return;
        }
        let batch: Arc<Batch> = Arc::new(self.aggregate.take_batch());
        for outlet in &self.outlets {
            outlet.metrics.dropped.inc_by(outlet.queue.put(batch.clone()));
        }
    }

    fn show(&self) {
        self.metrics.show(&self.aggregate);
        for outlet in &self.outlets {
            outlet.metrics.queued.set(i64::try_from(outlet.queue.len()).unwrap_or(i64::MAX));
        }
    }

    /// Seconds since the start.
    fn now(&self) -> u32 {
        u32::try_from(self.begin.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// The folder's next look; `None` if there is no folder, or nobody looks any more. Cancel-safe.
async fn next(objects: &mut Option<mpsc::Receiver<Look>>) -> Option<Look> {
    objects.as_mut()?.recv().await
}
