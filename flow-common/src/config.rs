//! What both configuration files share.
//!
//! Takes the text of a YAML file and a declaration of its keys (made by [`settings!`](crate::settings)), gives the values with
//! every fault named by file, line and key, and the documentation of the keys. Knows no key itself, states no
//! default, and reads no file and no clock.

use std::fmt;

mod document;
mod duration;
mod nearest;
mod value;

pub use document::{Document, Problem, Problems, Wrong};
pub use duration::{DurationError, parse_duration, print_duration};
pub use nearest::nearest;
pub use value::{Choice, Node, Setting, Unfit, Value};

/// One key of a configuration file, as documentation and checks see it.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it stands: `flowExporter.enable`.
    pub path: &'static str,
    /// Names it had once, which still work with a warning.
    pub old: &'static [&'static str],
    /// What is written there: "duration", "number".
    pub form: &'static str,
    /// The value without the key, as YAML.
    pub default: String,
    /// What it does.
    pub doc: &'static str,
}

/// A configuration whose keys [`settings!`](crate::settings) declared.
pub trait Settings: Default {
    /// Every key in the order of the declaration.
    fn keys() -> Vec<Key>;
    /// The values of a document; keys that are not there have their default.
    fn take(document: &mut Document) -> Self;
    /// Every key's path and value as YAML, in the order of the declaration.
    fn values(&self) -> Vec<(&'static str, String)>;
    /// Takes the values of the keys with these paths from another configuration.
    fn keep(&mut self, paths: &[&str], other: &Self);
}

/// What came out of a configuration file: its values, and what should be said about it.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    /// The values.
    pub settings: C,
    /// Old names and values that were raised or have no effect.
    pub warnings: Vec<Problem>,
}

/// Reads the text of `file`. `settle` checks what no key can by itself and may add problems and warnings.
pub fn read<C: Settings>(
    file: &str,
    text: &str,
    settle: impl FnOnce(&mut C, &mut Document),
) -> Result<Loaded<C>, Problems> {
    let mut document = Document::parse(file, text, &C::keys())?;
    let mut settings = C::take(&mut document);
    settle(&mut settings, &mut document);
    let warnings = document.finish()?;
    Ok(Loaded { settings, warnings })
}

/// A configuration as a YAML file that reads back to the same values.
pub fn print<C: Settings>(settings: &C) -> String {
    let mut text = String::new();
    let mut section: Vec<&str> = Vec::new();
    for (path, value) in settings.values() {
        let mut parts: Vec<&str> = path.split('.').collect();
        let Some(name) = parts.pop() else { continue };
        let shared = section.iter().zip(&parts).take_while(|(a, b)| a == b).count();
        for (depth, part) in parts.iter().enumerate().skip(shared) {
            text.push_str(&format!("{:indent$}{part}:\n", "", indent = depth * 2));
        }
        text.push_str(&format!("{:indent$}{name}: {value}\n", "", indent = parts.len() * 2));
        section = parts;
    }
    text
}

/// The keys as a Markdown document under `title`.
pub fn markdown(title: &str, preface: &str, keys: &[Key]) -> String {
    let mut text = format!("# {title}\n\n{preface}\n");
    for key in keys {
        text.push_str(&format!("\n## `{}`\n\n{}\n\n", key.path, paragraph(key.doc)));
        text.push_str(&format!("- Form: {}\n- Default: `{}`\n", key.form, key.default));
        if !key.old.is_empty() {
            let names: Vec<String> = key.old.iter().map(|name| format!("`{name}`")).collect();
            text.push_str(&format!("- Also known as: {} (with a warning)\n", names.join(", ")));
        }
    }
    text
}

fn paragraph(doc: &str) -> String {
    let lines: Vec<&str> = doc.lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    lines.join("\n").trim().to_owned()
}

/// Declares a configuration once: struct, defaults, reading, printing and documentation come from it.
///
/// ```
/// flow_common::settings! {
///     /// What small.conf holds.
///     pub struct Small {
///         /// How often.
///         "poll.interval" | "pollInterval" => interval: std::time::Duration = std::time::Duration::from_secs(5),
///     }
/// }
/// let loaded = flow_common::config::read("small.conf", "pollInterval: 1m30s", |_: &mut Small, _| ()).unwrap();
/// assert_eq!(loaded.settings.interval.as_secs(), 90);
/// assert_eq!(loaded.warnings[0].to_string(), "small.conf:1: pollInterval is now called poll.interval; please rename it");
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $doc:literal])+ $path:literal $(| $old:literal)* => $field:ident: $type:ty = $default:expr,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $name { $($(#[doc = $doc])+ pub $field: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::Settings for $name {
            fn keys() -> Vec<$crate::config::Key> {
                let defaults = Self::default();
                vec![$($crate::config::Key {
                    path: $path,
                    old: &[$($old),*],
                    form: <$type as $crate::config::Setting>::FORM,
                    default: $crate::config::Setting::print(&defaults.$field),
                    doc: concat!($($doc, "\n"),+),
                },)+]
            }

            fn take(document: &mut $crate::config::Document) -> Self {
                let defaults = Self::default();
                Self { $($field: document.take($path).unwrap_or(defaults.$field),)+ }
            }

            fn values(&self) -> Vec<(&'static str, String)> {
                vec![$(($path, $crate::config::Setting::print(&self.$field)),)+]
            }

            fn keep(&mut self, paths: &[&str], other: &Self) {
                $(if paths.contains(&$path) {
                    self.$field.clone_from(&other.$field);
                })+
            }
        }
    };
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) [{}]", self.path, self.form, self.default)
    }
}

#[cfg(test)]
mod tests;
