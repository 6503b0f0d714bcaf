//! Where joined flows go. Each sink has a queue and a task of its own, so that none can stall another.
//!
//! Takes batches that all sinks share; gives them to each sink in order. A full queue drops its oldest flows and counts
//! them. A sink that cannot start or loses its peer tries again for ever, with back-off, and keeps its place: what was
//! not delivered is delivered first when it is back.

mod ipfix;
mod json;
mod log;
mod queue;

pub use ipfix::IpfixSink;
pub use json::JsonSink;
pub use log::LogSink;
pub use queue::{Queue, Receiver};

use crate::{aggregate::Batch, metrics::SinkMetrics};
use flow_common::net::{Backoff, ConnectError};
use std::{fmt, io, path::PathBuf, time::Duration};
use tokio::time::sleep;

/// How long the rest of a queue may take at the end of the process.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A destination of joined flows.
pub trait Sink: Send + 'static {
    /// Connects or opens. Called again after every failure.
    fn open(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Delivers the flows of a batch from the `from`th on. Gives how many are delivered, which after an error is where
    /// the next attempt begins.
    fn deliver(&mut self, batch: &Batch, from: usize) -> impl Future<Output = Delivery> + Send;

    /// Waits, while there is nothing to deliver, until the destination is lost or something periodic was done.
    /// Cancel-safe.
    fn idle(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Ends in order.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// What became of a batch.
#[derive(Debug)]
pub struct Delivery {
    /// Flows of the batch that are delivered, counted from its first.
    pub through: usize,
    /// Flows among them that the destination cannot take at all.
    pub refused: u64,
    /// Why not all are.
    pub error: Option<SinkError>,
}

/// Why a sink is not served at the moment.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection is gone.
    #[error("the collector is lost: {0}")]
    Lost(#[source] io::Error),
    /// The file cannot be opened or written.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not open.
    #[error("it is not open")]
    Closed,
}

/// What a [`Sink`]'s task is called in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(pub &'static str);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Serves a sink until its queue is closed and empty, or the end of the process does not wait for it any longer.
pub async fn run(name: Name, sink: impl Sink, queue: Receiver, metrics: SinkMetrics) {
    tokio::select! {
        () = attempts(name, sink, &queue, &metrics) => {}
        () = overdue(&queue) => {}
    }
    let lost = queue.drain();
    metrics.dropped.inc_by(lost);
    if lost > 0 {
        tracing::warn!("sink {name}: {lost} flows are lost with the end of the process");
    }
}

async fn attempts(name: Name, mut sink: impl Sink, queue: &Receiver, metrics: &SinkMetrics) {
    let mut backoff = Backoff::new();
    loop {
        let ended = match sink.open().await {
            Ok(()) => {
                tracing::info!("sink {name}: open");
                metrics.connected.set(1);
                serve(&mut sink, queue, metrics, &mut backoff).await
            }
            Err(error) => Err(error),
        };
        metrics.connected.set(0);
        let Err(error) = ended else { return sink.close().await };
        metrics.failures.inc();
        let delay = backoff.delay();
        tracing::warn!("sink {name}: {error}; next try in {}s", delay.as_secs());
        tokio::select! {
            () = sleep(delay) => {}
            () = queue.closed() => return,
        }
    }
}

/// Delivers until the queue ends or the destination is lost.
async fn serve(
    sink: &mut impl Sink,
    queue: &Receiver,
    metrics: &SinkMetrics,
    backoff: &mut Backoff,
) -> Result<(), SinkError> {
    loop {
        let next = tokio::select! {
            next = queue.front() => next,
            idle = sink.idle() => {
                idle?;
                continue;
            }
        };
        let Some((batch, from)) = next else { return Ok(()) };
        let Delivery { through, refused, error } = sink.deliver(&batch, from).await;
        metrics.delivered.inc_by(((through - from) as u64).saturating_sub(refused));
        metrics.refused.inc_by(refused);
        queue.advance(&batch, through);
        match error {
            Some(error) => return Err(error),
            None => backoff.reset(),
        }
    }
}

/// The process ends, and the sink had its time to deliver the rest.
async fn overdue(queue: &Receiver) {
    queue.closed().await;
    sleep(LAST_WORDS).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aggregate::testing::batch_of, metrics::Metrics};
    use prometheus_client::registry::Registry;
    use std::sync::{Arc, Mutex};

    /// A destination that is away at first and lost in the middle of a batch.
    struct Fickle {
        /// Attempts that fail before the first success.
        away: u32,
        /// Deliveries left until it is lost, once.
        until_lost: Option<u32>,
        delivered: Arc<Mutex<Vec<u16>>>,
    }

    impl Sink for Fickle {
        async fn open(&mut self) -> Result<(), SinkError> {
            match self.away.checked_sub(1) {
                None => Ok(()),
                Some(left) => {
                    self.away = left;
                    Err(SinkError::Lost(io::ErrorKind::ConnectionRefused.into()))
                }
            }
        }

        async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
            let lost = self.until_lost.is_some_and(|left| left == 0);
            self.until_lost = if lost { None } else { self.until_lost.map(|left| left - 1) };
            let through = if lost { from + 1 } else { batch.len() };
            let flows = batch.iter().filter_map(|joined| joined.decode()).map(|flow| flow.head.src_port);
            self.delivered.lock().unwrap().extend(flows.take(through).skip(from));
            let error = lost.then(|| SinkError::Lost(io::ErrorKind::BrokenPipe.into()));
            Delivery { through, refused: 0, error }
        }

        async fn idle(&mut self) -> Result<(), SinkError> {
            std::future::pending().await
        }

        async fn close(&mut self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_sink_goes_on_where_it_was() {
        let metrics = Metrics::new(&mut Registry::default()).sink("test");
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let (queue, receiver) = Queue::new(1_000);
        let sink = Fickle { away: 3, until_lost: Some(1), delivered: delivered.clone() };
        let running = tokio::spawn(run(Name("test"), sink, receiver, metrics.clone()));
        let begin = tokio::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(queue.put(Arc::new(batch_of(3))), 0);
        }
        while metrics.delivered.get() < 9 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(queue);
        running.await.unwrap();
        assert_eq!(*delivered.lock().unwrap(), [1, 2, 3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(metrics.failures.get(), 4);
        let waited = begin.elapsed().as_secs();
        assert_eq!(waited, 1 + 2 + 4 + 1, "back-off while it is away, from the start after a success");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_is_away_at_the_end_is_given_up_and_counted() {
        let metrics = Metrics::new(&mut Registry::default()).sink("test");
        let (queue, receiver) = Queue::new(1_000);
        let sink = Fickle { away: u32::MAX, until_lost: None, delivered: Arc::default() };
        let running = tokio::spawn(run(Name("test"), sink, receiver, metrics.clone()));
        queue.put(Arc::new(batch_of(7)));
        tokio::task::yield_now().await;
        drop(queue);
        running.await.unwrap();
        assert_eq!((metrics.delivered.get(), metrics.dropped.get()), (0, 7));
    }

    /// A destination that takes bytes and never comes back.
    struct Stuck;

    impl Sink for Stuck {
        async fn open(&mut self) -> Result<(), SinkError> {
            Ok(())
        }

        async fn deliver(&mut self, _: &Batch, _: usize) -> Delivery {
            std::future::pending().await
        }

        async fn idle(&mut self) -> Result<(), SinkError> {
            std::future::pending().await
        }

        async fn close(&mut self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_sink_holds_up_the_end_for_a_while_only() {
        let metrics = Metrics::new(&mut Registry::default()).sink("test");
        let (queue, receiver) = Queue::new(1_000);
        let running = tokio::spawn(run(Name("test"), Stuck, receiver, metrics.clone()));
        queue.put(Arc::new(batch_of(4)));
        queue.put(Arc::new(batch_of(4)));
        tokio::task::yield_now().await;
        let begin = tokio::time::Instant::now();
        drop(queue);
        running.await.unwrap();
        assert_eq!((begin.elapsed(), metrics.dropped.get()), (LAST_WORDS, 8));
    }
}
