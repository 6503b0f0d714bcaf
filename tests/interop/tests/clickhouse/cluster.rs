//! Clusters of two servers: tables on both, rows of both through what spans them, and servers killed amid commits while
//! the way leads to the other one, as a Service's does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interop::wait::eventually;
use interop::{Age, ClickHouse, Cluster, Cut, Parts, Relay};

use crate::aggregator::{Agent, record};
use crate::failures::{draw, rows, sums};

/// Of a commit.
const FLOWS: u64 = 6_000;
/// Nothing here takes so long; a test that waits longer has failed.
const BOUND: Duration = Duration::from_secs(600);

/// The aggregator as shipped before a cluster, one server of which is reached at a time.
struct Served {
    cluster: Cluster,
    relay: Relay,
    aggregator: interop::Aggregator,
    agent: Agent,
    sent: u64,
    end: Instant,
}

impl Served {
    async fn start(cluster: Cluster) -> Result<Served> {
        let relay = Relay::start(cluster.servers[0].addr("tcp"), None).await?;
        let settings = format!(
            "clickHouse: {{enable: true, commitInterval: 1s, cluster: {}, databaseURL: \"tcp://{}\"}}\n",
            Cluster::NAME,
            relay.addr
        );
        let aggregator = interop::Aggregator::start(&settings, &[])?;
        let agent = Agent::connect(aggregator.addr).await?;
        Ok(Served { cluster, relay, aggregator, agent, sent: 0, end: Instant::now() + BOUND })
    }

    fn lead_to(&self, number: usize) {
        self.relay.lead(self.cluster.servers[number].addr("tcp"));
    }

    async fn send(&mut self) -> Result<()> {
        self.agent.send((self.sent..self.sent + FLOWS).map(|flow| record(flow as u32))).await?;
        self.sent += FLOWS;
        Ok(())
    }

    fn wait(&self, holds: impl Fn() -> Result<()>) -> Result<()> {
        let logs = || {
            let servers = self.cluster.servers.each_ref().map(ClickHouse::log);
            format!("{}\n{}", self.aggregator.log(), servers.join("\n"))
        };
        eventually(self.end.saturating_duration_since(Instant::now()), holds).with_context(logs)
    }

    fn are_all_delivered(&self) -> Result<()> {
        let delivered = self.aggregator.sink("delivered_total")?;
        ensure!(delivered == self.sent, "{delivered} of {} flows are delivered", self.sent);
        Ok(())
    }

    /// How often a commit was not begun anew on another shard.
    fn refused_elsewhere(&self) -> usize {
        self.aggregator.log().matches("a commit was begun on shard").count()
    }

    /// A commit to a server that is killed amid it, or just behind it, and that nobody hears of. The way leads to the
    /// other server then.
    async fn strike(&mut self, struck: usize, seed: &mut u64) -> Result<()> {
        let before = self.relay.sent();
        self.relay.cut(Cut::Answer(20_000));
        self.send().await?;
        self.relay.until_sent(before + 20_000).await.context("no commit is begun")?;
        // Whoever tries again finds nobody until the way leads to the other one.
        self.relay.lead(([127, 0, 0, 1], 1).into());
        tokio::time::sleep(Duration::from_micros(draw(seed, 50_000))).await;
        self.cluster.servers[struck].kill();
        ensure!(self.are_all_delivered().is_err(), "nobody was to hear of it");
        self.lead_to(1 - struck);
        self.relay.mend();
        Ok(())
    }
}

/// Commits to either server in turn, each of which is killed amid one.
async fn killed_amid_commits(cluster: Cluster, age: Age, parts: Parts) -> Result<()> {
    let mut served = Served::start(cluster).await?;
    let mut seed = 88_172_645_463_325_252;
    for struck in [0, 1] {
        served.lead_to(struck);
        served.send().await?;
        served.wait(|| served.are_all_delivered())?;
        let before = served.refused_elsewhere();
        served.strike(struck, &mut seed).await?;
        match parts {
            // It is not begun anew on another shard, where nobody would know of it.
            Parts::Shards => served.wait(|| {
                ensure!(served.refused_elsewhere() > before, "nobody asks the other shard");
                Ok(())
            })?,
            // The other one has it, or takes it.
            Parts::Replicas => served.wait(|| served.are_all_delivered())?,
        }
        served.cluster.servers[struck].start_again()?;
        served.lead_to(struck);
        served.wait(|| served.are_all_delivered())?;
    }
    let left = served.end.saturating_duration_since(Instant::now());
    served.cluster.both(left, |server| {
        rows(server, served.sent, true)?;
        // An old server passes the views over where it has the rows of a repeated commit already.
        if age == Age::Modern { sums(server, served.sent) } else { Ok(()) }
    })?;
    // One that was killed fetches from the other what it missed.
    let expected = if parts == Parts::Shards { served.sent / 2 } else { served.sent };
    served.cluster.both(served.end.saturating_duration_since(Instant::now()), |server| {
        let own = server.number("SELECT toString(count()) FROM flows_local")?;
        ensure!(own == expected, "a server has {own} of {expected} rows");
        Ok(())
    })?;
    served.aggregator.end()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_killed_amid_commits_have_every_row_once() -> Result<()> {
    let cluster = Cluster::start(Age::Modern, Parts::Shards)?;
    for server in &cluster.servers {
        for statement in unreplicated() {
            server.ask(&statement)?;
        }
    }
    killed_amid_commits(cluster, Age::Modern, Parts::Shards).await
}

#[tokio::test(flavor = "multi_thread")]
async fn old_shards_killed_amid_commits_have_every_row_once() -> Result<()> {
    let cluster = Cluster::start(Age::Old, Parts::Shards)?;
    killed_amid_commits(cluster, Age::Old, Parts::Shards).await
}

#[tokio::test(flavor = "multi_thread")]
async fn old_replicas_killed_amid_commits_have_every_row_once() -> Result<()> {
    let cluster = Cluster::start(Age::Old, Parts::Replicas)?;
    killed_amid_commits(cluster, Age::Old, Parts::Replicas).await
}

/// The statements that the aggregator makes a cluster's tables with, for a server by itself, whose tables have no
/// replicas. They are for this cluster and database.
fn unreplicated() -> Vec<String> {
    const STATEMENTS: &str = include_str!(
        "../../../../flow-aggregator/src/sinks/clickhouse/snapshots/flow_aggregator__sinks__clickhouse__ddl__tests__statements_for_a_cluster.snap"
    );
    let text = STATEMENTS.rsplit("---\n").next().unwrap_or_default();
    let alone = text
        .replace(&format!(" ON CLUSTER `{}`", Cluster::NAME), "")
        .replace("replicated_deduplication_window", "non_replicated_deduplication_window");
    alone.trim().split(";\n\n").map(without_replicas).collect()
}

/// `ENGINE = ReplicatedX(PATH, REPLICA, Y)` becomes `ENGINE = X(Y)`.
fn without_replicas(statement: &str) -> String {
    let Some((before, engine)) = statement.split_once("ENGINE = Replicated") else { return statement.to_owned() };
    let (name, arguments) = engine.split_once('(').unwrap_or((engine, ""));
    let own = arguments.split_once("{replica}'").map_or(arguments, |(_, own)| own);
    format!("{before}ENGINE = {name}({}", own.trim_start_matches(", "))
}
