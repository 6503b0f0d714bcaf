//! One configuration file while it is read. Takes its text and the known keys, gives values by path, and gathers every
//! fault and warning, so that one run names them all.

use std::fmt;

use super::Key;
use super::nearest::nearest;
use super::value::{Node, Setting, Unfit, Value};

/// A file's entries that belong to known keys, and what was found wrong so far.
#[derive(Debug)]
pub struct Document {
    file: String,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

#[derive(Debug)]
struct Entry {
    path: &'static str,
    /// The name it goes by in the file, which may be an old one.
    written: String,
    line: u64,
    node: Node,
}

/// One fault or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name as it was given.
    pub file: String,
    /// Counted from 1; `None` where the file as a whole is meant.
    pub line: Option<u64>,
    /// The key's path as it was written; empty where none is meant.
    pub key: String,
    /// What is wrong.
    pub wrong: Wrong,
}

/// What can be wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The text is no YAML.
    #[error("this is no YAML: {0}")]
    Syntax(String),
    /// A key that does not exist.
    #[error("there is no such key{}", .nearest.map(|key| format!("; did you mean {key}?")).unwrap_or_default())]
    Unknown {
        /// The known key nearest to it.
        nearest: Option<&'static str>,
    },
    /// A section whose keys are missing.
    #[error("this is a section; keys such as {0} belong below it")]
    Section(&'static str),
    /// A key that stands there twice, perhaps once under an old name.
    #[error("{0} is set twice; keep one of them")]
    Twice(&'static str),
    /// An old name (a warning).
    #[error("is now called {0}; please rename it")]
    Renamed(&'static str),
    /// A value that does not fit.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// Every fault of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl Document {
    /// Reads the text and sorts its entries to the keys.
    pub fn parse(file: &str, text: &str, keys: &[Key]) -> Result<Self, Problems> {
        let mut document =
            Self { file: file.to_owned(), entries: Vec::new(), problems: Vec::new(), warnings: Vec::new() };
        // A file of nothing but comments is a file of defaults.
        let empty = text.lines().all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#'));
        if !empty {
            // Keys that stand there twice are refused below, in our words.
            let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
            let root: Node =
                serde_saphyr::from_str_with_options(text, options).map_err(|error| document.syntax(&error))?;
            document.collect("", &root, keys);
        }
        Ok(document)
    }

    /// The value of a key, or `None` if it is not there or does not fit (which is then a problem).
    pub fn take<T: Setting>(&mut self, path: &'static str) -> Option<T> {
        let entry = self.entries.iter().find(|entry| entry.path == path)?;
        match T::read(&entry.node) {
            Ok(value) => Some(value),
            Err(unfit) => {
                self.refuse(path, unfit);
                None
            }
        }
    }

    /// Whether the file has this key.
    pub fn has(&self, path: &str) -> bool {
        self.entries.iter().any(|entry| entry.path == path)
    }

    /// Whether the file has this key under the old name `old`.
    pub fn is_written(&self, path: &str, old: &str) -> bool {
        self.entries.iter().any(|entry| entry.path == path && entry.written == old)
    }

    /// Whether the value of this key was found unfit.
    pub fn is_refused(&self, path: &str) -> bool {
        self.problems.iter().any(|problem| problem.key == path)
    }

    /// The value of this key cannot be used.
    pub fn refuse(&mut self, path: &str, unfit: Unfit) {
        let problem = self.problem(path, Wrong::Unfit(unfit));
        self.problems.push(problem);
    }

    /// The value of this key can be used, but something should be said.
    pub fn warn(&mut self, path: &str, unfit: Unfit) {
        let problem = self.problem(path, Wrong::Unfit(unfit));
        self.warnings.push(problem);
    }

    /// The warnings, if nothing is wrong.
    pub fn finish(self) -> Result<Vec<Problem>, Problems> {
        let Self { mut problems, mut warnings, .. } = self;
        problems.sort_by_key(|problem| problem.line);
        warnings.sort_by_key(|warning| warning.line);
        if problems.is_empty() { Ok(warnings) } else { Err(Problems(problems)) }
    }

    fn collect(&mut self, prefix: &str, node: &Node, keys: &[Key]) {
        let Value::Mapping(entries) = &node.value else {
            if node.value != Value::Null {
                let first = keys.iter().find(|key| key.path.starts_with(prefix)).map_or("", |key| key.path);
                self.problems.push(self.at(node.line, prefix.trim_end_matches('.'), Wrong::Section(first)));
            }
            return;
        };
        for (line, name, node) in entries {
            let path = format!("{prefix}{name}");
            if let Some(key) = keys.iter().find(|key| key.path == path) {
                self.enter(key.path, *line, &path, node);
            } else if let Some(key) = keys.iter().find(|key| key.old.contains(&path.as_str())) {
                self.warnings.push(self.at(*line, &path, Wrong::Renamed(key.path)));
                self.enter(key.path, *line, &path, node);
            } else if is_section(&path, keys) {
                self.collect(&format!("{path}."), node, keys);
            } else {
                let nearest = nearest(&path, keys.iter().map(|key| key.path));
                self.problems.push(self.at(*line, &path, Wrong::Unknown { nearest }));
            }
        }
    }

    fn enter(&mut self, path: &'static str, line: u64, written: &str, node: &Node) {
        if self.has(path) {
            self.problems.push(self.at(line, written, Wrong::Twice(path)));
        } else {
            self.entries.push(Entry { path, written: written.to_owned(), line, node: node.clone() });
        }
    }

    fn at(&self, line: u64, key: &str, wrong: Wrong) -> Problem {
        Problem { file: self.file.clone(), line: Some(line), key: key.to_owned(), wrong }
    }

    fn problem(&self, path: &str, wrong: Wrong) -> Problem {
        let line = self.entries.iter().find(|entry| entry.path == path).map(|entry| entry.line);
        Problem { file: self.file.clone(), line, key: path.to_owned(), wrong }
    }

    fn syntax(&self, error: &serde_saphyr::Error) -> Problems {
        let line = error.location().map(|location| location.line());
        let said = error.without_snippet().to_string();
        let first = said.lines().next().unwrap_or_default().to_owned();
        Problems(vec![Problem { file: self.file.clone(), line, key: String::new(), wrong: Wrong::Syntax(first) }])
    }
}

fn is_section(path: &str, keys: &[Key]) -> bool {
    let below = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    keys.iter().any(|key| below(key.path) || key.old.iter().any(|old| below(old)))
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        match (&self.wrong, self.key.as_str()) {
            (_, "") => write!(f, "{}", self.wrong),
            (Wrong::Renamed(_), key) => write!(f, "{key} {}", self.wrong),
            (_, key) => write!(f, "{key}: {}", self.wrong),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
