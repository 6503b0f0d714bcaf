//! The aggregator's stages and what connects them; the only file that names every stage.
//!
//! Takes a configuration and, where there is one, the file to follow; each further configuration goes from there to
//! every stage by that stage's one channel. Runs until the end is requested. Then only the collector stops; the others
//! follow when their input closes, each handing on what it has.

use crate::{
    api::{Api, Aside, Desk},
    collector::{Collector, Limits},
    config::Config,
    join::{Inputs, Join, Objects, Order, Question},
    metrics::Metrics,
    outlets::Outlets,
    reload::Reload,
};
use anyhow::{Context, Result};
use flow_common::{
    daemon::{Admin, LogLevel, Readiness, Shutdown, allow_open_files},
    k8s::folder::{self, Folder},
    net::{Listener, TlsServer},
};
use prometheus_client::registry::Registry;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Read buffers between the collector and the table; beyond them senders wait.
const BUFFERS: usize = 64;
/// Looks at the folder of objects that wait to be taken in.
const LOOKS: usize = 4;
/// Orders to the table that wait: a change of the configuration is rare.
const ORDERS: usize = 1;
/// Questions to the table that wait; beyond them whoever asks does.
const QUESTIONS: usize = 4;
/// What `/version` answers.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything is bound and nothing runs yet.
#[derive(Debug)]
pub struct Pipeline {
    config: Config,
    /// Where the configuration came from, if it is to be followed.
    file: Option<PathBuf>,
    level: LogLevel,
    listener: Listener,
    admin: Option<Admin>,
    api: Option<Api>,
    token_file: watch::Sender<Option<PathBuf>>,
    questions: mpsc::Receiver<Question>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Pipeline {
    /// Binds every port and reads every certificate, so that what is wrong is said at the start.
    /// `level` is what changes of the configuration and the API set.
    pub async fn bind(config: Config, level: LogLevel) -> Result<Pipeline> {
        allow_files(&config);
        let tls = config.tls_files().map(|files| TlsServer::load(&files)).transpose()?;
        let listener = Listener::bind(config.listen, config.transport.0, tls.as_ref()).await?;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let readiness = Readiness::new();
        let registry = Arc::new(registry);
        let admin = match config.admin {
            Some(addr) => Some(Admin::bind(addr, registry.clone(), readiness.clone(), VERSION).await?),
            None => None,
        };
        let (token_file, asked) = watch::channel(config.api_token.clone());
        let (asking, questions) = mpsc::channel(QUESTIONS);
        let desk = Desk {
            questions: asking,
            aside: Aside::default(),
            metrics: metrics.clone(),
            registry,
            readiness: readiness.clone(),
            level: level.clone(),
            token_file: asked,
            version: VERSION,
        };
        let api = Api::bind(&config, desk).await?;
        Ok(Pipeline { config, file: None, level, listener, admin, api, token_file, questions, readiness, metrics })
    }

    /// Follows the file that the configuration came from.
    pub fn follow(mut self, file: PathBuf) -> Pipeline {
        self.file = Some(file);
        self
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
        let Pipeline { config, file, level, listener, admin, api, token_file, questions, readiness, metrics } = self;
        tracing::info!("receiving by {} on {}", config.transport.0, listener.local()?);
        if let Some(addr) = admin.as_ref().and_then(|admin| admin.local().ok()) {
            tracing::info!("metrics and health on {addr}");
        }
        if let Some(api) = &api {
            tracing::info!("the API is on https://{}", api.local());
        }
        let mut outlets = Outlets::new(metrics.clone());
        let (first, _) = order(&config, None, &mut outlets).await;
        let (limits, limited) = watch::channel(config.limits());
        let (orders, to_table) = mpsc::channel(ORDERS);
        let (output, messages) = mpsc::channel(BUFFERS);
        let inputs = Inputs { messages, orders: to_table, questions };
        let mut joining = tokio::spawn(Join::new(first, metrics.table.clone()).run(inputs));
        let (served, serving) = Shutdown::new();
        let api = api.map(|api| tokio::spawn(api.run(serving.clone())));
        let admin = admin.map(|admin| tokio::spawn(admin.run(serving)));
        let collecting = readiness.condition("collector");
        collecting.holds();

        let mut conductor = Conductor { running: config, outlets, orders, limits, token_file, level };
        let collector = Collector { output, limits: limited, metrics: metrics.collector.clone() };
        let table = tokio::select! {
            () = collector.run(listener, shutdown) => None,
            () = conductor.conduct(file, &metrics) => None,
            // Only if it failed: what is received from here on would be acknowledged and gone.
            ended = &mut joining => Some(ended),
        };

        collecting.fails("the process ends");
        let Conductor { outlets, orders, .. } = conductor;
        drop(orders);
        let table = match table {
            Some(ended) => ended,
            None => joining.await,
        };
        outlets.finish().await?;
        served.request();
        if let Some(api) = api {
            api.await.context("the API's task failed")?;
        }
        if let Some(admin) = admin {
            admin.await.context("the admin port's task failed")?;
        }
        table.context("the table's task failed")
    }
}

/// Hands each further configuration to the stages.
struct Conductor {
    running: Config,
    outlets: Outlets,
    orders: mpsc::Sender<Order>,
    limits: watch::Sender<Limits>,
    token_file: watch::Sender<Option<PathBuf>>,
    level: LogLevel,
}

impl Conductor {
    /// Follows the file for ever.
    async fn conduct(&mut self, file: Option<PathBuf>, metrics: &Metrics) {
        if let Some(path) = file {
            let (output, mut configs) = mpsc::channel(ORDERS);
            let reload = Reload { path, running: self.running.clone(), metrics: metrics.reloads.clone() };
            tokio::spawn(reload.run(output));
            while let Some(config) = configs.recv().await {
                self.apply(config).await;
                metrics.reloads.taken.inc();
            }
        }
        std::future::pending::<()>().await;
    }

    async fn apply(&mut self, config: Config) {
        if config.log_level != self.running.log_level
            && let Err(error) = self.level.set(&config.log_level)
        {
            tracing::warn!("logLevel: {error}");
        }
        if config.open_files() != self.running.open_files() {
            allow_files(&config);
        }
        let limits = config.limits();
        // Sessions look at the time only where it is another one.
        self.limits.send_if_modified(|running| std::mem::replace(running, limits) != limits);
        self.token_file.send_replace(config.api_token.clone());
        let (order, obeyed) = order(&config, Some(&self.running), &mut self.outlets).await;
        // The table's task outlives this one.
        let _ = self.orders.send(order).await;
        let _ = obeyed.await;
        self.running = config;
    }
}

fn allow_files(config: &Config) {
    let of = format!("maxSessions ({}) with ports and sinks", config.max_sessions);
    allow_open_files(config.open_files(), &of, "set maxSessions lower");
}

/// What the table's task is told of a configuration that follows another, and what it answers when that is in force.
async fn order(config: &Config, before: Option<&Config>, outlets: &mut Outlets) -> (Order, oneshot::Receiver<()>) {
    let same_folder = before.map_or(config.objects.is_none(), |before| before.objects == config.objects);
    let objects = match &config.objects {
        _ if same_folder => None,
        None => Some(None),
        Some(path) => Some(Some(objects(path).await)),
    };
    let (obeyed, answer) = oneshot::channel();
    let order = Order { table: config.table(), outlets: outlets.apply(config), objects, obeyed };
    (order, answer)
}

/// The folder's objects as they are now, and their changes. A folder may be large and its disk slow, so that others go
/// on meanwhile.
async fn objects(path: &Path) -> Objects {
    let mut folder = Folder::new(path);
    let (output, further) = mpsc::channel(LOOKS);
    let looked = tokio::task::spawn_blocking(move || {
        let first = folder.look();
        (folder, first)
    });
    let (folder, first) = looked.await.expect("looking at a folder does not panic");
    tokio::spawn(folder::run(folder, output));
    (first, further)
}
