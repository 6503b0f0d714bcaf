//! `flow-agent flows`: live flows, or records as they are exported, as a table, a wide one, JSON lines or YAML documents.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use flow_common::record::Rfc3339;
use flow_common::time::Timestamp;

use super::client::{self, Replies};
use super::filters::Filters;
use super::text::{bytes, grouped, table};
use super::{Socket, put};
use crate::api::{Form, Reply, Request, Row};

/// What `flows` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// Records from now on, as they are exported.
    #[arg(long, short)]
    follow: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    filters: Filters,
}

/// What `-o` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// What fits a terminal.
    #[default]
    Table,
    /// Addresses, Nodes, times and numbers besides.
    Wide,
    /// The records by the names of their elements, one a line.
    Json,
    /// The same, one a document.
    Yaml,
}

const NARROW: [&str; 8] = ["SOURCE", "DESTINATION", "SERVICE", "PROTO", "STATE", "PACKETS", "BYTES", "SEEN FOR"];
const FURTHER: [&str; 7] = ["SOURCE ADDRESS", "DESTINATION ADDRESS", "TYPE", "VERDICT", "REASON", "LAST PACKET", "ID"];

/// Rows that are laid out together while following; a header stands over each lot.
const LOT: usize = 20;

/// Asks and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    let form = match options.output {
        Output::Table | Output::Wide => Form::Row,
        Output::Json | Output::Yaml => Form::Record,
    };
    let request = Request::Flows { filter: options.filters.expression(), follow: options.follow, form };
    let replies = client::ask(&options.socket.path()?, &request)?;
    match form {
        Form::Row => print_rows(replies, options),
        Form::Record => print_records(replies, options.output),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn print_rows(mut replies: Replies, options: &Options) -> Result<()> {
    let wide = options.output == Output::Wide;
    let mut lot = Vec::new();
    let mut any = false;
    while let Some(reply) = replies.next()? {
        match reply {
            Reply::Row(row) => lot.push(*row),
            reply => remark(&reply)?,
        }
        if options.follow && (lot.len() >= LOT || !replies.has_more()) && !lot.is_empty() {
            put(&rows(&lot, wide))?;
            any = true;
            lot.clear();
        }
    }
    if !lot.is_empty() {
        put(&rows(&lot, wide))?;
    } else if !any {
        writeln!(io::stderr(), "No flows.")?;
    }
    Ok(())
}

fn print_records(mut replies: Replies, output: Output) -> Result<()> {
    let mut out = io::stdout().lock();
    while let Some(reply) = replies.next()? {
        match reply {
            Reply::Record(record) if output == Output::Yaml => {
                writeln!(out, "---\n{}", serde_saphyr::to_string(&record).context("a record as YAML")?.trim_end())?;
            }
            Reply::Record(record) => writeln!(out, "{record}")?,
            reply => remark(&reply)?,
        }
    }
    Ok(())
}

fn remark(reply: &Reply) -> io::Result<()> {
    match reply {
        Reply::Skipped(count) => {
            writeln!(io::stderr(), "{count} records were skipped so far: this terminal is too slow")
        }
        _ => Ok(()),
    }
}

/// The rows under a header.
pub fn rows(rows: &[Row], wide: bool) -> String {
    let mut header: Vec<&str> = NARROW.to_vec();
    if wide {
        header.extend(FURTHER);
    }
    table(&header, &[5, 6, 7], &rows.iter().map(|row| cells(row, wide)).collect::<Vec<_>>())
}

fn cells(row: &Row, wide: bool) -> Vec<String> {
    let mut cells = vec![
        row.src.name(),
        row.dst.name(),
        row.service.clone(),
        protocol(row),
        row.state.clone(),
        format!("{} / {}", grouped(row.forward[0]), grouped(row.reverse[0])),
        format!("{} / {}", bytes(row.forward[1]), bytes(row.reverse[1])),
        duration(row.end.saturating_sub(row.start)),
    ];
    if wide {
        let last = Rfc3339(Timestamp::from_millis(row.end));
        cells.extend([
            row.src.socket(),
            row.dst.socket(),
            row.kind.clone(),
            row.verdict.clone(),
            row.reason.clone(),
            last.to_string(),
            format!("{:016x}", row.id),
        ]);
    }
    cells
}

fn protocol(row: &Row) -> String {
    match row.protocol {
        1 | 58 => format!("{} {}/{}", row.protocol_name(), row.icmp >> 8, row.icmp & 0xff),
        _ => row.protocol_name(),
    }
}

fn duration(millis: u64) -> String {
    let whole = if millis < 10_000 { millis } else { millis / 1_000 * 1_000 };
    flow_common::config::print_duration(std::time::Duration::from_millis(whole))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::api::End;

    fn sample() -> Vec<Row> {
        let client = End {
            addr: Some([10, 0, 1, 2].into()),
            port: Some(40_000),
            namespace: "shop".into(),
            pod: "web-7d4b".into(),
            node: "node-a".into(),
        };
        let server = End { addr: Some("fd00::2".parse().unwrap()), port: Some(5_432), ..End::default() };
        let tcp = Row {
            src: client.clone(),
            dst: server,
            service: "shop/db:sql".into(),
            protocol: 6,
            state: "ESTABLISHED".into(),
            kind: "inter-node".into(),
            verdict: "forwarded".into(),
            reason: "active".into(),
            start: 1_604_021_119_000,
            end: 1_604_021_244_500,
            forward: [1_234, 5 << 20],
            reverse: [999, 64],
            id: 0xabc,
            ..Row::default()
        };
        let ping = Row {
            src: End { port: None, ..client },
            dst: End { addr: Some([8, 8, 8, 8].into()), ..End::default() },
            protocol: 1,
            icmp: 8 << 8,
            start: 1_604_021_119_000,
            end: 1_604_021_122_000,
            forward: [3, 252],
            reverse: [3, 252],
            ..Row::default()
        };
        vec![tcp, ping]
    }

    #[test]
    fn flows_are_shown_by_name() {
        assert_snapshot!(rows(&sample(), false));
    }

    #[test]
    fn wide_rows_tell_the_rest() {
        assert_snapshot!(rows(&sample(), true));
    }
}
