//! `flow-agent drops`: what the kernel dropped by reason, interface and place, and the flows that did not come through.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::text::{bytes, grouped, table};
use super::{Output, Socket, client, put};
use crate::api::{DeniedFlow, DropsReply, Reply, Request};
use crate::doctor::DropSite;

/// What `drops` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

const SITES: [&str; 6] = ["REASON", "MEANS", "INTERFACE", "FUNCTION", "PACKETS", "BYTES"];
const FLOWS: [&str; 9] =
    ["SOURCE", "DESTINATION", "PROTO", "VERDICT", "PACKETS", "DROPPED", "REASON", "INTERFACE", "FUNCTION"];

/// Asks the agent and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut replies = client::ask(&options.socket.path()?, &Request::Drops)?;
    let Some(Reply::Drops(drops)) = replies.next()? else {
        anyhow::bail!("the agent told of no drops; is it of another version?");
    };
    match options.output {
        Output::Table => put(&screen(&drops))?,
        Output::Json => put(&format!("{}\n", serde_json::to_string_pretty(&drops)?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The screen.
pub fn screen(reply: &DropsReply) -> String {
    let drops = &reply.drops;
    let mut text = String::new();
    if let Some(failure) = &drops.failure {
        let _ = writeln!(text, "Drops are not told of: {failure}");
    }
    if !drops.sites.is_empty() {
        text.push_str(&table(&SITES, &[4, 5], &drops.sites.iter().map(site).collect::<Vec<_>>()));
    } else if drops.failure.is_none() {
        text.push_str("Nothing was dropped.\n");
    }
    let [no_room, nested] = drops.unplaced;
    if no_room + nested > 0 {
        let _ = writeln!(text, "and {} packets that are in no line", grouped(no_room + nested));
    }
    if !reply.flows.is_empty() {
        text.push('\n');
        text.push_str(&table(&FLOWS, &[4, 5], &reply.flows.iter().map(flow).collect::<Vec<_>>()));
        let more = drops.denied.saturating_sub(reply.flows.len() as u64);
        if more > 0 {
            let _ = writeln!(text, "and {} more", grouped(more));
        }
    }
    text
}

fn site(site: &DropSite) -> Vec<String> {
    vec![
        site.reason.clone(),
        site.class.clone(),
        site.interface.clone(),
        site.location.clone(),
        grouped(site.tally.packets),
        bytes(site.tally.bytes),
    ]
}

fn flow(flow: &DeniedFlow) -> Vec<String> {
    let row = &flow.row;
    vec![
        row.src.name(),
        row.dst.name(),
        row.protocol_name(),
        row.verdict.clone(),
        format!("{} / {}", grouped(row.forward[0]), grouped(row.reverse[0])),
        grouped(flow.dropped),
        flow.reason.clone(),
        flow.interface.clone(),
        flow.location.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::api::{End, Row};
    use crate::doctor::{Drops, Tally};

    fn end(addr: &str, port: u16, pod: &str) -> End {
        let namespace = if pod.is_empty() { "" } else { "shop" };
        End {
            addr: addr.parse().ok(),
            port: Some(port),
            namespace: namespace.into(),
            pod: pod.into(),
            node: String::new(),
        }
    }

    #[test]
    fn places_and_flows_are_told() {
        let site = DropSite {
            reason: "NETFILTER_DROP".into(),
            class: "rule".into(),
            interface: "veth1a2b3c".into(),
            location: "nft_do_chain [nf_tables]".into(),
            tally: Tally { packets: 12_345, bytes: 740_700 },
        };
        let row = Row {
            src: end("10.0.1.2", 40_000, "web-0"),
            dst: end("10.0.2.2", 5_432, ""),
            protocol: 6,
            verdict: "dropped".into(),
            forward: [4, 240],
            ..Row::default()
        };
        let denied = DeniedFlow {
            row,
            dropped: 4,
            reason: site.reason.clone(),
            interface: site.interface.clone(),
            location: site.location.clone(),
        };
        let queue = DropSite {
            reason: "QDISC_DROP".into(),
            class: "failure".into(),
            interface: "eth0".into(),
            location: "__dev_queue_xmit".into(),
            tally: Tally { packets: 7, bytes: 10_500 },
        };
        let drops = Drops { sites: vec![site, queue], denied: 3, unplaced: [0, 2], ..Drops::default() };
        assert_snapshot!(screen(&DropsReply { drops, flows: vec![denied] }));
    }

    #[test]
    fn without_drops_that_is_said() {
        assert_eq!(screen(&DropsReply::default()), "Nothing was dropped.\n");
        let drops = Drops { failure: Some("not permitted".into()), ..Drops::default() };
        assert_eq!(screen(&DropsReply { drops, flows: Vec::new() }), "Drops are not told of: not permitted\n");
    }
}
