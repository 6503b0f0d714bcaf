//! Export: records to the collector, as IPFIX over TLS, TCP or UDP.
//!
//! Takes batches of records; gives messages to the collector, and its own state to whoever watches. Live flows need no queue, because
//! their totals heal what was lost; ended ones wait in the spool. Reconnects with a growing delay. Decides nothing about flows.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flow_common::ipfix::exporter::Session;
use flow_common::net::{self, Backoff, Connection, Protocol, TlsClient, TlsFiles};
use flow_common::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

mod accounting;
mod outbox;
mod spool;

use crate::config::{Collector, Config};
use crate::doctor::{Export, Facts};
use crate::enrich::Record;
use outbox::Outbox;

/// How often the state is told and what is due by time is looked after.
const TICK: Duration = Duration::from_secs(1);

/// How often accounting is sent.
const ACCOUNTING: Duration = Duration::from_secs(60);

/// A connection that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(10);

/// Records of the spool that are encoded before they are sent, so that a full one is not twice in memory.
const PORTION: usize = 2_048;

type Batch = Arc<Vec<Record>>;

/// The stage's state.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    tls: Option<TlsFiles>,
    accounting: bool,
    outbox: Outbox,
    facts: watch::Receiver<Arc<Facts>>,
    status: watch::Sender<Export>,
    connects: u64,
}

/// Why a connection is no more.
enum End {
    /// There are no more batches; everything was sent.
    Input,
    /// It broke.
    Broken(io::Error),
}

impl Exporter {
    /// Towards the configured collector. `node` names the observation domain.
    pub fn new(config: &Config, node: &str, status: watch::Sender<Export>, facts: watch::Receiver<Arc<Facts>>) -> Self {
        let capacity = usize::try_from(config.spool_records).unwrap_or(usize::MAX);
        let mut exporter = Self {
            collector: config.collector.clone(),
            tls: config.tls_files(),
            accounting: config.sends_accounting(),
            outbox: Outbox::new(domain(node), config.extended, config.sends_accounting(), capacity),
            facts,
            status,
            connects: 0,
        };
        exporter.tell(None, None);
        exporter
    }

    /// Stores batches until a connection stands, the first attempt after `wait`. None if there are no more batches and no
    /// connection came about.
    async fn connect(
        &mut self,
        mut wait: Duration,
        batches: &mut mpsc::Receiver<Batch>,
        backoff: &mut Backoff,
    ) -> Option<Connection> {
        let mut open = true;
        while open {
            // The end of the batches ends the waiting too: one last attempt follows.
            open = self.store_until(tokio::time::sleep(wait), batches).await.is_some();
            if !open && self.outbox.unsent() == 0 {
                return None;
            }
            let mut attempt = pin!(attempt(self.collector.clone(), self.tls.clone()));
            let mut outcome = if open { self.store_until(&mut attempt, batches).await } else { None };
            if outcome.is_none() {
                open = false;
                outcome = Some(attempt.await);
            }
            match outcome {
                Some(Ok(connection)) => return Some(connection),
                Some(Err(failure)) => {
                    tracing::warn!("no connection to the collector {}: {failure}", self.collector);
                    self.tell(None, Some(failure));
                }
                None => {}
            }
            wait = backoff.delay();
        }
        None
    }

    /// Stores what comes while `until` runs. None if there are no more batches before that is done.
    async fn store_until<F: Future>(&mut self, until: F, batches: &mut mpsc::Receiver<Batch>) -> Option<F::Output> {
        let mut until = pin!(until);
        loop {
            tokio::select! {
                output = &mut until => return Some(output),
                batch = batches.recv() => self.outbox.store(&batch?, now()),
            }
        }
    }

    /// Sends what comes until the connection breaks or nothing comes any more.
    async fn serve(&mut self, connection: &mut Connection, batches: &mut mpsc::Receiver<Batch>) -> End {
        self.outbox.begin(connection.message_limit(), connection.protocol() == Protocol::Udp, now());
        let mut ticks = interval(TICK);
        self.account();
        let mut accounts = interval_at(Instant::now() + ACCOUNTING, ACCOUNTING);
        for timer in [&mut ticks, &mut accounts] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            if let Err(error) = self.send_waiting(connection).await {
                return End::Broken(error);
            }
            tokio::select! {
                batch = batches.recv() => match batch {
                    Some(batch) => self.outbox.add(&batch, now()),
                    None => return self.send_last(connection).await,
                },
                error = connection.closed() => return End::Broken(error),
                _ = ticks.tick() => {
                    self.outbox.tick(now());
                    self.tell(Some(connection), None);
                }
                _ = accounts.tick() => self.account(),
            }
        }
    }

    /// Everything that is encoded, and the spool in portions.
    async fn send_waiting(&mut self, connection: &mut Connection) -> io::Result<()> {
        loop {
            let more = self.outbox.take_spooled(PORTION, now());
            if let Some(session) = self.outbox.finished() {
                send(connection, session).await?;
            }
            self.outbox.sent(now());
            if !more {
                return connection.flush().await;
            }
        }
    }

    async fn send_last(&mut self, connection: &mut Connection) -> End {
        self.account();
        match self.send_waiting(connection).await {
            Ok(()) => End::Input,
            Err(error) => End::Broken(error),
        }
    }

    fn account(&mut self) {
        if self.accounting {
            let facts = self.facts.borrow().clone();
            let counts = self.outbox.counts();
            accounting::records(&facts, &counts).iter().for_each(|record| self.outbox.account(record, now()));
        }
    }

    fn tell(&mut self, connection: Option<&Connection>, failure: Option<String>) {
        let counts = self.outbox.counts();
        self.status.send_replace(Export {
            collector: self.collector.to_string(),
            peer: connection.map(|connection| connection.peer().to_string()),
            failure,
            connects: self.connects,
            messages: counts.messages,
            records: counts.records,
            octets: counts.octets,
            spooled: wide(self.outbox.spooled()),
            unsent: wide(self.outbox.unsent()),
            spool_capacity: wide(self.outbox.capacity()),
            lost_flows: counts.lost_flows,
            lost: counts.lost,
            passed_over: counts.passed_over,
            oversized: counts.oversized,
        });
    }
}

/// The certificate files are read at each attempt, so that renewed ones are used without a restart.
async fn attempt(collector: Collector, tls: Option<TlsFiles>) -> Result<Connection, String> {
    let tls = tls.map(|files| TlsClient::load(&files)).transpose().map_err(|error| error.to_string())?;
    net::connect(&collector.address, tls.as_ref()).await.map_err(|error| error.to_string())
}

/// A stream takes all messages in few large writes, datagrams one each.
async fn send(connection: &mut Connection, session: &Session) -> io::Result<()> {
    if connection.protocol() != Protocol::Udp {
        return connection.send(session.bytes()).await;
    }
    for message in session.messages() {
        connection.send(message).await?;
    }
    Ok(())
}

/// Until there are no more batches and everything was sent that could be.
pub async fn run(mut exporter: Exporter, mut batches: mpsc::Receiver<Batch>) {
    let (mut backoff, mut wait) = (Backoff::new(), Duration::ZERO);
    while let Some(mut connection) = exporter.connect(wait, &mut batches, &mut backoff).await {
        let since = Instant::now();
        tracing::info!("connected to the collector {} at {}", exporter.collector, connection.peer());
        exporter.connects += 1;
        exporter.tell(Some(&connection), None);
        let end = exporter.serve(&mut connection, &mut batches).await;
        exporter.outbox.end();
        match end {
            End::Input => {
                if let Err(error) = connection.close().await {
                    tracing::debug!("closing the connection to the collector: {error}");
                }
                break;
            }
            End::Broken(error) => {
                // A collector that refuses us at once is not asked more and more often.
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
                wait = backoff.delay();
                tracing::warn!("the connection to the collector {} broke: {error}", exporter.collector);
                exporter.tell(None, Some(error.to_string()));
            }
        }
    }
    exporter.tell(None, None);
    if exporter.outbox.unsent() > 0 {
        tracing::warn!("{} ended flows were not sent: no connection to the collector", exporter.outbox.unsent());
    }
}

/// The observation domain of a Node: FNV-1 (32 bit) of its name.
fn domain(node: &str) -> u32 {
    node.bytes().fold(0x811c_9dc5_u32, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte))
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_fnv_1() {
        // From the reference's test vectors: FNV-1, 32 bit.
        assert_eq!(domain(""), 0x811c_9dc5);
        assert_eq!(domain("a"), 0x050c_5d7e);
        assert_eq!(domain("foobar"), 0x31f0_b262);
    }
}
