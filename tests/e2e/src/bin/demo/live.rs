//! The live table: the flows heard of last, as many as the terminal has lines for, each cut to one line.
//!
//! Takes joined records; draws over its last picture. Changes no mode of the terminal, so there is nothing to restore.

use std::io::{Write, stdout};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, TableStyle};
use lab::joined::Record;

/// Lines that are not flows: heading, total, prompt.
const OTHER_LINES: usize = 4;
/// What a terminal has that does not tell.
const SIZE: (u16, u16) = (80, 24);

/// The picture on the terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    shown: bool,
    lines: usize,
}

impl Screen {
    /// `shown`: whether there is a terminal to draw on.
    pub(crate) fn new(shown: bool) -> Self {
        Self { shown, lines: 0 }
    }

    /// Draws the flows over the last picture.
    pub(crate) fn draw(&mut self, records: &[Record]) -> Result<()> {
        if !self.shown {
            return Ok(());
        }
        let (columns, rows) = size();
        let picture = picture(records, columns, usize::from(rows));
        let mut out = stdout().lock();
        if self.lines > 0 {
            // Up to the picture's first line, and clear from there on.
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        write!(out, "{picture}")?;
        out.flush()?;
        self.lines = picture.lines().count();
        Ok(())
    }
}

fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => SIZE,
    }
}

/// The table and a line of totals.
fn picture(records: &[Record], columns: u16, rows: usize) -> String {
    let mut latest: Vec<&Record> = Vec::new();
    let mut flows = std::collections::HashSet::new();
    for record in records.iter().rev().filter(|record| flows.insert(record.flow_id)) {
        latest.push(record);
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    table.set_header(["SOURCE", "DESTINATION", "SERVICE", "PROTO", "STATE", "PACKETS", "BYTES", "BIT/S"]);
    for record in latest.iter().take(rows.saturating_sub(OTHER_LINES)) {
        let mut row = Row::from(cells(record));
        row.max_height(1);
        table.add_row(row);
    }
    format!("{table}\n{} flows, {} records\n", latest.len(), records.len())
}

fn cells(record: &Record) -> Vec<Cell> {
    let [sent, answered] = record.totals();
    let end = |pod: &str, addr: std::net::IpAddr| if pod.is_empty() { addr.to_string() } else { pod.to_owned() };
    let protocol = match record.protocol_identifier {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    };
    let number = |value: u64| Cell::new(short(value)).set_alignment(CellAlignment::Right);
    vec![
        Cell::new(end(&record.source_pod_name, record.source)),
        Cell::new(end(&record.destination_pod_name, record.destination)),
        Cell::new(&record.destination_service_port_name),
        Cell::new(protocol),
        Cell::new(&record.tcp_state),
        number(sent.packets + answered.packets),
        number(sent.bytes + answered.bytes),
        number(record.throughput + record.reverse_throughput),
    ]
}

/// At most four digits and a unit.
fn short(value: u64) -> String {
    let units = ["", "k", "M", "G", "T"];
    let steps = std::iter::successors(Some(value), |value| Some(value / 1_000));
    let (value, unit) = steps.zip(units).find(|(value, _)| *value < 10_000).unwrap_or((value, ""));
    format!("{value}{unit}")
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_are_cut_to_four_digits() {
        assert_eq!([0, 9_999, 10_000, 1_234_567].map(short), ["0", "9999", "10k", "1234k"]);
        assert_eq!(short(u64::MAX), u64::MAX.to_string());
    }
}
