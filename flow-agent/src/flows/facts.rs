//! Gathers what sources, table and index know into [`Facts`].

use std::time::Duration;

use flow_common::abi::{Count, Reason};
use flow_common::k8s::{Index, Kind};

use crate::conntrack::switches;
use crate::doctor::{
    Conntrack, DropSite, Drops, EARLIER_AGENT, Facts, Feature, Flows, Interface, Loss, Objects, Program, Source, Tally,
};
use crate::kernel::drops::Class;
use crate::kernel::{Attachment, InterfaceReport, Role};
use crate::sources::Sources;
use crate::table::{InterfaceSums, Table};

/// Everything that these know now.
pub(super) fn gather(uptime: Duration, sources: &mut Sources, table: &Table, index: &Index) -> Facts {
    let sums = table.interfaces();
    let reports = sources.interfaces();
    let interface = |report: &InterfaceReport| describe(report, sums.get(&report.index).copied().unwrap_or_default());
    let interfaces: Vec<Interface> = reports.iter().map(interface).collect();
    let programs = sources.run_statistics();
    let programs = programs.iter().map(|run| Program { name: run.program.clone(), runs: run.runs, run_ns: run.run_ns });
    let statistics = table.statistics();
    let features = features(&interfaces, sources);
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: uptime.as_secs(),
        kernel: release(),
        lockdown: std::fs::read_to_string("/sys/kernel/security/lockdown").ok().as_deref().and_then(lockdown),
        maps: sources.fill(),
        source: if sources.counts_by_tracking() { Source::Conntrack } else { Source::Ebpf },
        programs: programs.collect(),
        interfaces,
        flows: Flows {
            live: wide(statistics.live),
            tracked: wide(statistics.tracked),
            begun: statistics.flows,
            evicted: statistics.evicted,
            unseen: statistics.generations_missed,
            joined_late: statistics.late_joins,
            adopted: [statistics.adopted, statistics.not_adopted],
            late_packets: statistics.late_packets,
        },
        drops: drops(sources, table),
        conntrack: tracking(sources, statistics.refused),
        features,
        objects: objects(sources, index),
        faults: sources.take_faults(),
        ..Facts::default()
    }
}

/// The one in brackets of those that the kernel lists, unless that is "none".
fn lockdown(listed: &str) -> Option<String> {
    let (_, rest) = listed.split_once('[')?;
    let (now, _) = rest.split_once(']')?;
    (now != "none").then(|| now.to_owned())
}

fn describe(report: &InterfaceReport, sums: InterfaceSums) -> Interface {
    let both = |count: fn(&flow_common::abi::HookCounters) -> Count| {
        let mut all = Tally::default();
        report.hooks.iter().for_each(|hook| all.add(tally(count(hook))));
        all
    };
    let seen = both(|hook| hook.seen);
    let mut annotated = both(|hook| hook.annotated);
    let mut counted = seen.less(annotated);
    let mut lost: Vec<Loss> = Reason::ALL
        .iter()
        .enumerate()
        .map(|(index, reason)| {
            let mut all = Tally::default();
            report.hooks.iter().for_each(|hook| all.add(hook.lost.get(index).copied().map(tally).unwrap_or_default()));
            Loss { reason: reason.name().to_owned(), tally: all }
        })
        .collect();
    lost.iter().for_each(|loss| counted = counted.less(loss.tally));
    lost.push(Loss { reason: "not_local".to_owned(), tally: tally(sums.not_local) });
    // What goes on was told of in part by the agent before, which counted it for another interface.
    let [earlier, elsewhere] = [1, -1].map(|sign| signed(sums.earlier.map(|count| count * sign)));
    lost.push(Loss { reason: EARLIER_AGENT.to_owned(), tally: earlier });
    annotated.add(tally(sums.annotated));
    let accounted = tally(sums.accounted).less(elsewhere);
    let waiting = counted.less(accounted).less(tally(sums.annotated)).less(tally(sums.not_local)).less(earlier);
    let (link, base) = (&report.link, &report.link_base);
    Interface {
        name: report.name.clone(),
        index: report.index,
        role: match report.role {
            Role::Pod => "pod".to_owned(),
            Role::Uplink => "uplink".to_owned(),
        },
        attached: report.attachment.as_ref().ok().map(|attachment| match attachment {
            Attachment::Tcx => "tcx".to_owned(),
            Attachment::Clsact => "clsact".to_owned(),
        }),
        refused: report.attachment.as_ref().err().cloned(),
        before_attach: [base.rx_packets, base.tx_packets],
        own: [link.rx_packets.saturating_sub(base.rx_packets), link.tx_packets.saturating_sub(base.tx_packets)],
        seen_by_hook: report.hooks.map(|hook| hook.seen.packets),
        segments_by_hook: report.hooks.map(|hook| hook.segments),
        seen,
        accounted,
        annotated,
        waiting,
        lost,
        events_lost: [
            report.hooks.iter().map(|hook| hook.events_lost).sum(),
            report.hooks.iter().map(|hook| hook.ends_lost).sum(),
        ],
    }
}

/// The positive part.
fn signed([packets, bytes]: [i64; 2]) -> Tally {
    let positive = |count: i64| u64::try_from(count).unwrap_or_default();
    Tally { packets: positive(packets), bytes: positive(bytes) }
}

/// What each feature stands on.
fn features(interfaces: &[Interface], sources: &mut Sources) -> Vec<Feature> {
    let mut rungs: Vec<&str> = interfaces.iter().filter_map(|interface| interface.attached.as_deref()).collect();
    rungs.sort_unstable();
    rungs.dedup();
    let rung = if rungs.is_empty() { "none".to_owned() } else { rungs.join(" and ") };
    let tc = sources.counting(&rung);
    let keeping = sources.keeping();
    [tc, keeping].into_iter().chain(sources.tracking().features()).collect()
}

fn tracking(sources: &mut Sources, unjoined: u64) -> Conntrack {
    let left_out = sources.left_out();
    let tracking = sources.tracking();
    let hooks = tracking.hook_statistics();
    let statistics = tracking.statistics();
    let (entries, capacity) = switches::fill(std::path::Path::new(switches::FOLDER)).unwrap_or_default();
    Conntrack {
        refused: tracking.refused().map(ToOwned::to_owned),
        entries,
        capacity,
        accounting: tracking.accounting(),
        timestamps: tracking.timestamps(),
        events: statistics.events,
        overruns: statistics.overruns,
        told: hooks.told,
        lost: hooks.lost,
        repeated: hooks.repeated,
        no_room: left_out.no_room,
        shadowed: left_out.shadowed,
        unjoined,
    }
}

fn drops(sources: &mut Sources, table: &Table) -> Drops {
    let drops = sources.drops();
    let report = drops.report();
    let (rung, failure) = (report.rung.map(|rung| rung.to_string()), report.failure.clone());
    let refused = report.refused.iter().map(|(rung, why)| format!("{rung}: {why}")).collect();
    // What cannot be read now is read the next time.
    let counters = drops.counters().unwrap_or_default();
    let sites = drops.sites().unwrap_or_default().into_iter().map(|site| DropSite {
        reason: site.reason,
        class: match site.class {
            Class::Rule => "rule".to_owned(),
            Class::Failure => "failure".to_owned(),
            Class::Counted => String::new(),
        },
        interface: site.interface,
        location: site.location,
        tally: tally(site.count),
    });
    Drops {
        rung,
        refused,
        failure,
        sites: sites.collect(),
        denied: wide(table.denied().count()),
        unplaced: [counters.sites_full, drops.missed()],
        unnamed: [counters.flows_full, counters.fragments, counters.unreadable],
        unmatched: table.statistics().drops_unmatched,
    }
}

fn objects(sources: &Sources, index: &Index) -> Objects {
    let held = index.statistics().objects;
    let of = |kind: Kind| {
        let position = Kind::ALL.iter().position(|known| *known == kind);
        position.and_then(|position| held.get(position)).copied().map_or(0, wide)
    };
    Objects {
        folder: sources.objects().path().map(|path| path.display().to_string()),
        refused: sources.objects().refused().to_vec(),
        pods: of(Kind::Pod),
        services: of(Kind::Service),
        nodes: of(Kind::Node),
    }
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn tally(count: Count) -> Tally {
    Tally { packets: count.packets, bytes: count.bytes }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_in_force_is_the_one_in_brackets() {
        assert_eq!(lockdown("[none] integrity confidentiality\n"), None);
        assert_eq!(lockdown("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(lockdown(""), None);
    }
}
