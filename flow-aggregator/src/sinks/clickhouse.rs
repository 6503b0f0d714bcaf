//! Joined flows as rows of ClickHouse.
//!
//! Takes a server and how its tables are to be; gathers rows and commits them together, each interval or when enough
//! are there. A commit that failed is repeated as it was, byte for byte, under the same token, by which a modern server
//! tells that it has it already. The parts: `columns` and `rows` make a block of flows, `frame` compresses it, `native`
//! and `http` send it, `ddl`, `schema` and `retention` look after the tables. Nothing here reads rows of flows back.

mod block;
mod columns;
mod ddl;
mod endpoint;
mod error;
mod frame;
mod http;
mod login;
mod native;
pub mod packet;
mod retention;
mod rows;
mod schema;
mod session;
pub mod wire;

pub use endpoint::{Endpoint, EndpointError, Scheme};
pub use error::{Error, Refusal};
pub use login::Login;
pub use retention::Room;
pub use session::Server;

use super::{Delivery, Sink, SinkError};
use crate::aggregate::Batch;
use block::Block;
use ddl::Dialect;
use flow_common::{record::Content, time::Timestamp};
use rows::{Common, Rows};
use schema::Ready;
use session::Session;
use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

/// What the configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The server.
    pub server: Server,
    /// On every server of this cluster.
    pub cluster: Option<String>,
    /// The UUID that rows bear; "" for none.
    pub cluster_uuid: String,
    /// Whether rows are compressed on the way.
    pub compress: bool,
    /// How long rows wait for others.
    pub interval: Duration,
    /// How long rows are kept; `None` for ever.
    pub ttl: Option<Duration>,
    /// How much room rows may take.
    pub room: Room,
    /// Whether rows bear the extended elements.
    pub extended: bool,
}

/// A server of ClickHouse.
#[derive(Debug)]
pub struct ClickHouseSink {
    settings: Settings,
    /// Told apart from every other process, and from this one after a restart.
    instance: u64,
    number: u64,
    ready: Option<Ready>,
    rows: Rows,
    /// When the rows are committed, from the first one on.
    due: Option<Instant>,
    /// Rows that are being sealed at the moment.
    sealing: usize,
    sealed: Option<Commit>,
    /// When room was looked at.
    look: Option<Instant>,
    warned: bool,
}

/// Rows whose insertion was begun: from now on nothing of it changes.
#[derive(Debug)]
struct Commit {
    into: String,
    block: Block,
    token: String,
    /// Of the server that it was first sent to, in a cluster.
    shard: Option<String>,
}

impl ClickHouseSink {
    /// Connects to nothing yet.
    pub fn new(settings: Settings) -> ClickHouseSink {
        let rows = Rows::new(settings.extended);
        ClickHouseSink {
            settings,
            // The hasher's keys come from the system's randomness.
            instance: RandomState::new().hash_one(0),
            number: 0,
            ready: None,
            rows,
            due: None,
            sealing: 0,
            sealed: None,
            look: None,
            warned: false,
        }
    }

    async fn connect(&self) -> Result<Session, SinkError> {
        self.settings.server.open().await.map_err(|error| self.fault(error))
    }

    fn fault(&self, error: Error) -> SinkError {
        SinkError::ClickHouse { server: self.settings.server.endpoint.to_string(), error: Box::new(error) }
    }

    /// Commits what was begun, or else what is gathered. Gives how many rows are delivered.
    async fn commit(&mut self) -> Result<u64, SinkError> {
        let Some(ready) = self.ready.clone() else { return Err(SinkError::Closed) };
        if self.sealed.is_none() {
            self.sealed = self.seal(&ready).await;
        }
        if self.sealed.is_none() {
            return Ok(0);
        }
        let mut session = self.connect().await?;
        if ready.layout.cluster.is_some() {
            // Each connection may lead to another server.
            let found = schema::shard(&mut session).await.map_err(|error| self.fault(error))?;
            let begun = self.sealed.as_mut().map(|commit| commit.shard.get_or_insert_with(|| found.clone()).clone());
            if let Some(begun) = begun.filter(|begun| *begun != found) {
                return Err(self.fault(Error::Shard { begun, found }));
            }
        }
        let Some(commit) = &self.sealed else { return Ok(0) };
        // Rows of a server's own gathering would have no token, and tables that rows are derived from must not be fed
        // twice by a repeat.
        let modern = [
            ("async_insert", "0"),
            ("insert_deduplicate", "1"),
            ("deduplicate_blocks_in_dependent_materialized_views", "1"),
            ("insert_deduplication_token", commit.token.as_str()),
        ];
        let settings = if ready.layout.dialect == Dialect::Modern { &modern[..] } else { &[] };
        session.insert(&commit.into, &commit.block, settings).await.map_err(|error| self.fault(error))?;
        let rows = commit.block.rows as u64;
        self.sealed = None;
        if self.look.is_none_or(|last| last.elapsed() >= retention::LOOK) {
            self.look = Some(Instant::now());
            let looked = retention::look(&mut session, &ready.layout, &self.settings.room).await;
            // The rows are there: whatever is wrong with room does not make their commit a failure.
            if let Err(error) = looked {
                tracing::warn!("{}: the oldest rows cannot be dropped: {error}", self.settings.server.endpoint);
            }
        }
        Ok(rows)
    }

    /// Makes a commit of the rows that are gathered, if there are any.
    async fn seal(&mut self, ready: &Ready) -> Option<Commit> {
        self.due = None;
        if self.rows.len() == 0 {
            return None;
        }
        let common = Common {
            inserted: Timestamp::from(SystemTime::now()).seconds(),
            cluster: self.settings.cluster_uuid.clone(),
            milliseconds: ready.milliseconds,
        };
        let (full, compress) = (self.rows.split(), self.settings.compress);
        self.sealing = full.rows;
        // Compressing takes a while, which other sinks' tasks should not wait for.
        let (full, (names, block)) = spawn_blocking(move || {
            let sealed = full.seal(&common, compress);
            (full, sealed)
        })
        .await
        .expect("compressing does not panic, and the runtime outlives its sinks");
        self.rows.recycle(full);
        let into = format!("INSERT INTO {} ({names})", ready.layout.inserted());
        self.number += 1;
        let token = format!("{:016x}-{}", self.instance, self.number);
        self.sealing = 0;
        Some(Commit { into, block, token, shard: None })
    }
}

impl Sink for ClickHouseSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let Settings { server, cluster, ttl, room, .. } = &self.settings;
        let mut session = self.connect().await?;
        let ready = schema::ensure(&mut session, &server.login.database, cluster.as_deref(), *ttl).await;
        let ready = ready.map_err(|error| self.fault(error))?;
        if ready.layout.dialect == Dialect::Plain && !std::mem::replace(&mut self.warned, true) {
            let fraction = if room.max_fraction.is_some() {
                ", and does not tell the size of its disk (clickHouse.retention.maxFraction has no effect)"
            } else {
                ""
            };
            tracing::warn!(
                "{}: a server before 22.3 does not tell repeated commits: rows may be there twice after a lost connection{fraction}",
                server.endpoint
            );
        }
        self.ready = Some(ready);
        Ok(())
    }

    async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
        let mut delivery = Delivery { through: from, delivered: 0, refused: 0, error: None };
        if batch.content() != Content::Joined {
            // The tables are of joined flows; those of mode Proxy come no more once it is off.
            let refused = (batch.len() - from) as u64;
            return Delivery { through: batch.len(), refused, ..delivery };
        }
        // This may be broken off in a commit, and the batch comes again then: nothing of it is taken before.
        let late = self.due.is_some_and(|due| due <= Instant::now());
        if self.sealed.is_some() || self.rows.is_full() || late {
            match self.commit().await {
                Ok(rows) => delivery.delivered = rows,
                Err(error) => return Delivery { error: Some(error), ..delivery },
            }
        }
        (delivery.through, delivery.refused) = self.rows.take(batch, from);
        self.due.get_or_insert_with(|| Instant::now() + self.settings.interval);
        delivery
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        if self.sealed.is_some() || self.rows.is_full() {
            return Ok(());
        }
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<u64, SinkError> {
        self.commit().await
    }

    fn held(&self) -> u64 {
        (self.rows.len() + self.sealing + self.sealed.as_ref().map_or(0, |commit| commit.block.rows)) as u64
    }

    async fn close(&mut self) {
        self.ready = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        aggregate::testing::batch_of,
        sinks::clickhouse::{ddl::Layout, rows::MOST_ROWS},
    };
    use flow_common::net::Trust;
    use tokio::{net::TcpListener, time::timeout};

    /// A sink of a server that answers nothing.
    fn sink(port: u16) -> ClickHouseSink {
        let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        let login = Login { database: "default".to_owned(), user: String::new(), password: String::new() };
        let server = Server { endpoint, login, trust: Trust::System, debug: false };
        let mut sink = ClickHouseSink::new(Settings {
            server,
            cluster: None,
            cluster_uuid: String::new(),
            compress: false,
            interval: Duration::from_secs(3_600),
            ttl: None,
            room: Room::default(),
            extended: true,
        });
        let layout = Layout { dialect: Dialect::Modern, database: "default".to_owned(), cluster: None, ttl: None };
        sink.ready = Some(Ready { layout, milliseconds: "UInt64" });
        sink
    }

    #[tokio::test]
    async fn a_delivery_that_is_broken_off_has_taken_nothing() {
        const BATCH: u16 = 16_384;
        let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sink = sink(deaf.local_addr().unwrap().port());
        let batch = batch_of(BATCH);
        for _ in 0..MOST_ROWS / usize::from(BATCH) {
            let delivery = timeout(Duration::from_secs(60), sink.deliver(&batch, 0)).await.expect("it only takes");
            assert_eq!((delivery.through, delivery.delivered), (batch.len(), 0));
        }
        assert_eq!(sink.held(), MOST_ROWS as u64);
        let more = timeout(Duration::from_millis(300), sink.deliver(&batch, 0)).await;
        assert!(more.is_err(), "the server answers nothing");
        assert_eq!(sink.held(), MOST_ROWS as u64, "of the batch that comes again nothing is taken");
    }
}
