//! What the facts mean. Takes [`Facts`], gives findings in the order of their weight.

use serde::{Deserialize, Serialize};

use super::{Conntrack, Drops, Export, Facts, Fill, Interface, Source};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// From here on a map is called nearly full.
const NEARLY_FULL_PERCENT: u64 = 80;

/// Everything that is not as it should be.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let attached = facts.interfaces.iter().filter(|interface| interface.attached.is_some()).count();
    if facts.source == Source::Conntrack {
        judge_refused_programs(facts, &mut findings);
    } else if attached == 0 {
        findings.push(Finding::new(
            "no interface is attached: nothing is seen",
            "name this Node's interfaces in interfaces.pods and interfaces.uplinks (`ip link` lists them)",
        ));
    }
    facts.interfaces.iter().for_each(|interface| judge_interface(interface, &mut findings));
    facts.maps.iter().for_each(|fill| judge_fill(fill, &mut findings));
    if facts.flows.evicted > 0 {
        let what = format!("{} flows were ended early, as the table was full", facts.flows.evicted);
        findings.push(Finding::new(what, "raise maxFlows"));
    }
    judge_conntrack(&facts.conntrack, facts.source, &mut findings);
    judge_drops(&facts.drops, &mut findings);
    judge_export(&facts.export, &mut findings);
    for refused in &facts.objects.refused {
        findings.push(Finding::new(refused, "correct the file; what it gave before stays until then"));
    }
    for fault in &facts.faults {
        findings.push(Finding::new(fault, "see the agent's log; if it stays, start the agent anew"));
    }
    findings
}

impl Finding {
    /// What is wrong, and what to do.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// Connection tracking stands in for the programs; not where that was configured.
fn judge_refused_programs(facts: &Facts, findings: &mut Vec<Finding>) {
    for refused in facts.features.iter().filter(|it| it.name == "tc").flat_map(|it| &it.refused) {
        findings.push(Finding::new(
            format!("the packets are counted by connection tracking, as the kernel's programs are refused: {refused}"),
            "see what docs/sources.md says that only the programs know; where that is not needed, `source: conntrack`",
        ));
    }
}

fn judge_interface(interface: &Interface, findings: &mut Vec<Finding>) {
    let name = &interface.name;
    for loss in interface.lost.iter().filter(|loss| loss.tally.packets > 0) {
        let packets = loss.tally.packets;
        let (what, remedy) = match loss.reason.as_str() {
            "map_full" => ("found the flow map full", "raise maxFlows"),
            "malformed" => {
                ("had headers that contradict themselves", "capture some with `tcpdump -i` on the interface")
            }
            "unsupported" => ("had more than six extension headers", "they are counted here alone"),
            _ => continue,
        };
        findings.push(Finding::new(format!("{name}: {packets} packets {what}"), remedy));
    }
    if interface.events_lost.iter().any(|lost| *lost > 0) {
        let [begun, ended] = interface.events_lost;
        let what = format!("{name}: {begun} new and {ended} ended flows found the ring full and were reported late");
        findings.push(Finding::new(what, "raise ringBytes"));
    }
    // Traffic goes on while the counters are read one after the other.
    let slack = 64 + interface.seen.packets / 1_000;
    if interface.attached.is_some() && interface.unseen().unsigned_abs() > slack {
        let what = format!("{name}: its own counters and the programs differ by {} packets", interface.unseen());
        findings.push(Finding::new(what, "look for a program ahead of ours: `tc filter show`, `bpftool net`"));
    }
}

fn judge_fill(fill: &Fill, findings: &mut Vec<Finding>) {
    if fill.capacity > 0 && fill.used * 100 >= fill.capacity * NEARLY_FULL_PERCENT {
        let what = format!("{} is nearly full: {} of {}", fill.name, fill.used, fill.capacity);
        let remedy = if fill.name.contains("flows") { "raise maxFlows" } else { "raise ringBytes or maxInterfaces" };
        findings.push(Finding::new(what, remedy));
    }
}

fn judge_conntrack(conntrack: &Conntrack, source: Source, findings: &mut Vec<Finding>) {
    if let Some(refused) = &conntrack.refused {
        findings.push(Finding::new(
            format!("translated connections are not joined: {refused}"),
            "without it Services and originators are guessed from packets",
        ));
        return;
    }
    let accounting_is_for = match source {
        Source::Ebpf => "a restarted agent begins its totals anew",
        Source::Conntrack => "flows have no bytes, and one packet of each side that sent any",
    };
    for (value, name, use_of) in [
        (conntrack.accounting, "nf_conntrack_acct", accounting_is_for),
        (conntrack.timestamps, "nf_conntrack_timestamp", "connections older than the agent begin when it saw them"),
    ] {
        if value == Some(false) {
            let what = format!("net.netfilter.{name} is off: {use_of}");
            findings.push(Finding::new(what, format!("sysctl -w net.netfilter.{name}=1")));
        }
    }
    if conntrack.capacity > 0 && conntrack.entries * 100 >= conntrack.capacity * NEARLY_FULL_PERCENT {
        let what = format!("connection tracking is nearly full: {} of {}", conntrack.entries, conntrack.capacity);
        findings.push(Finding::new(what, "raise net.netfilter.nf_conntrack_max"));
    }
    if conntrack.no_room > 0 {
        let what = format!("{} connections are in no record, as there was no room for them", conntrack.no_room);
        findings.push(Finding::new(what, "raise maxFlows"));
    }
    if conntrack.unjoined > 0 {
        let what = format!(
            "{} tracked connections found no room: those of them that are translated are two flows",
            conntrack.unjoined
        );
        findings.push(Finding::new(what, "raise maxFlows"));
    }
    if conntrack.overruns > 0 {
        let what = format!("connection tracking dropped events {} times; a dump made up for it", conntrack.overruns);
        findings.push(Finding::new(what, "nothing, unless it goes on: then give the agent more CPU"));
    }
}

fn judge_drops(drops: &Drops, findings: &mut Vec<Finding>) {
    if let Some(failure) = &drops.failure {
        let remedy = "give the agent CAP_BPF and CAP_PERFMON, on kernels below 5.17 CAP_SYSLOG as well; without it a dropped connection \
                      looks like one that nobody answers";
        findings.push(Finding::new(format!("the kernel's drops are not told of: {failure}"), remedy));
    }
    let [no_room, _, _] = drops.unnamed;
    if no_room > 0 {
        let what = format!("{no_room} dropped packets are of flows for which there was no room");
        findings.push(Finding::new(what, "raise maxFlows; they are in `flow-agent drops` by reason and place"));
    }
}

fn judge_export(export: &Export, findings: &mut Vec<Finding>) {
    if export.peer.is_none() {
        let failure = export.failure.as_deref().unwrap_or("no attempt has ended yet");
        let what = format!("no connection to the collector {}: {failure}", export.collector);
        findings
            .push(Finding::new(what, "see that the collector runs and that flowExporter.flowCollectorAddr names it"));
    }
    if export.lost_flows > 0 {
        let what =
            format!("{} ended flows were lost, as the spool was full while no collector was there", export.lost_flows);
        findings.push(Finding::new(what, "raise spoolRecords, or keep the collector up"));
    }
    if export.oversized > 0 {
        let what = format!("{} records did not fit a message", export.oversized);
        findings.push(Finding::new(what, "use tls or tcp towards the collector, or raise the path's MTU"));
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::{Loss, Tally};
    use super::*;

    fn sound() -> Facts {
        let interface = Interface {
            name: "eth0".into(),
            attached: Some("tcx".into()),
            own: [1_000, 500],
            seen_by_hook: [1_000, 400],
            segments_by_hook: [1_000, 500],
            seen: Tally { packets: 1_400, bytes: 100_000 },
            ..Interface::default()
        };
        Facts {
            interfaces: vec![interface],
            conntrack: Conntrack { accounting: Some(true), timestamps: Some(true), ..Conntrack::default() },
            export: Export { peer: Some("10.0.0.1:4739".into()), ..Export::default() },
            ..Facts::default()
        }
    }

    fn said(facts: &Facts) -> String {
        judge(facts).iter().map(|finding| format!("{}\n  {}\n", finding.what, finding.remedy)).collect()
    }

    #[test]
    fn a_sound_agent_has_no_findings() {
        assert_eq!(said(&sound()), "");
    }

    #[test]
    fn an_agent_that_sees_nothing_says_so() {
        assert_snapshot!(said(&Facts::default()));
    }

    #[test]
    fn every_fault_has_a_remedy() {
        let mut facts = sound();
        let tally = Tally { packets: 3, bytes: 180 };
        let interface = &mut facts.interfaces[0];
        interface.lost = ["takeover", "not_ip", "map_full", "malformed", "unsupported"]
            .map(|reason| Loss { reason: reason.into(), tally })
            .into();
        interface.events_lost = [5, 6];
        interface.own = [2_000, 500];
        facts.maps = vec![
            Fill { name: "flows4".into(), used: 80, capacity: 100 },
            Fill { name: "events".into(), used: 79, capacity: 100 },
        ];
        facts.flows.evicted = 9;
        facts.conntrack = Conntrack {
            accounting: Some(false),
            timestamps: Some(false),
            entries: 9,
            capacity: 10,
            overruns: 2,
            unjoined: 4,
            ..facts.conntrack
        };
        facts.export = Export {
            collector: "agg:4739:tls".into(),
            failure: Some("connection refused".into()),
            lost_flows: 7,
            oversized: 1,
            ..Export::default()
        };
        facts.objects.refused = vec!["pods.yaml:3: spec is missing".into()];
        assert_snapshot!(said(&facts));
    }
}
