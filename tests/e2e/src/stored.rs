//! A modern ClickHouse beside the aggregator, and whether its rows are the joined flows.
//!
//! Takes the lab; gives what the aggregator is configured with, and the rows' numbers to compare with what it logged.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use interop::{Age, ClickHouse};
use serde::Serialize;

use crate::joined::Record;
use crate::lab::Lab;
use crate::topology::Host;
use crate::wait::eventually;

/// How long the server may take to come up, and the last rows to be there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server.
#[derive(Debug)]
pub struct Stored<'lab> {
    lab: &'lab Lab,
    server: ClickHouse,
    child: Child,
}

/// What is there, beside what was joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Rows of the table.
    pub rows: u64,
    /// Flows that they are of.
    pub flows: u64,
    /// Flows whose rows are not what was logged: their ids.
    pub different: Vec<u64>,
}

/// Rows of a flow: how many, the last totals, the sums of the deltas, both ways.
type Numbers = [u64; 9];

impl<'lab> Stored<'lab> {
    /// Starts it in the aggregator's namespace.
    pub fn start(lab: &'lab Lab) -> Result<Stored<'lab>> {
        let folder = lab.path("clickhouse");
        std::fs::create_dir(&folder)?;
        let server = ClickHouse::prepare(Age::Modern, &folder, None)?;
        let namespace = lab.namespace(&Host::Collector)?;
        let child = namespace.spawn(&mut server.command()?)?;
        let stored = Stored { lab, server, child };
        eventually(PATIENCE, || stored.ask("SELECT 1").map(drop)).with_context(|| stored.server.log())?;
        Ok(stored)
    }

    /// What the aggregator is configured with.
    pub fn settings(&self) -> String {
        let url = self.server.addr("tcp");
        format!("clickHouse: {{enable: true, commitInterval: 1s, databaseURL: \"tcp://{url}\"}}\n")
    }

    /// Compares rows and records, flow by flow, as they are now.
    pub fn compare(&self, records: &[Record]) -> Result<Comparison> {
        let rows = self.ask(
            "SELECT flowId, count(), max(packetTotalCount), max(octetTotalCount), max(reversePacketTotalCount), \
             max(reverseOctetTotalCount), sum(packetDeltaCount), sum(octetDeltaCount), sum(reversePacketDeltaCount), \
             sum(reverseOctetDeltaCount) FROM flows GROUP BY flowId",
        )?;
        let mut stored = BTreeMap::new();
        for line in rows.lines() {
            let numbers = line.split('\t').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
            let [flow, numbers @ ..] = numbers.as_slice() else { continue };
            stored.insert(*flow, Numbers::try_from(numbers)?);
        }
        let logged = logged(records);
        let all = stored.keys().chain(logged.keys()).copied();
        let mut different: Vec<u64> = all.filter(|flow| stored.get(flow) != logged.get(flow)).collect();
        different.sort_unstable();
        different.dedup();
        let rows = stored.values().map(|[rows, ..]| rows).sum();
        Ok(Comparison { rows, flows: stored.len() as u64, different })
    }

    fn ask(&self, sql: &str) -> Result<String> {
        self.lab.namespace(&Host::Collector)?.within(|| self.server.ask(sql))?
    }
}

impl Drop for Stored<'_> {
    fn drop(&mut self) {
        // Both fail only for one that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn logged(records: &[Record]) -> BTreeMap<u64, Numbers> {
    let mut flows = BTreeMap::<u64, Numbers>::new();
    for record in records {
        let [rows, totals @ .., a, b, c, d] = flows.entry(record.flow_id).or_default();
        *rows += 1;
        let flat =
            |[sent, answered]: [crate::truth::Count; 2]| [sent.packets, sent.bytes, answered.packets, answered.bytes];
        for (total, new) in totals.iter_mut().zip(flat(record.totals())) {
            *total = new.max(*total);
        }
        for (delta, new) in [a, b, c, d].into_iter().zip(flat(record.deltas())) {
            *delta += new;
        }
    }
    flows
}
