//! Numbers and tables as people read them on a terminal. Takes values, gives text; writes nothing.

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
    fn tables_align() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "1000".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &[1], &rows), "NAME     N\na        1\nbcd   1000\n");
    }
}
