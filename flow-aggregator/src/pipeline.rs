//! The aggregator's stages and what connects them; the only file that names every stage.
//!
//! Takes a configuration; runs until the end is requested. Then only the collector stops; the others follow when their
//! input closes, each handing on what it has.

use crate::{
    aggregate::Aggregate,
    collector::Collector,
    config::{Config, RecordFormat},
    join::{Join, Outlet},
    metrics::Metrics,
    sinks::{IpfixSink, JsonSink, LogSink, Name, Queue, Sink, run},
};
use anyhow::{Context, Result};
use flow_common::{
    daemon::{Admin, Readiness, Shutdown},
    k8s::folder::{self, Folder},
    net::{Listener, TlsServer},
};
use prometheus_client::registry::Registry;
use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};
use tokio::{sync::mpsc, task::JoinSet};

/// Read buffers between the collector and the table; beyond them senders wait.
const BUFFERS: usize = 64;
/// Looks at the folder of objects that wait to be taken in.
const LOOKS: usize = 4;
/// What `/version` answers.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything is bound and nothing runs yet.
#[derive(Debug)]
pub struct Pipeline {
    config: Config,
    listener: Listener,
    admin: Option<Admin>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Pipeline {
    /// Binds every port and reads every certificate, so that what is wrong is said at the start.
    pub async fn bind(config: Config) -> Result<Pipeline> {
        let tls = config.tls_files().map(|files| TlsServer::load(&files)).transpose()?;
        let listener = Listener::bind(config.listen, config.transport.0, tls.as_ref()).await?;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let readiness = Readiness::new();
        let admin = match config.admin {
            Some(addr) => Some(Admin::bind(addr, Arc::new(registry), readiness.clone(), VERSION).await?),
            None => None,
        };
        Ok(Pipeline { config, listener, admin, readiness, metrics })
    }

    /// Where agents' records are received.
    pub fn listens(&self) -> Result<SocketAddr> {
        self.listener.local().context("the listener has no address")
    }

    /// Where metrics are served, if anywhere.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|admin| admin.local().ok())
    }

    /// Runs every stage until the end is requested and everything is delivered or given up.
    pub async fn run(self, shutdown: Shutdown) -> Result<()> {
        let Pipeline { config, listener, admin, readiness, metrics } = self;
        tracing::info!("receiving by {} on {}", config.transport.0, listener.local()?);
        let mut sinks = JoinSet::new();
        let outlets = sinks_of(&config, &metrics, &mut sinks);
        let (output, input) = mpsc::channel(BUFFERS);
        let mut join = Join::new(Aggregate::new(&config.table()), outlets, metrics.table.clone());
        if let Some(path) = &config.objects {
            join = follow(join, path);
        }
        let joining = tokio::spawn(join.run(input));
        let (served, serving) = Shutdown::new();
        let admin = admin.map(|admin| tokio::spawn(admin.run(serving)));
        let collecting = readiness.condition("collector");
        collecting.holds();

        let collector =
            Collector { output, max_sessions: config.max_sessions as usize, metrics: metrics.collector.clone() };
        collector.run(listener, shutdown).await;

        collecting.fails("the process ends");
        joining.await.context("the table's task failed")?;
        while let Some(ended) = sinks.join_next().await {
            ended.context("a sink's task failed")?;
        }
        served.request();
        if let Some(admin) = admin {
            admin.await.context("the admin port's task failed")?.context("the admin port failed")?;
        }
        Ok(())
    }
}

/// The table knows the folder's objects before the first flow, and follows their changes.
fn follow(join: Join, path: &Path) -> Join {
    let mut folder = Folder::new(path);
    let first = folder.look();
    let (output, further) = mpsc::channel(LOOKS);
    tokio::spawn(folder::run(folder, output));
    join.follow(first, further)
}

/// Starts the sinks that the configuration names.
fn sinks_of(config: &Config, metrics: &Metrics, tasks: &mut JoinSet<()>) -> Vec<Outlet> {
    let mut starting = Starting { config, metrics, tasks, outlets: Vec::new() };
    if let Some(address) = config.collector_address() {
        match config.record_format {
            RecordFormat::Ipfix => {
                let domain = config.domain().unwrap_or_else(random_domain);
                tracing::info!("sending IPFIX to {address} as observation domain {domain}");
                starting.start("ipfix", IpfixSink::new(address, domain, config.extended));
            }
            RecordFormat::Json => {
                tracing::info!("sending JSON to {address}");
                starting.start("json", JsonSink::new(address, config.extended));
            }
        }
    }
    if config.logger_enable {
        starting.start("log", LogSink::new(config.logger_path.clone(), config.extended));
    }
    if starting.outlets.is_empty() {
        tracing::warn!("no sink is enabled (flowCollector.enable, flowLogger.enable): joined flows go nowhere");
    }
    starting.outlets
}

struct Starting<'a> {
    config: &'a Config,
    metrics: &'a Metrics,
    tasks: &'a mut JoinSet<()>,
    outlets: Vec<Outlet>,
}

impl Starting<'_> {
    fn start(&mut self, name: &'static str, sink: impl Sink) {
        let (queue, receiver) = Queue::new(self.config.sink_queue as usize);
        let metrics = self.metrics.sink(name);
        self.tasks.spawn(run(Name(name), sink, receiver, metrics.clone()));
        self.outlets.push(Outlet { queue, metrics });
    }
}

/// Drawn at each start: the hasher's keys come from the system's randomness.
fn random_domain() -> u32 {
    RandomState::new().hash_one(0) as u32
}
