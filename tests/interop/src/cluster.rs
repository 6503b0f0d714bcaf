//! Two ClickHouse servers that are one cluster, as their configuration has it: who belongs together, what each is in it,
//! and, of old ones, the ZooKeeper by which they agree. Modern ones, out of a library, can neither replicate nor run a
//! statement ON CLUSTER: they share nothing but that each can ask the other.

use std::time::Duration;

use anyhow::Result;

use crate::Certificates;
use crate::clickhouse::{Age, ClickHouse};
use crate::keeper::Keeper;
use crate::process::free_port;
use crate::wait::eventually;

/// How the two belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Each has rows of its own.
    Shards,
    /// Both have the same rows.
    Replicas,
}

/// The servers, up.
#[derive(Debug)]
pub struct Cluster {
    /// In the order of their numbers.
    pub servers: [ClickHouse; 2],
    _keeper: Option<Keeper>,
    _certificates: Certificates,
}

impl Cluster {
    /// What it is called in `remote_servers`.
    pub const NAME: &str = "flows";

    /// Starts it.
    pub fn start(age: Age, parts: Parts) -> Result<Cluster> {
        let certificates = Certificates::new()?;
        let keeper = (age == Age::Old).then(Keeper::start).transpose()?;
        let mut servers = [ClickHouse::new(age)?, ClickHouse::new(age)?];
        let members = servers.each_ref().map(|server| server.addr("tcp").port());
        for (at, server) in servers.iter().enumerate() {
            let between = keeper.as_ref().map(replication).transpose()?.unwrap_or_default();
            server.configure(Some(&certificates), &(membership(parts, members, at + 1) + &between))?;
        }
        for server in &mut servers {
            server.start_again()?;
        }
        Ok(Cluster { servers, _keeper: keeper, _certificates: certificates })
    }

    /// Waits until a check holds on both servers: what one has the other hears of a moment later.
    pub fn both(&self, patience: Duration, check: impl Fn(&ClickHouse) -> Result<()>) -> Result<()> {
        self.servers.iter().try_for_each(|server| eventually(patience, || check(server)))
    }
}

/// Which servers there are, and which of them this one is.
fn membership(parts: Parts, members: [u16; 2], number: usize) -> String {
    let replicas = members.map(|port| format!("<replica><host>127.0.0.1</host><port>{port}</port></replica>"));
    let (between, shard) = match parts {
        Parts::Shards => ("</shard><shard><internal_replication>true</internal_replication>", number),
        Parts::Replicas => ("", 1),
    };
    format!(
        "<remote_servers><{name}><shard><internal_replication>true</internal_replication>{replicas}</shard></{name}></remote_servers>\n\
         <macros><shard>{shard}</shard><replica>{number}</replica></macros>\n",
        name = Cluster::NAME,
        replicas = replicas.join(between),
    )
}

/// By what a server agrees with others, and where they fetch its rows.
fn replication(keeper: &Keeper) -> Result<String> {
    Ok(format!(
        "<zookeeper><node><host>127.0.0.1</host><port>{}</port></node><session_timeout_ms>4000</session_timeout_ms></zookeeper>\n\
         <distributed_ddl><path>/clickhouse/task_queue/ddl</path></distributed_ddl>\n\
         <interserver_http_port>{}</interserver_http_port><interserver_http_host>127.0.0.1</interserver_http_host>\n",
        keeper.addr.port(),
        free_port()?,
    ))
}
