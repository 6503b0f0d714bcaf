//! `flow-agent doctor`: one screen that says whether the numbers can be believed.
//!
//! Takes the running agent's [`Facts`] over the socket, or what can be told without an agent; prints them with their findings. Exit
//! status 0 if all is well, 1 with findings, 2 without an agent.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{self, AskError};
use super::text::{bytes, grouped, table};
use super::{Output, Socket, put};
use crate::api::{Reply, Request};
use crate::doctor::{Facts, Finding, Interface, Source, host_findings, judge};

/// What `doctor` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

/// Exit status with findings.
const WITH_FINDINGS: u8 = 1;

/// Exit status without an agent.
const WITHOUT_AGENT: u8 = 2;

/// What `-o json` prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What the agent knows; none if no agent answers.
    pub facts: Option<Facts>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Asks the agent, or looks at the host alone, and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    let diagnosis = diagnose(options)?;
    match options.output {
        Output::Table => put(&screen(&diagnosis))?,
        Output::Json => put(&format!("{}\n", serde_json::to_string_pretty(&diagnosis)?))?,
    }
    Ok(ExitCode::from(match &diagnosis {
        Diagnosis { facts: None, .. } => WITHOUT_AGENT,
        Diagnosis { findings, .. } if findings.is_empty() => 0,
        _ => WITH_FINDINGS,
    }))
}

fn diagnose(options: &Options) -> Result<Diagnosis> {
    let asked = client::ask(&options.socket.path()?, &Request::Doctor).and_then(|mut replies| replies.next());
    match asked {
        Ok(Some(Reply::Doctor(facts))) => Ok(Diagnosis { findings: judge(&facts), facts: Some(*facts) }),
        Ok(_) => anyhow::bail!("the agent gave no facts; is it of another version?"),
        Err(AskError::Nobody(path)) => {
            let what = format!("no agent answers at {}", path.display());
            let remedy = "start `flow-agent run`, or name its socket with --socket or its file with --config";
            let mut findings = vec![Finding::new(what, remedy)];
            findings.extend(host_findings());
            Ok(Diagnosis { facts: None, findings })
        }
        Err(error) => Err(error.into()),
    }
}

/// The screen.
pub fn screen(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    if let Some(facts) = &diagnosis.facts {
        text.push_str(&summary(facts));
        for feature in &facts.features {
            for sentence in &feature.refused {
                let _ = writeln!(text, "{:<10} {} not better: {sentence}", "", feature.name);
            }
        }
        text.push('\n');
        if facts.source == Source::Ebpf {
            text.push_str(&interfaces(&facts.interfaces));
        }
        for interface in &facts.interfaces {
            if let Some(refused) = &interface.refused {
                let _ = writeln!(text, "{} is not attached: {refused}", interface.name);
            }
        }
        text.push('\n');
    }
    for finding in &diagnosis.findings {
        let _ = writeln!(text, "warning: {}\n  remedy: {}", finding.what, finding.remedy);
    }
    if diagnosis.findings.is_empty() {
        text.push_str("All is well.\n");
    }
    text
}

fn summary(facts: &Facts) -> String {
    let mut lines = vec![
        ("Agent", format!("{}, Node {}, up {}", facts.version, facts.node, uptime(facts.uptime_seconds))),
        ("Kernel", kernel(facts)),
    ];
    let maps: Vec<String> = facts
        .maps
        .iter()
        .map(|fill| format!("{} {} of {}", fill.name, grouped(fill.used), grouped(fill.capacity)))
        .collect();
    lines.push(("Maps", maps.join(", ")));
    let flows = &facts.flows;
    lines.push((
        "Flows",
        format!("{} live, {} begun, {} ended early", grouped(flows.live), grouped(flows.begun), grouped(flows.evicted)),
    ));
    let features: Vec<String> = facts.features.iter().map(|it| format!("{} by {}", it.name, it.rung)).collect();
    lines.push(("Features", features.join(", ")));
    lines.push(("Conntrack", conntrack(facts)));
    lines.push(("Drops", drops(facts)));
    lines.push(("Names", objects(facts)));
    let export = &facts.export;
    let state = export.peer.as_ref().map_or("not connected".to_owned(), |peer| format!("connected to {peer}"));
    lines.push((
        "Export",
        format!("{}, {state}, {} records in {}", export.collector, grouped(export.records), bytes(export.octets)),
    ));
    lines.push((
        "Spool",
        format!(
            "{} of {}, {} unsent, {} lost",
            grouped(export.spooled),
            grouped(export.spool_capacity),
            grouped(export.unsent),
            grouped(export.lost_flows)
        ),
    ));
    lines.into_iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

fn kernel(facts: &Facts) -> String {
    let mut attached: Vec<&str> =
        facts.interfaces.iter().filter_map(|interface| interface.attached.as_deref()).collect();
    attached.sort_unstable();
    attached.dedup();
    let mut text = facts.kernel.clone();
    if let Some(lockdown) = &facts.lockdown {
        let _ = write!(text, ", locked down for {lockdown}");
    }
    if facts.source == Source::Conntrack {
        text.push_str(", packets counted by connection tracking");
    } else if !attached.is_empty() {
        let _ = write!(text, ", by {}", attached.join(" and "));
    }
    for program in facts.programs.iter().filter(|program| program.runs > 0) {
        let _ = write!(text, ", {} {} ns a packet", program.name, program.run_ns / program.runs);
    }
    text
}

fn conntrack(facts: &Facts) -> String {
    let conntrack = &facts.conntrack;
    if conntrack.refused.is_some() {
        return "not read".to_owned();
    }
    let switch = |on: Option<bool>| match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "unknown",
    };
    format!(
        "{} of {} entries, accounting {}, timestamps {}",
        grouped(conntrack.entries),
        grouped(conntrack.capacity),
        switch(conntrack.accounting),
        switch(conntrack.timestamps)
    )
}

fn drops(facts: &Facts) -> String {
    let drops = &facts.drops;
    let Some(rung) = &drops.rung else { return "not told of".to_owned() };
    let packets = drops.sites.iter().map(|site| site.tally.packets).sum();
    format!("{} packets, {} connections denied, by {rung}", grouped(packets), grouped(drops.denied))
}

fn objects(facts: &Facts) -> String {
    let objects = &facts.objects;
    match &objects.folder {
        None => "none (kubernetes.objects is not set)".to_owned(),
        Some(folder) => {
            format!("{folder}: {} Pods, {} Services, {} Nodes", objects.pods, objects.services, objects.nodes)
        }
    }
}

fn interfaces(interfaces: &[Interface]) -> String {
    let header = [
        "INTERFACE",
        "ROLE",
        "HOOKS",
        "SEEN",
        "ACCOUNTED",
        "ANNOTATED",
        "WAITING",
        "LOST",
        "LOST TO",
        "COMPLETE",
        "OWN COUNTERS",
    ];
    let rows: Vec<Vec<String>> = interfaces.iter().filter(|interface| interface.attached.is_some()).map(row).collect();
    table(&header, &[3, 4, 5, 6, 7, 9, 10], &rows)
}

fn row(interface: &Interface) -> Vec<String> {
    let reasons: Vec<&str> =
        interface.lost.iter().filter(|loss| loss.tally.packets > 0).map(|loss| loss.reason.as_str()).collect();
    let own = interface.own[0] + interface.own[1];
    let difference = match interface.unseen() {
        0 => grouped(own),
        difference => format!("{} ({difference:+})", grouped(own)),
    };
    vec![
        interface.name.clone(),
        interface.role.clone(),
        interface.attached.clone().unwrap_or_default(),
        grouped(interface.seen.packets),
        grouped(interface.accounted.packets),
        grouped(interface.annotated.packets),
        grouped(interface.waiting.packets),
        grouped(interface.lost_in_all().packets),
        reasons.join(" "),
        format!("{:.2} %", interface.completeness() * 100.0),
        difference,
    ]
}

fn uptime(seconds: u64) -> String {
    flow_common::config::print_duration(std::time::Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::doctor::{
        Conntrack, DropSite, Drops, Export, Feature, Fill, Flows, Loss, Objects, Program, Tally, judge,
    };

    fn facts() -> Facts {
        let pod = Interface {
            name: "veth1a2b3c".into(),
            index: 7,
            role: "pod".into(),
            attached: Some("tcx".into()),
            own: [1_000, 2_345],
            seen_by_hook: [1_000, 2_345],
            segments_by_hook: [1_000, 2_345],
            seen: Tally { packets: 3_345, bytes: 1_000_000 },
            accounted: Tally { packets: 3_000, bytes: 900_000 },
            annotated: Tally { packets: 300, bytes: 90_000 },
            waiting: Tally { packets: 41, bytes: 9_000 },
            lost: vec![
                Loss { reason: "takeover".into(), tally: Tally::default() },
                Loss { reason: "not_ip".into(), tally: Tally { packets: 4, bytes: 112 } },
            ],
            ..Interface::default()
        };
        let refused = Interface {
            name: "veth9".into(),
            role: "pod".into(),
            refused: Some("its other end is in this network namespace".into()),
            ..Interface::default()
        };
        Facts {
            version: "0.1.0".into(),
            node: "node-a".into(),
            uptime_seconds: 3_725,
            kernel: "6.18.0".into(),
            lockdown: Some("integrity".into()),
            programs: vec![Program { name: "tc_ingress".into(), runs: 1_000, run_ns: 45_000 }],
            maps: vec![Fill { name: "flows4".into(), used: 1_234, capacity: 262_144 }],
            features: vec![
                Feature { name: "tc".into(), rung: "tcx".into(), refused: Vec::new() },
                Feature {
                    name: "conntrack-new".into(),
                    rung: "kprobe-multi __nf_conntrack_confirm".into(),
                    refused: vec!["the types of the module nf_conntrack cannot be opened: CAP_SYS_ADMIN".into()],
                },
            ],
            interfaces: vec![pod, refused],
            flows: Flows { live: 1_234, begun: 99_999, ..Flows::default() },
            conntrack: Conntrack {
                entries: 12,
                capacity: 262_144,
                accounting: Some(true),
                timestamps: Some(false),
                ..Conntrack::default()
            },
            drops: Drops {
                rung: Some("BTF tracepoint".into()),
                sites: vec![DropSite {
                    reason: "NETFILTER_DROP".into(),
                    tally: Tally { packets: 1_234, bytes: 74_040 },
                    ..DropSite::default()
                }],
                denied: 3,
                ..Drops::default()
            },
            export: Export {
                collector: "flow-aggregator/flow-aggregator:4739:tls".into(),
                peer: Some("10.96.0.7:4739".into()),
                records: 5_000_000,
                octets: 1 << 30,
                spool_capacity: 65_536,
                spooled: 17,
                ..Export::default()
            },
            objects: Objects {
                folder: Some("/etc/flow/objects".into()),
                pods: 6,
                services: 2,
                nodes: 2,
                ..Objects::default()
            },
            ..Facts::default()
        }
    }

    #[test]
    fn one_screen_tells_all() {
        let facts = facts();
        assert_snapshot!(screen(&Diagnosis { findings: judge(&facts), facts: Some(facts) }));
    }

    #[test]
    fn without_an_agent_the_findings_alone_are_said() {
        let finding = Finding { what: "no agent answers".into(), remedy: "start it".into() };
        assert_snapshot!(screen(&Diagnosis { facts: None, findings: vec![finding] }));
    }
}
