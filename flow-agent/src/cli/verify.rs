//! `flow-agent verify`: whether the kernel programs and connection tracking counted the same of every connection.
//!
//! Takes the running agent's report over the socket; prints a line a difference and what there is in all. Exit status 0 if nothing is
//! unexplained, 1 if something is, 2 if nothing could be compared.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::text::{grouped, table};
use super::{Output, Socket, client, put};
use crate::api::{Reply, Request, protocol_name};
use crate::verify::{Count, Difference, Findings, Outcome, Report};

/// What `verify` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// Compare again every five seconds.
    #[arg(long, short)]
    watch: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

/// Exit status where something is unexplained, and where nothing was compared.
const UNEXPLAINED: u8 = 1;
const NOT_COMPARED: u8 = 2;

/// How often `--watch` compares.
const INTERVAL: Duration = Duration::from_secs(5);

const COLUMNS: [&str; 7] = ["SOURCE", "DESTINATION", "PROTO", "FOUND", "PACKETS", "BYTES", "WHY"];

/// Asks the agent and prints, once or again and again.
pub fn run(options: &Options) -> Result<ExitCode> {
    loop {
        let report = match report(options) {
            Ok(report) => report,
            Err(error) => {
                writeln!(io::stderr(), "flow-agent: {}", super::sentence(&error))?;
                return Ok(ExitCode::from(NOT_COMPARED));
            }
        };
        match (options.output, options.watch) {
            (Output::Table, false) => put(&screen(&report))?,
            (Output::Table, true) => put(&format!("{}\n", screen(&report)))?,
            (Output::Json, false) => put(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
            (Output::Json, true) => put(&format!("{}\n", serde_json::to_string(&report)?))?,
        }
        if !options.watch {
            return Ok(ExitCode::from(status(&report)));
        }
        std::thread::sleep(INTERVAL);
    }
}

fn report(options: &Options) -> Result<Report> {
    let mut replies = client::ask(&options.socket.path()?, &Request::Verify)?;
    match replies.next()? {
        Some(Reply::Verify(report)) => Ok(*report),
        _ => anyhow::bail!("the agent compared nothing; is it of another version?"),
    }
}

fn status(report: &Report) -> u8 {
    match (&report.failure, report.unexplained()) {
        (Some(_), _) => NOT_COMPARED,
        (None, 0) => 0,
        (None, _) => UNEXPLAINED,
    }
}

/// The screen.
pub fn screen(report: &Report) -> String {
    let mut text = String::new();
    for (findings, of) in [(&report.live, "live"), (&report.ended, "ended")] {
        let differences = &findings.differences;
        let rows: Vec<Vec<String>> = differences.unexplained.iter().chain(&differences.explained).map(line).collect();
        if !rows.is_empty() {
            let _ = writeln!(text, "Connections that {}:\n", if of == "live" { "live" } else { "have ended" });
            text.push_str(&table(&COLUMNS, &[], &rows));
            text.push('\n');
        }
    }
    if let Some(failure) = &report.failure {
        let _ = writeln!(text, "Live connections could not be compared: {failure}");
    } else {
        text.push_str(&summary("live", &report.live));
        if !report.accounting {
            text.push_str(
                "  conntrack counts no packets (net.netfilter.nf_conntrack_acct=0): only presence was compared\n",
            );
        }
    }
    text.push_str(&summary("ended", &report.ended));
    let _ = writeln!(text, "  {} ended on one side wait for the other", grouped(report.waiting));
    if report.not_kept > 0 {
        let _ = writeln!(text, "  {} found no room to be compared", grouped(report.not_kept));
    }
    text
}

fn summary(of: &str, findings: &Findings) -> String {
    let sums = &findings.sums;
    let mut text = format!(
        "{} {of} connections compared: {} equal, {} moving, {} unexplained\n",
        grouped(sums.compared()),
        grouped(sums.of(Outcome::Equal)),
        grouped(sums.of(Outcome::Moving)),
        grouped(sums.unexplained()),
    );
    for Count { outcome, reason, connections } in &sums.0 {
        if let Some(reason) = reason {
            let _ = writeln!(text, "  {} {}: {}", grouped(*connections), found(*outcome), reason.sentence());
        }
    }
    text
}

fn line(difference: &Difference) -> Vec<String> {
    let Difference { outcome, reason, src, dst, ebpf, conntrack, .. } = difference;
    let end = |(addr, port): (std::net::IpAddr, u16)| std::net::SocketAddr::new(addr, port).to_string();
    let apart = |there: usize| match outcome {
        Outcome::OnlyEbpf => format!("{} / {}", grouped(ebpf[there]), grouped(ebpf[there + 2])),
        Outcome::OnlyConntrack => format!("{} / {}", grouped(conntrack[there]), grouped(conntrack[there + 2])),
        _ => format!("{} / {}", more(ebpf[there], conntrack[there]), more(ebpf[there + 2], conntrack[there + 2])),
    };
    vec![
        end(*src),
        end(*dst),
        protocol_name(difference.protocol),
        found(*outcome).to_owned(),
        apart(0),
        apart(1),
        reason.map_or("unexplained", |reason| reason.sentence()).to_owned(),
    ]
}

/// What eBPF counted more, or less.
fn more(ebpf: u64, conntrack: u64) -> String {
    let sign = match ebpf.cmp(&conntrack) {
        std::cmp::Ordering::Less => "-",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "+",
    };
    format!("{sign}{}", grouped(ebpf.abs_diff(conntrack)))
}

fn found(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Equal => "equal",
        Outcome::Moving => "moving",
        Outcome::Differs => "differ",
        Outcome::OnlyEbpf => "only in eBPF",
        Outcome::OnlyConntrack => "only in conntrack",
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::verify::{Differences, Reason, Sums};

    fn difference(outcome: Outcome, reason: Option<Reason>, ebpf: [u64; 4], conntrack: [u64; 4]) -> Difference {
        Difference {
            outcome,
            reason,
            protocol: 17,
            src: ("10.244.1.2".parse().unwrap(), 40_000),
            dst: ("fd00:96::10".parse().unwrap(), 53),
            zone: 0,
            ebpf,
            conntrack,
        }
    }

    fn report() -> Report {
        let count = |outcome, reason, connections| Count { outcome, reason, connections };
        Report {
            accounting: true,
            live: Findings {
                sums: Sums(vec![
                    count(Outcome::Equal, None, 12_345),
                    count(Outcome::Moving, None, 3),
                    count(Outcome::Differs, Some(Reason::Fragments), 1),
                    count(Outcome::OnlyConntrack, Some(Reason::Loopback), 2),
                    count(Outcome::Differs, None, 1),
                ]),
                differences: Differences {
                    unexplained: vec![difference(Outcome::Differs, None, [5, 500, 5, 1_000], [6, 620, 5, 1_000])],
                    explained: vec![
                        difference(
                            Outcome::Differs,
                            Some(Reason::Fragments),
                            [15, 20_300, 15, 20_300],
                            [5, 20_140, 5, 20_140],
                        ),
                        difference(Outcome::OnlyConntrack, Some(Reason::Loopback), [0; 4], [2, 120, 1, 60]),
                    ],
                },
            },
            ended: Findings { sums: Sums(vec![count(Outcome::Equal, None, 10_000)]), ..Findings::default() },
            waiting: 17,
            ..Report::default()
        }
    }

    #[test]
    fn each_difference_has_a_line() {
        assert_snapshot!(screen(&report()));
    }

    #[test]
    fn the_exit_status_says_whether_something_is_unexplained() {
        assert_eq!(status(&report()), 1);
        let mut explained = report();
        explained.live.sums.0.pop();
        assert_eq!(status(&explained), 0);
        let failed = Report { failure: Some("not permitted".into()), ..Report::default() };
        assert_eq!(status(&failed), 2);
        assert!(screen(&failed).starts_with("Live connections could not be compared: not permitted\n"));
    }
}
