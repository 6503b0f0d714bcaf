//! The filter language of command lines, API and UI.
//!
//! Takes text; gives an expression that can be printed in its canonical form and tried on anything that is a [`Subject`]. Docs: docs/filters.md.
//! Knows no record: what a field's value is, the subject says. No I/O.

use std::fmt;
use std::net::IpAddr;

/// A filter, ready to be tried on many subjects.
#[derive(Clone, Debug)]
pub struct Filter {}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The originator's.
    Source,
    /// The responder's.
    Destination,
}

/// What a filter can be tried on. Absent text is "", an absent number `None`. No method may allocate.
pub trait Subject {
    /// The address of that end.
    fn addr(&self, side: Side) -> IpAddr;
    /// The port of that end; `None` for protocols without ports.
    fn port(&self, side: Side) -> Option<u16>;
    /// A name that belongs to one end.
    fn end_text(&self, side: Side, field: EndText) -> &str;
    /// What that end is.
    fn end_kind(&self, side: Side) -> EndKind;
    /// The value of that Pod label, if labels are known and it is among them.
    fn label(&self, side: Side, key: &str) -> Option<&str>;
    /// A text of the flow as a whole.
    fn text(&self, field: Text) -> &str;
    /// A number of the flow as a whole; durations in nanoseconds, rates in bit/s.
    fn number(&self, field: Number) -> Option<u64>;
}

/// Names that each end of a flow has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndText {
    /// The Pod's name.
    Pod,
    /// Its namespace.
    Namespace,
    /// The Node it is on.
    Node,
}

/// What an end of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndKind {
    /// A Pod with an address of its own.
    Pod,
    /// A Node.
    Node,
    /// Anything else.
    External,
}

/// Texts of the flow as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// `namespace/name:port` of the Service it went to.
    Service,
    /// The TCP state's name.
    State,
}

/// Numbers of the flow as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// IP protocol number.
    Protocol,
}

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What sort of mistake it is; never changes between versions.
    pub code: &'static str,
    /// Where, in UTF-16 units from 0, as browsers count.
    pub span: std::ops::Range<usize>,
    /// The same for people: first and last column, from 1.
    pub columns: (usize, usize),
    /// What could have stood there.
    pub expected: Vec<String>,
    /// How to put it right, if that can be guessed.
    pub hint: Option<String>,
}

impl Filter {
    /// Reads a filter.
    pub fn parse(_text: &str) -> Result<Self, Error> {
        Ok(Self {})
    }

    /// Whether it holds for `subject`.
    pub fn matches(&self, _subject: &impl Subject) -> bool {
        true
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

impl std::error::Error for Error {}
