//! `flow-aggregator get flowrecords`: the table's flows, or records as they are exported, as a table, a wide one, CSV, JSON
//! lines or YAML documents.

use super::{
    client::{Client, Lines, Server, block_on, escaped},
    put,
};
use anyhow::{Context, Result};
use flow_common::{
    cli::{
        filters::Filters,
        text::{csv, table},
    },
    record::Rfc3339,
    row::{End, Row},
    time::Timestamp,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::io::{self, Write};

/// Flows of one answer.
const PAGE: usize = 2_000;
/// Rows that are laid out together while following; a header stands over each lot.
const LOT: usize = 20;

/// What `get flowrecords` takes.
#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// Records from now on, as they are exported
    #[arg(long, short)]
    follow: bool,
    /// How to print
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Flows that are shown at most
    #[arg(long, value_name = "FLOWS", default_value_t = 10_000, conflicts_with = "follow")]
    limit: usize,
    #[command(flatten)]
    exact: Exact,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    server: Server,
}

/// Filters by the 5-tuple, each by one value.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The 5-tuple")]
struct Exact {
    /// Address of the source
    #[arg(long, value_name = "ADDRESS")]
    srcip: Option<String>,
    /// Address of the destination
    #[arg(long, value_name = "ADDRESS")]
    dstip: Option<String>,
    /// Port of the source
    #[arg(long, value_name = "PORT")]
    srcport: Option<String>,
    /// Port of the destination
    #[arg(long, value_name = "PORT")]
    dstport: Option<String>,
}

/// What `-o` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// What fits a terminal
    #[default]
    Table,
    /// Type, verdict, counters and times besides
    Wide,
    /// The records by the names of their elements, one a line
    Json,
    /// The same, one a document
    Yaml,
    /// The columns of wide with commas between them
    Csv,
}

const COLUMNS: [&str; 10] =
    ["SRC_IP", "DST_IP", "SPORT", "DPORT", "PROTO", "SRC_POD", "DST_POD", "SRC_NS", "DST_NS", "SERVICE"];
const FURTHER: [&str; 13] = [
    "SRC_NODE",
    "DST_NODE",
    "STATE",
    "TYPE",
    "VERDICT",
    "REASON",
    "PACKETS",
    "BYTES",
    "REVERSE_PACKETS",
    "REVERSE_BYTES",
    "FIRST_PACKET",
    "LAST_PACKET",
    "ID",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    flow_records: Vec<T>,
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Skipped {
    skipped_batches: u64,
}

/// Asks and prints.
pub(super) fn run(options: &Options) -> Result<()> {
    let client = options.server.client()?;
    block_on(async {
        match (options.follow, options.is_rows()) {
            (false, true) => {
                list(&client, options, |rows: Vec<Row>, first| {
                    let text = if options.output == Output::Csv {
                        csv_rows(&rows, first)
                    } else {
                        rows_as_table(&rows, options.is_wide())
                    };
                    put(&text)
                })
                .await
            }
            (false, false) => list(&client, options, |records, _| print_records(&records, options.output)).await,
            (true, _) => follow(client.lines(&options.path(None, 0)).await?, options).await,
        }
    })
}

impl Options {
    fn is_rows(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide | Output::Csv)
    }

    fn is_wide(&self) -> bool {
        self.output == Output::Wide
    }

    /// The request of one page.
    fn path(&self, cursor: Option<&str>, limit: usize) -> String {
        let limit = limit.to_string();
        let filter = self.filters.expression();
        let exact = &self.exact;
        let pairs = [
            ("form", Some(if self.is_rows() { "rows" } else { "records" })),
            ("follow", self.follow.then_some("true")),
            ("limit", Some(limit.as_str()).filter(|_| !self.follow)),
            ("cursor", cursor),
            ("filter", Some(filter.as_str()).filter(|filter| !filter.is_empty())),
            ("srcip", exact.srcip.as_deref()),
            ("dstip", exact.dstip.as_deref()),
            ("srcport", exact.srcport.as_deref()),
            ("dstport", exact.dstport.as_deref()),
        ];
        let given = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", escaped((*value)?))));
        format!("/flowrecords?{}", given.collect::<Vec<_>>().join("&"))
    }
}

/// Prints page by page. A table is printed as a whole, so that its columns align.
async fn list<T: DeserializeOwned>(
    client: &Client,
    options: &Options,
    print: impl Fn(Vec<T>, bool) -> io::Result<()>,
) -> Result<()> {
    let whole = matches!(options.output, Output::Table | Output::Wide);
    let (mut gathered, mut left, mut cursor, mut first) = (Vec::new(), options.limit, None, true);
    loop {
        let path = options.path(cursor.as_deref(), left.min(PAGE));
        let Page { flow_records, next } = client.get(&path).await?;
        left = left.saturating_sub(flow_records.len());
        gathered.extend(flow_records);
        cursor = next;
        let over = cursor.is_none() || left == 0;
        if over || !whole {
            let lot = std::mem::take(&mut gathered);
            if lot.is_empty() && first && over {
                writeln!(io::stderr(), "No flows.")?;
            } else {
                print(lot, first)?;
            }
            first = false;
        }
        if over {
            break;
        }
    }
    if cursor.is_some() {
        writeln!(io::stderr(), "More flows may match: narrow them by a filter, or raise --limit.")?;
    }
    Ok(())
}

async fn follow(mut lines: Lines, options: &Options) -> Result<()> {
    let (mut lot, mut first) = (Vec::new(), true);
    while let Some(line) = lines.next().await? {
        if let Ok(Skipped { skipped_batches }) = serde_json::from_str(&line) {
            writeln!(io::stderr(), "{skipped_batches} batches of records were skipped: this terminal is too slow")?;
        } else if line.is_empty() {
            // A sign of life.
        } else if options.is_rows() {
            lot.push(serde_json::from_str(&line).context("the answer is not understood")?);
        } else {
            print_records(&[serde_json::from_str(&line).context("the answer is not understood")?], options.output)?;
        }
        if !lot.is_empty() && (lot.len() >= LOT || !lines.has_more()) {
            match options.output {
                Output::Csv => put(&csv_rows(&lot, first))?,
                _ => put(&rows_as_table(&lot, options.is_wide()))?,
            }
            (first, lot) = (false, Vec::new());
        }
    }
    Ok(())
}

fn print_records(records: &[serde_json::Value], output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for record in records {
        if output == Output::Yaml {
            let text = serde_saphyr::to_string(record).map_err(io::Error::other)?;
            writeln!(out, "---\n{}", text.trim_end())?;
        } else {
            writeln!(out, "{record}")?;
        }
    }
    out.flush()
}

/// The rows under a header.
pub(super) fn rows_as_table(rows: &[Row], wide: bool) -> String {
    let header = header(wide);
    table(&header, &[2, 3, 16, 17, 18, 19], &rows.iter().map(|row| cells(row, wide)).collect::<Vec<_>>())
}

/// The rows with commas between their values, and the header over the first of them.
pub(super) fn csv_rows(rows: &[Row], first: bool) -> String {
    let text = csv(&header(true), &rows.iter().map(|row| cells(row, true)).collect::<Vec<_>>());
    if first { text } else { text.split_once('\n').map(|(_, rows)| rows.to_owned()).unwrap_or_default() }
}

fn header(wide: bool) -> Vec<&'static str> {
    COLUMNS.into_iter().chain(FURTHER.into_iter().filter(|_| wide)).collect()
}

fn cells(row: &Row, wide: bool) -> Vec<String> {
    let addr = |end: &End| end.addr.map(|addr| addr.to_string()).unwrap_or_default();
    let port = |end: &End| end.port.map(|port| port.to_string()).unwrap_or_default();
    let mut cells = vec![
        addr(&row.src),
        addr(&row.dst),
        port(&row.src),
        port(&row.dst),
        row.protocol_name(),
        row.src.pod.clone(),
        row.dst.pod.clone(),
        row.src.namespace.clone(),
        row.dst.namespace.clone(),
        row.service.clone(),
    ];
    if wide {
        let moment = |millis| Rfc3339(Timestamp::from_millis(millis)).to_string();
        cells.extend([row.src.node.clone(), row.dst.node.clone(), row.state.clone(), row.kind.clone()]);
        cells.extend([row.verdict.clone(), row.reason.clone()]);
        cells.extend([row.forward, row.reverse].concat().iter().map(ToString::to_string));
        cells.extend([moment(row.start), moment(row.end), format!("{:016x}", row.id)]);
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn sample() -> Vec<Row> {
        let end = |addr: &str, port, namespace: &str, pod: &str, node: &str| End {
            addr: addr.parse().ok(),
            port,
            namespace: namespace.into(),
            pod: pod.into(),
            node: node.into(),
        };
        let tcp = Row {
            src: end("10.0.1.5", Some(40_000), "shop", "web-0", "node-a"),
            dst: end("10.0.2.7", Some(8_080), "shop", "db,1", "node-b"),
            service: "shop/db:sql".into(),
            protocol: 6,
            state: "ESTABLISHED".into(),
            kind: "inter-node".into(),
            verdict: "forwarded".into(),
            reason: "active".into(),
            start: 1_604_021_119_000,
            end: 1_604_021_244_500,
            forward: [1_234, 5_242_880],
            reverse: [999, 64],
            id: 0xabc,
            ..Row::default()
        };
        let ping = Row {
            src: end("fd00::5", None, "shop", "web-0", "node-a"),
            dst: end("2001:db8::9", None, "", "", ""),
            protocol: 58,
            ..Row::default()
        };
        vec![tcp, ping]
    }

    #[test]
    fn a_table_is_narrow_or_wide() {
        assert_snapshot!(rows_as_table(&sample(), false));
        assert_snapshot!(rows_as_table(&sample(), true));
    }

    #[test]
    fn csv_has_one_header() {
        assert_snapshot!(csv_rows(&sample(), true) + &csv_rows(&sample()[1..], false));
    }

    #[test]
    fn what_stands_in_a_url_is_escaped() {
        assert_eq!(escaped("ns = a&b or \u{e9}"), "ns%20%3D%20a%26b%20or%20%C3%A9");
    }
}
