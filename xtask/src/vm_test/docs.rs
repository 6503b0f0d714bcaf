//! docs/kernels.md: the table of kernels, features and rungs is written from runs and held against later ones. It names series, not
//! releases, so that an update of Debian's changes nothing.

use crate::shell;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const BEGIN: &str = "<!-- written by `cargo xtask vm-test --write-docs` -->\n";
const END: &str = "<!-- to here -->\n";
/// What a kernel of which a feature's test says nothing has in its cell.
const NOTHING: &str = "-";

/// A kernel's name in the table, and the rung that each feature stands on.
pub(super) type Row = (String, BTreeMap<String, String>);

/// Writes the table into the file: of a whole run nothing else, of a part of one what it tells, beside what is there.
pub(super) fn write(rows: &[Row], whole: bool) -> Result<()> {
    let text = read()?;
    let (before, table, after) = split(&text)?;
    let merged = merge(if whole { Vec::new() } else { parse(table) }, rows);
    std::fs::write(path(), format!("{before}{BEGIN}{}{END}{after}", render(&merged)))
        .context("cannot write docs/kernels.md")
}

/// Where the rows of a whole run do not say what the file says: a sentence each. A kernel that the file does not know is none.
pub(super) fn differences(rows: &[Row]) -> Result<Vec<String>> {
    let text = read()?;
    let (_, table, _) = split(&text)?;
    Ok(compare(&parse(table), rows))
}

fn path() -> PathBuf {
    shell::root().join("docs/kernels.md")
}

fn read() -> Result<String> {
    std::fs::read_to_string(path()).context("cannot read docs/kernels.md")
}

/// What is before the table, the table, and what is after it.
fn split(text: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = text.split_once(BEGIN).context("docs/kernels.md has no place for the table")?;
    let (table, after) = rest.split_once(END).context("docs/kernels.md's table has no end")?;
    Ok((before, table, after))
}

fn merge(mut table: Vec<Row>, rows: &[Row]) -> Vec<Row> {
    for (kernel, rungs) in rows {
        match table.iter_mut().find(|(name, _)| name == kernel) {
            Some((_, known)) => known.extend(rungs.clone()),
            None => table.push((kernel.clone(), rungs.clone())),
        }
    }
    table.sort_by_cached_key(|(kernel, _)| {
        let series = kernel.split('.').map_while(|number| number.parse::<u32>().ok()).collect::<Vec<_>>();
        // Names of series are numbers alone; others come last.
        (series.len() < 2, series)
    });
    table
}

fn render(rows: &[Row]) -> String {
    let features: BTreeSet<&String> = rows.iter().flat_map(|(_, rungs)| rungs.keys()).collect();
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(std::iter::once("kernel").chain(features.iter().map(|feature| feature.as_str())).collect());
    text += &format!("|{}\n", "---|".repeat(features.len() + 1));
    for (kernel, rungs) in rows {
        let rung = |feature: &&String| rungs.get(*feature).map_or(NOTHING, String::as_str);
        text += &line(std::iter::once(kernel.as_str()).chain(features.iter().map(rung)).collect());
    }
    text
}

fn parse(table: &str) -> Vec<Row> {
    let cells =
        |line: &str| line.trim_matches(['|', ' ']).split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut lines = table.lines();
    let head = lines.next().map(cells).unwrap_or_default();
    let row = |line: &str| {
        let mut cells = cells(line).into_iter();
        let kernel = cells.next().unwrap_or_default();
        let rungs = head.iter().skip(1).cloned().zip(cells).filter(|(_, rung)| rung != NOTHING);
        (kernel, rungs.collect())
    };
    lines.skip(1).map(row).collect()
}

fn compare(written: &[Row], rows: &[Row]) -> Vec<String> {
    let mut differences = Vec::new();
    for (kernel, rungs) in rows {
        let Some((_, known)) = written.iter().find(|(name, _)| name == kernel) else { continue };
        for feature in rungs.keys().chain(known.keys()).collect::<BTreeSet<_>>() {
            let of = |rungs: &BTreeMap<String, String>| rungs.get(feature).map_or(NOTHING, String::as_str).to_owned();
            let (now, then) = (of(rungs), of(known));
            if now != then {
                differences.push(format!("{kernel}: {feature} is `{now}`, docs/kernels.md says `{then}`"));
            }
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, rungs: &[(&str, &str)]) -> Row {
        (kernel.to_owned(), rungs.iter().map(|(feature, rung)| ((*feature).to_owned(), (*rung).to_owned())).collect())
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let rows =
            [row("5.10", &[("tc", "clsact filter")]), row("6.12", &[("drops", "with reasons"), ("tc", "TCX link")])];
        assert_eq!(parse(&render(&rows)), rows);
        assert_eq!(compare(&rows, &rows), Vec::<String>::new());
    }

    #[test]
    fn a_part_of_a_run_changes_what_it_tells() {
        let written =
            vec![row("6.12", &[("drops", "none"), ("tc", "TCX link")]), row("7.3, here", &[("tc", "TCX link")])];
        let merged =
            merge(written, &[row("6.12", &[("drops", "with reasons")]), row("5.10", &[("tc", "clsact filter")])]);
        let expected = [
            row("5.10", &[("tc", "clsact filter")]),
            row("6.12", &[("drops", "with reasons"), ("tc", "TCX link")]),
            row("7.3, here", &[("tc", "TCX link")]),
        ];
        assert_eq!(merged, expected);
    }

    #[test]
    fn another_rung_is_a_difference_and_an_unknown_kernel_is_none() {
        let written = [row("6.12", &[("tc", "TCX link")])];
        let fallen = [row("6.12", &[("tc", "clsact filter")]), row("9.9", &[])];
        assert_eq!(compare(&written, &fallen), ["6.12: tc is `clsact filter`, docs/kernels.md says `TCX link`"]);
        assert_eq!(compare(&written, &[row("6.12", &[])]).len(), 1, "a feature that no test tells of any more");
    }
}
