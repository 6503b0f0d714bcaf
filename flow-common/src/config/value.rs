//! What stands behind a key. Takes a YAML node with its line, gives a typed value, or says what should be written.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::duration::{parse_duration, print_duration};

/// A YAML node and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Counted from 1.
    pub line: u64,
    /// What stands there.
    pub value: Value,
}

impl Node {
    /// What stands there, if it is a text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it was written in decimal.
    Number(String),
    /// Text.
    Text(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys, each with its own line, and their nodes.
    Mapping(Vec<(u64, String, Node)>),
}

/// Why a node is not what its key wants: a sentence's end that says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(String);

impl Unfit {
    /// `reason` says what is wrong and what to write instead.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }

    /// Something of this form should stand where `node` does.
    pub fn wanted(form: &str, node: &Node) -> Self {
        Self(format!("{form} is wanted, found {node}"))
    }
}

/// A type that a key can have.
pub trait Setting: Sized {
    /// What is written there, with its article: "a duration".
    const FORM: &'static str;
    /// Reads it.
    fn read(node: &Node) -> Result<Self, Unfit>;
    /// YAML, on one line, that reads back to the same value.
    fn print(&self) -> String;
}

/// A setting that is one of a few names, which are read in any case.
pub trait Choice: Copy + PartialEq + 'static {
    /// What is written there: "auto or never".
    const FORM: &'static str;
    /// Each value once, with its name.
    const ALL: &'static [(Self, &'static str)];
}

impl<T: Choice> Setting for T {
    const FORM: &'static str = <T as Choice>::FORM;

    fn read(node: &Node) -> Result<Self, Unfit> {
        let text = node.text().unwrap_or_default();
        let chosen = Self::ALL.iter().find(|(_, name)| text.eq_ignore_ascii_case(name));
        chosen.map(|(value, _)| *value).ok_or_else(|| Unfit::wanted(<T as Choice>::FORM, node))
    }

    fn print(&self) -> String {
        let named = Self::ALL.iter().find(|(value, _)| value == self);
        named.map(|(_, name)| (*name).to_owned()).unwrap_or_default()
    }
}

impl Setting for bool {
    const FORM: &'static str = "true or false";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    const FORM: &'static str = "a text";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Text(value) | Value::Number(value) => Ok(value.clone()),
            Value::Null => Ok(Self::new()),
            _ => Err(Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        quote(self)
    }
}

impl Setting for Duration {
    const FORM: &'static str = "a duration (\"500ms\", \"5s\", \"1m30s\")";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Text(text) | Value::Number(text) => parse_duration(text).map_err(Unfit::new),
            _ => Err(Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        print_duration(*self)
    }
}

impl Setting for PathBuf {
    const FORM: &'static str = "a path";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Text(text) if !text.is_empty() => Ok(Self::from(text)),
            _ => Err(Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        quote(&self.to_string_lossy())
    }
}

impl Setting for SocketAddr {
    const FORM: &'static str =
        "an address and a port (\"127.0.0.1:10359\", \"[::]:10359\", or \":10359\" for all addresses)";

    fn read(node: &Node) -> Result<Self, Unfit> {
        let Value::Text(text) = &node.value else { return Err(Unfit::wanted(Self::FORM, node)) };
        let full = if text.starts_with(':') { format!("[::]{text}") } else { text.clone() };
        full.parse().map_err(|_| Unfit::wanted(Self::FORM, node))
    }

    fn print(&self) -> String {
        quote(&self.to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    const FORM: &'static str = T::FORM;

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Null => Ok(None),
            Value::Text(text) if text.is_empty() => Ok(None),
            _ => T::read(node).map(Some),
        }
    }

    fn print(&self) -> String {
        self.as_ref().map_or_else(|| "\"\"".to_owned(), T::print)
    }
}

/// Makes lists of settings settings.
macro_rules! lists {
    ($($type:ty = $form:literal),+ $(,)?) => {$(
        impl Setting for Vec<$type> {
            const FORM: &'static str = $form;

            fn read(node: &Node) -> Result<Self, Unfit> {
                match &node.value {
                    Value::Sequence(items) => items.iter().map(<$type>::read).collect(),
                    Value::Null => Ok(Self::new()),
                    _ => Err(Unfit::wanted(Self::FORM, node)),
                }
            }

            fn print(&self) -> String {
                let items: Vec<String> = self.iter().map(Setting::print).collect();
                format!("[{}]", items.join(", "))
            }
        }
    )+};
}

lists! {
    String = "a list of texts",
    u16 = "a list of numbers from 0 to 65535",
}

impl Setting for BTreeMap<String, bool> {
    const FORM: &'static str = "names with true or false each";

    fn read(node: &Node) -> Result<Self, Unfit> {
        match &node.value {
            Value::Mapping(entries) => {
                entries.iter().map(|(_, name, node)| Ok((name.clone(), bool::read(node)?))).collect()
            }
            Value::Null => Ok(Self::new()),
            _ => Err(Unfit::wanted(Self::FORM, node)),
        }
    }

    fn print(&self) -> String {
        let entries: Vec<String> = self.iter().map(|(name, on)| format!("{}: {on}", quote(name))).collect();
        format!("{{{}}}", entries.join(", "))
    }
}

/// Makes number types settings; the form names the type's range.
macro_rules! numbers {
    ($($type:ty = $form:literal),+ $(,)?) => {$(
        impl Setting for $type {
            const FORM: &'static str = $form;

            fn read(node: &Node) -> Result<Self, Unfit> {
                match &node.value {
                    Value::Number(text) => text.parse().map_err(|_| Unfit::wanted(Self::FORM, node)),
                    _ => Err(Unfit::wanted(Self::FORM, node)),
                }
            }

            fn print(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

numbers! {
    u16 = "a number from 0 to 65535",
    u32 = "a number from 0 to 4294967295",
    u64 = "a number from 0 on",
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Null => f.write_str("nothing"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(text) => f.write_str(text),
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Sequence(_) => f.write_str("a list"),
            Value::Mapping(_) => f.write_str("a section"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            entries.push((key.referenced.line(), key.value, access.next_value()?));
        }
        Ok(Value::Mapping(entries))
    }
}

/// A double-quoted YAML scalar; what YAML does not take as it is (section 5.1 of its specification) is escaped.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ if character.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}
