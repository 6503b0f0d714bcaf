//! The agent's whole run: the only file that names every stage.
//!
//! Takes the configuration; starts sources, flows, export, API and admin port, and ends them in the order of the data: the sources
//! stop first, every flow is read and ended, export sends what is left. Everything runs on one thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use flow_common::daemon::{Admin, Readiness, Shutdown, allow_open_files};
use flow_common::k8s::Index;
use flow_common::net::TlsClient;
use flow_common::time::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::api::{self, Desk};
use crate::config::{Config, Source};
use crate::doctor::{self, Facts, Finding};
use crate::enrich::Enricher;
use crate::export::{self, Exporter};
use crate::flows::{Channels, Flows};
use crate::kernel::HooksConfig;
use crate::sources::{Kept, Objects, Sources, Tracking};
use crate::table::{Table, TableConfig};
use crate::{addresses, metrics};

/// Batches that wait for export; beyond it flows stay due in the table.
const BATCHES: usize = 8;

/// Questions of the API that wait.
const QUESTIONS: usize = 16;

/// Kubernetes objects at most; a cluster of that size has 5,000 Nodes.
const OBJECTS: usize = 500_000;

/// How long export may take to send what is left when the agent ends.
const FLUSH: Duration = Duration::from_secs(5);

/// Observes and exports until a signal ends it.
pub async fn run(config: Config) -> Result<()> {
    let shutdown = Shutdown::on_signals().context("cannot wait for signals")?;
    let node = node_name(&config);
    let of = format!("maxInterfaces ({})", config.max_interfaces);
    allow_open_files(config.open_files(), &of, "set maxInterfaces lower");
    // What may be refused comes before the kernel is touched.
    if let Some(Finding { what, remedy }) = doctor::missing_rights(config.source == Source::Ebpf) {
        bail!("{what}: {remedy}");
    }
    config.tls_files().map(|files| TlsClient::load(&files)).transpose()?;
    let listener = api::bind(&config.api_socket).await?;
    let (facts_in, facts) = watch::channel(Arc::new(Facts::default()));
    let readiness = Readiness::new();
    let attached = readiness.condition("kernel");
    let admin = match config.admin {
        Some(addr) => {
            let registry = Arc::new(metrics::registry(facts.clone()));
            Some(Admin::bind(addr, registry, readiness, env!("CARGO_PKG_VERSION")).await?)
        }
        None => None,
    };

    let (batches_in, batches) = mpsc::channel(BATCHES);
    let (questions_in, questions) = mpsc::channel(QUESTIONS);
    let (addresses_in, addresses) = mpsc::channel(1);
    let (status_in, export) = watch::channel(doctor::Export::default());
    let channels = Channels { batches: batches_in, questions, addresses, facts: facts_in, export };
    let flows = start(&config, &node, channels)?;
    attached.holds();

    let exporter = Exporter::new(&config, &node, status_in, facts);
    let export = tokio::spawn(export::run(exporter, batches));
    tokio::spawn(addresses::run(addresses_in, shutdown.clone()));
    let desk = Desk { questions: questions_in, window: config.active_timeout, extended: config.extended };
    let api = tokio::spawn(api::run(listener, desk, shutdown.clone()));
    if let Some(admin) = admin {
        tokio::spawn(admin.run(shutdown.clone()));
    }
    tracing::info!("observing the flows of Node {node}; records go to {}", config.collector);
    // Returns at the end with every flow handed to export, whose input is closed by that.
    flows.run(shutdown).await;
    if tokio::time::timeout(FLUSH, export).await.is_err() {
        tracing::warn!("the collector did not take what was left within {} s", FLUSH.as_secs());
    }
    let _ = api.await;
    let _ = std::fs::remove_file(&config.api_socket);
    Ok(())
}

/// Opens connection tracking before the programs, so that no flow begins without its connection being known.
fn start(config: &Config, node: &str, channels: Channels) -> Result<Flows> {
    let now: Timestamp = SystemTime::now().into();
    let mut index = Index::new(OBJECTS);
    let (objects, changes) = Objects::open(config.objects.as_deref());
    for change in changes {
        index.change(change, now);
    }
    // A folder that knows this Node makes it a cluster's; another one only names addresses.
    let in_cluster = index.nodes().any(|known| &*known.name == node);
    let enricher = Enricher::new(node, in_cluster, index);
    let kept = Kept::open(config);
    // Where an agent before has left its maps, the counting is as old as they are.
    let born = kept.born().unwrap_or(now);
    let hooks = (config.source != Source::Conntrack).then(|| hooks(config));
    let mut tracking = Tracking::open(hooks, config.zones.clone().into());
    let mut table = Table::new(
        TableConfig {
            node: node.to_owned(),
            max_flows: config.max_flows,
            active_timeout: config.active_timeout,
            idle_timeout: config.idle_timeout,
            timestamps: tracking.has_timestamps(),
            inherits: kept.born().is_some(),
            keeps: kept.keeps(),
        },
        born,
    );
    let mut faults = Vec::new();
    if config.source != Source::Conntrack {
        tracking.read(&mut table, now, &mut faults);
    }
    faults.iter().for_each(|fault| tracing::warn!("{fault}"));
    let mut sources = Sources::open(config, kept, tracking, objects, now)?;
    sources.adopt(&mut table, now);
    Ok(Flows::new(node.to_owned(), sources, table, enricher, channels))
}

/// The ring of ends is larger: the kernel forgets connections in bursts of tens of thousands.
fn hooks(config: &Config) -> HooksConfig {
    let end_ring_bytes = config.ring_bytes.saturating_mul(4);
    HooksConfig { new_ring_bytes: config.ring_bytes, end_ring_bytes, only: None }
}

/// As configured, else as the Pod was told, else the host's own.
fn node_name(config: &Config) -> String {
    let configured = Some(config.node_name.clone()).filter(|name| !name.is_empty());
    let told = || std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    configured.or_else(told).or_else(host).unwrap_or_else(|| "unknown".to_owned())
}
