//! `cargo xtask tidy`: the architecture's invariants, read off the sources: which way data flows, which modules stay without I/O and
//! clock, where unsafe, TLS and BPF live. It reads lines, not syntax trees: comments, strings and test modules are left out first.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Stages in the order of the data; a module may not name one that stands behind its own.
const STAGES: [(&str, &[&str]); 2] = [
    ("flow-agent/src", &["kernel", "conntrack", "table", "enrich", "export", "pipeline"]),
    (
        "flow-aggregator/src",
        &["input", "collector", "correlate", "aggregate", "sinks", "outlets", "join", "api", "pipeline"],
    ),
];

/// Modules of pure logic: what comes in is a value, time included.
const PURE: [&str; 9] = [
    "flow-agent/src/table",
    "flow-agent/src/enrich",
    "flow-agent/src/verify",
    "flow-aggregator/src/aggregate",
    "flow-aggregator/src/correlate",
    "flow-common/src/ipfix",
    "flow-common/src/record",
    "flow-common/src/filter",
    "flow-common/src/expiry",
];
const IMPURE: [&str; 8] = [
    "tokio::",
    "aya::",
    "kube::",
    "std::net::TcpStream",
    "std::fs::",
    "Instant::now(",
    "SystemTime::now(",
    "std::thread::",
];

/// A word, and the only files (or folders) of the product that may hold it.
const ONLY_IN: [(&str, &[&str], &str); 6] = [
    (
        "unsafe ",
        &["flow-ebpf/src", "flow-agent/src/kernel", "flow-common/src/abi.rs"],
        "unsafe belongs to the kernel boundary",
    ),
    ("aya::", &["flow-agent/src/kernel"], "aya belongs to the loader"),
    ("rustls::", &["flow-common/src/net"], "TLS belongs to net"),
    ("kube::", &["flow-common/src/k8s/watch.rs"], "the API server is watched in one place"),
    ("rcgen::", &["flow-aggregator/src/certs"], "certificates are made in one place"),
    (
        "serde(default =",
        &["flow-agent/src/config.rs", "flow-aggregator/src/config.rs"],
        "only config.rs states a default",
    ),
];

/// Never, anywhere.
const NEVER: [(&str, &str); 3] = [
    ("#[allow(", "an exception is #[expect(lint, reason = \"..\")]"),
    ("todo!(", "a TODO does not exist"),
    ("dbg!(", "left over from debugging"),
];

/// Longer files do more than one thing.
const LINES: usize = 600;

/// One file of the product, as the rules read it.
struct Source {
    path: String,
    text: String,
    /// Without comments, strings and the test module.
    code: String,
}

/// Runs every rule and names each line that breaks one.
pub(crate) fn run() -> Result<()> {
    let sources = sources()?;
    let mut broken = Vec::new();
    for source in &sources {
        one_way(source, &mut broken);
        pure(source, &mut broken);
        only_in(source, &mut broken);
        shape(source, &mut broken);
    }
    element_names(&sources, &mut broken);
    for line in &broken {
        println!("{line}");
    }
    if !broken.is_empty() {
        bail!("{} lines break the architecture's invariants", broken.len());
    }
    println!("tidy: {} files keep the architecture's invariants", sources.len());
    Ok(())
}

fn sources() -> Result<Vec<Source>> {
    let listed =
        shell::output(shell::command("git").args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]))
            .context("tidy reads the files that git knows: run it in a checkout")?;
    let paths = listed.lines().filter(|path| shell::root().join(path).is_file());
    paths.map(|path| read(path.to_owned())).collect()
}

fn read(path: String) -> Result<Source> {
    let text = std::fs::read_to_string(shell::root().join(&path)).with_context(|| path.clone())?;
    let code = code(&text);
    Ok(Source { path, text, code })
}

/// The lines that the compiler builds into the product, at their old line numbers, without comments and the contents of strings.
fn code(text: &str) -> String {
    before_tests(text).lines().map(|line| strip(line) + "\n").collect()
}

/// What stands before a module of tests in the file; such a module in a file of its own cuts nothing off.
fn before_tests(text: &str) -> &str {
    let mut modules = text.match_indices("#[cfg(test)]\nmod ").map(|(at, _)| at);
    let begin = modules.find(|at| text[*at..].lines().nth(1).is_some_and(|line| line.contains('{')));
    &text[..begin.unwrap_or(text.len())]
}

fn strip(line: &str) -> String {
    let mut kept = String::new();
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '\'' if !quoted && chars.peek() == Some(&'"') => kept.extend(chars.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            c if !quoted => kept.push(c),
            _ => {}
        }
    }
    kept
}

/// Files of the product itself, not of its tests, benches and tools.
fn is_product(path: &str) -> bool {
    path.starts_with("flow-") && path.contains("/src/") && !path.contains("/tests/") && !path.ends_with("/tests.rs")
}

fn one_way(source: &Source, broken: &mut Vec<String>) {
    for (folder, stages) in STAGES {
        let module =
            source.path.strip_prefix(folder).and_then(|rest| rest.trim_start_matches('/').split(['/', '.']).next());
        let Some(own) = module.and_then(|module| stages.iter().position(|stage| *stage == module)) else { continue };
        for later in stages.iter().skip(own + 1) {
            let name = format!("crate::{later}");
            let found = lines_with(&source.code, &name);
            broken.extend(
                found.map(|line| format!("{}:{line}: {} names the later stage {later}", source.path, stages[own])),
            );
        }
    }
}

fn pure(source: &Source, broken: &mut Vec<String>) {
    if !PURE.iter().any(|module| within(&source.path, module)) {
        return;
    }
    for word in IMPURE {
        let found = lines_with(&source.code, word);
        broken.extend(found.map(|line| format!("{}:{line}: pure logic must not use {word}", source.path)));
    }
}

fn only_in(source: &Source, broken: &mut Vec<String>) {
    if !is_product(&source.path) {
        return;
    }
    for (word, places, why) in ONLY_IN {
        if places.iter().any(|place| within(&source.path, place)) {
            continue;
        }
        let found = lines_with(&source.code, word);
        broken.extend(found.map(|line| format!("{}:{line}: `{}`: {why}", source.path, word.trim())));
    }
}

fn shape(source: &Source, broken: &mut Vec<String>) {
    let path = &source.path;
    if path.ends_with("/mod.rs") {
        broken.push(format!("{path}: foo.rs and foo/, never mod.rs"));
    }
    if !source.text.starts_with("//!") && !path.ends_with("/tests.rs") {
        broken.push(format!("{path}:1: a file opens with what it takes, gives and does not do (//!)"));
    }
    let count = source.code.lines().count();
    if count > LINES {
        broken.push(format!("{path}: {count} lines: does it do one thing?"));
    }
    for (word, why) in NEVER {
        broken.extend(lines_with(&source.code, word).map(|line| format!("{path}:{line}: {why}")));
    }
}

/// Information element names are spelt in the field table and the codec's element list alone.
fn element_names(sources: &[Source], broken: &mut Vec<String>) {
    let table = |path: &str| within(path, "flow-common/src/record") || within(path, "flow-common/src/ipfix/element");
    let names: Vec<String> =
        sources.iter().filter(|s| table(&s.path)).flat_map(|s| camel_case_literals(&s.text)).collect();
    for source in
        sources.iter().filter(|s| is_product(&s.path) && !table(&s.path) && !within(&s.path, "flow-common/src/ipfix"))
    {
        for (number, line) in before_tests(&source.text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for name in camel_case_literals(line).filter(|name| names.contains(name)) {
                broken.push(format!("{}:{}: {name} is spelt in record.rs alone", source.path, number + 1));
            }
        }
    }
}

/// String literals like "sourceIPv4Address": lower case first, letters and digits, at least one upper-case letter.
fn camel_case_literals(text: &str) -> impl Iterator<Item = String> {
    text.split('"').skip(1).step_by(2).filter(|word| is_camel_case(word)).map(str::to_owned)
}

fn is_camel_case(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.contains(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Whether `path` is the module `place` or lies in its folder.
fn within(path: &str, place: &str) -> bool {
    let (path, place) = (PathBuf::from(path), Path::new(place));
    path.starts_with(place) || path.with_extension("") == place.with_extension("")
}

fn lines_with<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.lines().enumerate().filter(move |(_, line)| line.contains(word)).map(|(number, _)| number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<String> {
        let source = Source {
            path: path.to_owned(),
            text: format!("//! A module.\n{text}"),
            code: code(&format!("//! A module.\n{text}")),
        };
        let mut broken = Vec::new();
        one_way(&source, &mut broken);
        pure(&source, &mut broken);
        only_in(&source, &mut broken);
        shape(&source, &mut broken);
        broken
    }

    #[test]
    fn a_stage_that_names_a_later_one_is_found() {
        assert_eq!(broken("flow-agent/src/table.rs", "use crate::export::Spool;\n").len(), 1);
        assert_eq!(broken("flow-agent/src/export.rs", "use crate::table::Update;\n"), Vec::<String>::new());
    }

    #[test]
    fn a_clock_in_pure_logic_is_found_but_not_in_its_tests_and_comments() {
        let text = "fn now() { Instant::now(); }\n";
        assert_eq!(broken("flow-common/src/ipfix/collector.rs", text).len(), 1);
        assert_eq!(broken("flow-common/src/net.rs", text), Vec::<String>::new());
        assert_eq!(
            broken("flow-agent/src/table/slab.rs", &format!("// Instant::now()\n#[cfg(test)]\nmod tests {{ {text} }}")),
            Vec::<String>::new()
        );
        // Tests in a file of their own end nothing.
        assert_eq!(broken("flow-agent/src/table/slab.rs", &format!("#[cfg(test)]\nmod tests;\n{text}")).len(), 1);
    }

    #[test]
    fn unsafe_is_found_outside_the_kernel_boundary() {
        assert_eq!(broken("flow-agent/src/api.rs", "unsafe { x() };\n").len(), 1);
        assert_eq!(broken("flow-agent/src/kernel/sweep.rs", "unsafe { x() };\n"), Vec::<String>::new());
        assert_eq!(broken("flow-agent/src/api.rs", "let x = \"unsafe \";\n"), Vec::<String>::new());
    }

    #[test]
    fn names_are_told_from_other_literals() {
        assert!(is_camel_case("sourceIPv4Address"));
        assert!(!is_camel_case("source") && !is_camel_case("Source") && !is_camel_case("a b"));
    }
}
