//! The accounting report: each flow's joined counters against nft's, each interface's packets against where they went.
//! Takes the product and what was sent; gives lines for people or one JSON document. Right means exactly equal.

use anyhow::Result;
use serde::Serialize;

use crate::cases::Done;
use crate::expect;
use crate::joined::Record;
use crate::lab::{Lab, Truth};
use crate::product::{Interface, Product};
use crate::stored::{Comparison, Stored};
use crate::topology::Node;
use crate::truth::Count;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every figure is right.
    pub right: bool,
    /// A line a flow.
    pub flows: Vec<Flow>,
    /// A line an interface of a Node.
    pub interfaces: Vec<Line>,
    /// Drops on both Nodes that the kernel ran no program for, amid another's: a flow's dropped packets may lack them.
    pub missed_drops: u64,
    /// What is sent where this kernel can, but was not.
    pub skipped: Vec<String>,
    /// ClickHouse's rows beside the joined flows, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clickhouse: Option<Comparison>,
}

/// A flow's counters: of the originator, and of the responder.
#[derive(Debug, Serialize)]
pub struct Flow {
    /// What was sent, over which way, in which family.
    pub traffic: String,
    /// Who asked.
    pub source: String,
    /// Who answered.
    pub destination: String,
    /// By the joined record.
    pub joined: [Count; 2],
    /// By nft.
    pub counted: [Count; 2],
    /// Whether all of the record is as it must be.
    pub right: bool,
    /// What is not.
    pub difference: Option<String>,
}

/// An interface's counters.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Its Node.
    pub node: &'static str,
    /// What the agent says of it.
    #[serde(flatten)]
    pub interface: Interface,
    /// Whether the programs saw what the interface itself counted, and every packet is told of.
    pub right: bool,
}

impl Report {
    /// Compares everything as it is now.
    pub fn new(
        lab: &Lab,
        product: &Product<'_>,
        stored: Option<&Stored<'_>>,
        all: &[Done],
        skipped: &[String],
    ) -> Result<Self> {
        let (truth, records, missed_drops) = (lab.truth()?, product.joined().records()?, product.missed_drops()?);
        let flows = all.iter().map(|done| flow(done, &truth, &records, missed_drops)).collect::<Result<Vec<_>>>()?;
        let mut interfaces = Vec::new();
        for node in Node::ALL {
            let attached = product.facts(node)?.interfaces.into_iter().filter(|it| it.attached.is_some());
            interfaces.extend(attached.map(|interface| {
                let right = interface.own == interface.seen_by_hook && interface.told() == interface.seen;
                Line { node: node.name(), interface, right }
            }));
        }
        let clickhouse = stored.map(|stored| stored.compare(&records)).transpose()?;
        let right = flows.iter().all(|flow| flow.right)
            && interfaces.iter().all(|line| line.right)
            && clickhouse.as_ref().is_none_or(|it| it.different.is_empty());
        Ok(Self { right, flows, interfaces, missed_drops, skipped: skipped.to_vec(), clickhouse })
    }

    /// The report for people: what differs is marked, and named below.
    pub fn text(&self) -> String {
        let mut text = String::from("Flows: packets/bytes of the originator and of the responder\n");
        let label = |flow: &Flow| format!("{} > {}", flow.source, flow.destination);
        let traffic = self.flows.iter().map(|flow| flow.traffic.len()).max().unwrap_or_default();
        let ends = self.flows.iter().map(|flow| label(flow).len()).max().unwrap_or_default();
        for flow in &self.flows {
            let [sent, answered] = flow.joined.map(amount);
            let mark = if flow.right { "= nft" } else { "WRONG" };
            text += &format!("{:traffic$}  {:ends$}  {sent:>17} {answered:>17}  {mark}\n", flow.traffic, label(flow));
            if let Some(difference) = &flow.difference {
                text += &format!("    {difference}\n");
            }
        }
        if self.missed_drops > 0 {
            text +=
                &format!("{} drops came amid another's and were missed, as the kernel counted\n", self.missed_drops);
        }
        for reason in &self.skipped {
            text += &format!("skipped: {reason}\n");
        }
        text += "\nInterfaces: packets by their own counters (received and sent), and where they are\n";
        text += &format!(
            "{:7} {:14} {:>9} {:>9} {:>9} {:>9} {:>7}  \n",
            "NODE", "INTERFACE", "OWN", "SEEN", "ACCOUNTED", "ANNOTATED", "REASONS"
        );
        for Line { node, interface, right } in &self.interfaces {
            let lost: Count = interface.lost.iter().map(|loss| loss.tally).sum();
            text += &format!(
                "{node:7} {:14} {:>9} {:>9} {:>9} {:>9} {:>7}  {}\n",
                interface.name,
                interface.own.iter().sum::<u64>(),
                interface.seen.packets,
                interface.accounted.packets,
                interface.annotated.packets,
                lost.packets,
                if *right { "adds up" } else { "WRONG" }
            );
            for loss in interface.lost.iter().filter(|loss| loss.tally != Count::default()) {
                text += &format!("    {} {}\n", loss.tally.packets, loss.reason);
            }
        }
        if let Some(Comparison { rows, flows, different }) = &self.clickhouse {
            text += &match different.as_slice() {
                [] => format!("\nClickHouse: {rows} rows of {flows} flows, every number as it was joined\n"),
                wrong => format!("\nClickHouse: {rows} rows of {flows} flows; WRONG are those of flowId {wrong:?}\n"),
            };
        }
        text + &self.verdict()
    }

    fn verdict(&self) -> String {
        let flows = self.flows.iter().filter(|flow| flow.right).count();
        let interfaces = self.interfaces.iter().filter(|line| line.right).count();
        format!(
            "\n{flows} of {} flows equal nft's counters, {interfaces} of {} interfaces add up: {}\n",
            self.flows.len(),
            self.interfaces.len(),
            if self.right { "every figure is right" } else { "NOT every figure is right" }
        )
    }
}

fn flow(done: &Done, truth: &Truth, records: &[Record], missed_drops: u64) -> Result<Flow> {
    let difference = expect::holds(done, truth, records, missed_drops).err().map(|error| format!("{error:#}"));
    let last = records.iter().rfind(|record| expect::is_of(done, record));
    Ok(Flow {
        traffic: done.case.to_string(),
        source: done.host.to_string(),
        destination: done.case.way.server().to_string(),
        joined: last.map(Record::totals).unwrap_or_default(),
        counted: expect::counted(done, truth)?,
        right: difference.is_none(),
        difference,
    })
}

fn amount(count: Count) -> String {
    format!("{}/{}", count.packets, count.bytes)
}
