//! Where joined flows go. Each sink has a queue and a task of its own, so that none can stall another.
//!
//! Takes batches that all sinks share; gives them to each sink in order. A full queue drops its oldest flows and counts
//! them. A sink that cannot start or loses its peer tries again for ever, with back-off, and keeps its place: what was
//! not delivered is delivered first when it is back.

pub mod clickhouse;
mod ipfix;
mod json;
mod log;
mod peer;
mod queue;
#[cfg(test)]
mod tests;

pub use clickhouse::ClickHouseSink;
pub use ipfix::{IpfixSettings, IpfixSink};
pub use json::{JsonSettings, JsonSink};
pub use log::{LogSettings, LogSink, Rotation};
pub use peer::Peer;
pub use queue::{Queue, Receiver};

use crate::{aggregate::Batch, metrics::SinkMetrics};
use flow_common::net::{Backoff, ConnectError, TlsError};
use std::{
    fmt, io,
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long the rest of a queue may take at the end of the process.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long an orderly end of a connection may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A destination of joined flows.
pub trait Sink: Send + 'static {
    /// Connects or opens. Called again after every failure.
    fn open(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Delivers the flows of a batch from the `from`th on, or takes them to deliver them together with others.
    fn deliver(&mut self, batch: &Batch, from: usize) -> impl Future<Output = Delivery> + Send;

    /// Waits, while there is nothing to deliver, until the destination is lost or something periodic was done, or is to
    /// be done by [`settle`](Self::settle). Cancel-safe.
    fn idle(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Delivers what was taken before. Gives how many flows that were.
    fn settle(&mut self) -> impl Future<Output = Result<u64, SinkError>> + Send {
        std::future::ready(Ok(0))
    }

    /// Flows that were taken and are not delivered yet.
    fn held(&self) -> u64 {
        0
    }

    /// Ends in order.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// What became of a batch.
#[derive(Debug)]
pub struct Delivery {
    /// Flows of the batch that the sink is done with, counted from its first: the next attempt begins here.
    pub through: usize,
    /// Flows that the destination has now, of this batch or taken earlier.
    pub delivered: u64,
    /// Flows of the batch that the destination cannot take at all.
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
    /// The certificates for a connection cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    /// ClickHouse does not do what it should.
    #[error("{server}: {error}")]
    ClickHouse {
        /// Where it is.
        server: String,
        /// What is wrong.
        error: Box<clickhouse::Error>,
    },
    /// It is not open.
    #[error("it is not open")]
    Closed,
}

/// A sink with its settings. Adding a kind: a variant, its name, and its line in [`run`].
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// IPFIX to a collector.
    Ipfix(IpfixSettings),
    /// JSON to a collector.
    Json(JsonSettings),
    /// Lines in a file.
    Log(LogSettings),
    /// Rows of ClickHouse.
    ClickHouse(Box<clickhouse::Settings>),
}

impl Spec {
    /// What it is called in logs and metrics; of each kind there is one sink at most.
    pub fn name(&self) -> &'static str {
        match self {
            Spec::Ipfix(_) => "ipfix",
            Spec::Json(_) => "json",
            Spec::Log(_) => "log",
            Spec::ClickHouse(_) => "clickhouse",
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Ipfix(settings) => {
                write!(f, "IPFIX to {} as observation domain {}", settings.peer, settings.domain)
            }
            Spec::Json(settings) => write!(f, "JSON to {}", settings.peer),
            Spec::Log(settings) => write!(f, "lines to {}", settings.path.display()),
            Spec::ClickHouse(settings) => write!(f, "rows to {}", settings.server.endpoint),
        }
    }
}

/// Serves a sink until its queue is closed and empty, or the end of the process does not wait for it any longer. Where
/// its settings change, it is closed and opened anew with them; the queue stays. What a sink had taken to deliver it
/// together with others it delivers first; if it cannot within a few seconds, that is dropped and counted.
pub async fn run(spec: watch::Receiver<Spec>, queue: Receiver, metrics: SinkMetrics) {
    let name = spec.borrow().name();
    let held = AtomicU64::new(0);
    let task = Task { name, queue: &queue, metrics: &metrics, held: &held };
    task.ended(async {
        let mut changes = Changes::new(spec);
        loop {
            tracing::info!("sink {name}: {}", changes.current);
            let over = match changes.current.clone() {
                Spec::Ipfix(settings) => task.attempts(IpfixSink::new(settings), &mut changes).await,
                Spec::Json(settings) => task.attempts(JsonSink::new(settings), &mut changes).await,
                Spec::Log(settings) => task.attempts(LogSink::new(settings), &mut changes).await,
                Spec::ClickHouse(settings) => task.attempts(ClickHouseSink::new(*settings), &mut changes).await,
            };
            if over.is_break() {
                return;
            }
            task.drop_held();
            changes.take();
        }
    })
    .await;
}

/// The settings by which a sink is served, and whether others wait.
struct Changes {
    spec: watch::Receiver<Spec>,
    current: Spec,
}

impl Changes {
    fn new(mut spec: watch::Receiver<Spec>) -> Changes {
        let current = spec.borrow_and_update().clone();
        Changes { spec, current }
    }

    /// Waits until the settings are others. Cancel-safe, and true again each time it is asked.
    async fn wanted(&mut self) {
        let current = &self.current;
        if self.spec.wait_for(|spec| spec != current).await.is_err() {
            // Nobody changes them any more.
            std::future::pending::<()>().await;
        }
    }

    /// Goes by the new ones.
    fn take(&mut self) {
        self.current = self.spec.borrow_and_update().clone();
    }
}

/// What serving a sink needs beside the sink.
#[derive(Clone, Copy)]
struct Task<'a> {
    name: &'static str,
    queue: &'a Receiver,
    metrics: &'a SinkMetrics,
    /// What [`Sink::held`] gave at last: its task may be broken off.
    held: &'a AtomicU64,
}

/// Why a sink is not served further.
enum Ended {
    /// The queue is closed and empty.
    Over,
    /// Its settings changed.
    Changed,
    /// It failed.
    Failed(SinkError),
}

impl Task<'_> {
    /// Does the work, but no longer than the end of the process waits for it.
    async fn ended(self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = overdue(self.queue) => {}
        }
        let lost = self.queue.drain() + self.held.swap(0, Ordering::Relaxed);
        self.metrics.dropped.inc_by(lost);
        self.metrics.queued.set(0);
        self.metrics.connected.set(0);
        if lost > 0 {
            tracing::warn!("sink {}: {lost} flows are lost with its end", self.name);
        }
    }

    /// What the sink that ended had taken and did not deliver is lost.
    fn drop_held(self) {
        let lost = self.held.swap(0, Ordering::Relaxed);
        self.metrics.dropped.inc_by(lost);
        if lost > 0 {
            tracing::warn!("sink {}: {lost} flows that it had taken are lost with its old settings", self.name);
        }
    }

    /// Serves the sink, again after every failure. Breaks at the end of the queue, goes on where settings changed.
    async fn attempts(self, mut sink: impl Sink, changes: &mut Changes) -> ControlFlow<()> {
        let name = self.name;
        let mut backoff = Backoff::new();
        loop {
            let opened = tokio::select! {
                opened = sink.open() => opened,
                () = changes.wanted() => return ControlFlow::Continue(()),
            };
            let ended = match opened {
                Ok(()) => {
                    tracing::info!("sink {name}: open");
                    self.metrics.connected.set(1);
                    self.serve(&mut sink, changes, &mut backoff).await
                }
                Err(error) => Ended::Failed(error),
            };
            self.metrics.connected.set(0);
            let error = match ended {
                Ended::Failed(error) => error,
                Ended::Over | Ended::Changed => {
                    if matches!(ended, Ended::Changed) {
                        // What fails here is counted by what is still held.
                        let _ = timeout(LAST_WORDS, self.settle(&mut sink)).await;
                    }
                    // A destination that takes nothing would not take a farewell.
                    let _ = timeout(FAREWELL, sink.close()).await;
                    return if matches!(ended, Ended::Over) {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    };
                }
            };
            self.metrics.failures.inc();
            let delay = backoff.delay();
            tracing::warn!("sink {name}: {error}; next try in {}s", delay.as_secs());
            tokio::select! {
                () = sleep(delay) => {}
                () = changes.wanted() => return ControlFlow::Continue(()),
                () = self.queue.closed() => return ControlFlow::Break(()),
            }
        }
    }

    /// Delivers until the queue ends, the destination is lost or the settings change.
    async fn serve(self, sink: &mut impl Sink, changes: &mut Changes, backoff: &mut Backoff) -> Ended {
        loop {
            let next = tokio::select! {
                next = self.queue.front() => Some(next),
                idle = sink.idle() => match idle {
                    Ok(()) => None,
                    Err(error) => return Ended::Failed(error),
                },
                () = changes.wanted() => return Ended::Changed,
            };
            let Some(Some(front)) = next else {
                let settled = tokio::select! {
                    settled = self.settle(sink) => settled,
                    () = async { changes.wanted().await; sleep(LAST_WORDS).await } => return Ended::Changed,
                };
                match (settled, next) {
                    (Err(error), _) => return Ended::Failed(error),
                    (Ok(()), Some(_)) => return Ended::Over,
                    (Ok(()), None) => continue,
                }
            };
            let Delivery { through, delivered, refused, error } = tokio::select! {
                delivery = sink.deliver(&front.batch, front.from) => delivery,
                // A destination that takes nothing cannot keep the new settings out.
                () = async { changes.wanted().await; sleep(LAST_WORDS).await } => return Ended::Changed,
            };
            self.held.store(sink.held(), Ordering::Relaxed);
            self.metrics.delivered.inc_by(delivered);
            self.metrics.refused.inc_by(refused);
            if let Some(waited) = front.advance(through) {
                self.metrics.latency.observe(waited.as_secs_f64());
            }
            match error {
                Some(error) => return Ended::Failed(error),
                None => backoff.reset(),
            }
        }
    }

    /// Has the sink deliver what it took.
    async fn settle(self, sink: &mut impl Sink) -> Result<(), SinkError> {
        let settled = sink.settle().await;
        self.held.store(sink.held(), Ordering::Relaxed);
        self.metrics.delivered.inc_by(settled?);
        Ok(())
    }
}

/// The process ends, and the sink had its time to deliver the rest.
async fn overdue(queue: &Receiver) {
    queue.closed().await;
    sleep(LAST_WORDS).await;
}
