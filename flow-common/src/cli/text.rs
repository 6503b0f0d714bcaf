//! Numbers and tables as people read them on a terminal. Takes values, gives text; writes nothing.

use std::borrow::Cow;

/// 1234567 as "1,234,567".
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a binary unit: "1.5 MiB".
pub fn bytes(number: u64) -> String {
    scaled(number, 1_024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Bits a second with a decimal unit: "12.5 Mbit/s".
pub fn rate(bits: u64) -> String {
    scaled(bits, 1_000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"])
}

/// A table without lines: columns two spaces apart, the named ones aligned right.
pub fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableStyle};
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| Cell::new(*name)));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Lines of values with commas between them, under a header (RFC 4180).
pub fn csv(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| {
        let cells: Vec<_> = cells.into_iter().map(csv_cell).collect();
        cells.join(",") + "\n"
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(header.to_vec())).chain(rows).collect()
}

/// A value of such a line; in quotes where it needs them.
pub fn csv_cell(text: &str) -> Cow<'_, str> {
    if text.contains([',', '"', '\n', '\r']) {
        Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(text)
    }
}

fn scaled(number: u64, step: f64, units: &[&str]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = number as f64;
    let mut unit = 0;
    // What would be shown as a whole step belongs to the next unit.
    while value >= step - 0.05 && unit + 1 < units.len() && (unit > 0 || value >= step) {
        value /= step;
        unit += 1;
    }
    match units.get(unit) {
        Some(name) if unit == 0 => format!("{number} {name}"),
        Some(name) => format!("{value:.1} {name}"),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1_023, 1_024, 1_048_575, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "16.0 EiB"]
        );
        assert_eq!(rate(12_500_000), "12.5 Mbit/s");
    }

    #[test]
    fn values_with_commas_quotes_or_line_ends_stand_in_quotes() {
        let rows = [vec!["a,b".to_owned(), "say \"x\"".to_owned()], vec![String::new(), "c\nd".to_owned()]];
        assert_eq!(csv(&["ONE", "TWO"], &rows), "ONE,TWO\n\"a,b\",\"say \"\"x\"\"\"\n,\"c\nd\"\n");
    }

    #[test]
    fn tables_align() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "1000".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &[1], &rows), "NAME     N\na        1\nbcd   1000\n");
    }
}
