//! The sinks that run: started, changed and stopped as the configuration says.
//!
//! Takes the sinks that are wanted; gives the table's task the outlets to hand batches to. A sink whose settings did not
//! change is not touched. One that changed keeps its queue: what waits goes to the new destination. One that is not
//! wanted any more delivers what waits within a few seconds, the rest is counted as dropped.

use crate::{
    config::{Config, Mode, RecordFormat},
    metrics::{Metrics, SinkMetrics},
    sinks::{self, IpfixSettings, JsonSettings, LogSettings, Peer, Queue, Rotation, Spec},
};
use anyhow::{Context, Result};
use flow_common::record::Content;
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

/// A sink's queue and what is counted of it. When the last holder drops it, the sink ends.
#[derive(Debug)]
pub struct Outlet {
    /// What the sink is called.
    pub name: &'static str,
    /// Its queue.
    pub queue: Queue,
    /// Its numbers.
    pub metrics: SinkMetrics,
}

/// All sinks that run.
#[derive(Debug)]
pub struct Outlets {
    metrics: Metrics,
    running: BTreeMap<&'static str, Running>,
    /// Sinks that ended or are about to: the next one of the name waits for that.
    ending: BTreeMap<&'static str, oneshot::Receiver<()>>,
    tasks: JoinSet<()>,
    /// Names us where the configuration does not; drawn once a process.
    domain: u32,
}

#[derive(Debug)]
struct Running {
    outlet: Arc<Outlet>,
    spec: watch::Sender<Spec>,
    ended: oneshot::Receiver<()>,
}

impl Outlets {
    /// None runs.
    pub fn new(metrics: Metrics) -> Outlets {
        Outlets {
            metrics,
            running: BTreeMap::new(),
            ending: BTreeMap::new(),
            tasks: JoinSet::new(),
            domain: random_domain(),
        }
    }

    /// Makes those run that the configuration wants, and no others. Gives all of them.
    pub fn apply(&mut self, config: &Config) -> Vec<Arc<Outlet>> {
        let wanted = wanted(config, self.domain);
        if wanted.is_empty() {
            tracing::warn!(
                "no sink is enabled (flowCollector.enable, clickHouse.enable, flowLogger.enable): flows go nowhere"
            );
        }
        let names: Vec<&str> = wanted.iter().map(|(spec, _)| spec.name()).collect();
        for (name, stopped) in self.running.extract_if(.., |name, _| !names.contains(name)) {
            tracing::info!("sink {name}: it is not wanted any more");
            self.ending.insert(name, stopped.ended);
        }
        for (spec, queue) in wanted {
            match self.running.get(spec.name()) {
                Some(running) => {
                    running.outlet.queue.bound(queue);
                    running.spec.send_if_modified(|current| {
                        let other = *current != spec;
                        *current = spec;
                        other
                    });
                }
                None => self.start(spec, queue),
            }
        }
        self.running.values().map(|running| running.outlet.clone()).collect()
    }

    /// Waits until every sink has ended. The table's task must have dropped its outlets.
    pub async fn finish(mut self) -> Result<()> {
        self.running.clear();
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a sink's task failed")?;
        }
        Ok(())
    }

    fn start(&mut self, spec: Spec, max: usize) {
        let name = spec.name();
        let (queue, receiver) = Queue::new(max);
        let metrics = self.metrics.sink(name);
        let (spec, settings) = watch::channel(spec);
        let (over, ended) = oneshot::channel();
        let earlier = self.ending.remove(name);
        let outlet = Arc::new(Outlet { name, queue, metrics: metrics.clone() });
        self.tasks.spawn(async move {
            if let Some(earlier) = earlier {
                // Gone without a word is over as well.
                let _ = earlier.await;
            }
            sinks::run(settings, receiver, metrics).await;
            drop(over);
        });
        self.running.insert(name, Running { outlet, spec, ended });
    }
}

/// The sinks that a configuration names, and how many flows may wait for each.
fn wanted(config: &Config, domain: u32) -> Vec<(Spec, usize)> {
    let queue = config.sink_queue as usize;
    let mut wanted = Vec::new();
    if let Some(address) = config.collector_address() {
        let name = Some(config.collector_tls_name.clone()).filter(|name| !name.is_empty());
        let peer = Peer { address, trust: config.collector_trust(), name };
        let extended = config.extended;
        let spec = match config.record_format {
            RecordFormat::Ipfix => Spec::Ipfix(IpfixSettings {
                peer,
                domain: config.domain().unwrap_or(domain),
                content: if config.mode == Mode::Proxy { Content::Proxied } else { Content::Joined },
                extended,
                max_message: Some(config.max_message as usize).filter(|max| *max != 0),
                template_refresh: u32::try_from(config.template_refresh.as_secs()).unwrap_or(u32::MAX),
            }),
            RecordFormat::Json => Spec::Json(JsonSettings { peer, extended }),
        };
        wanted.push((spec, queue));
    }
    if config.logger_enable {
        let settings = LogSettings {
            path: config.logger_path.clone(),
            extended: config.extended,
            format: config.logger_format,
            pretty: config.logger_pretty,
            filters: config.logger_filters.clone(),
            rotation: rotation(config),
        };
        wanted.push((Spec::Log(settings), queue));
    }
    if let Some(settings) = config.clickhouse() {
        wanted.push((Spec::ClickHouse(Box::new(settings)), config.clickhouse_queue as usize));
    }
    wanted
}

/// In each key 0 stands for no bound.
fn rotation(config: &Config) -> Rotation {
    let age = Duration::from_secs(u64::from(config.logger_max_age) * 86_400);
    Rotation {
        max_bytes: u64::from(config.logger_max_size) * 1_000_000,
        after: Some(config.logger_rotate_after).filter(|after| !after.is_zero()),
        backups: Some(config.logger_max_backups as usize).filter(|backups| *backups != 0),
        max_age: Some(age).filter(|age| !age.is_zero()),
        compress: config.logger_compress,
    }
}

/// The hasher's keys come from the system's randomness.
fn random_domain() -> u32 {
    RandomState::new().hash_one(0) as u32
}
