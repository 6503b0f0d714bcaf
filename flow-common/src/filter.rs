//! The filter language of command lines, API and UI.
//!
//! Takes text; gives a [`Filter`] that prints in one canonical form and is tried on anything that is a [`Subject`].
//! Tells what could stand at a cursor. The language is described in docs/filters.md, whose examples are tested. Knows
//! no record: a field's value is what the subject says. Does no I/O and, when a filter is tried, allocates nothing.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

mod complete;
mod error;
mod evaluate;
mod expression;
mod field;
mod lexer;
mod number;
mod parser;
mod print;
#[cfg(test)]
mod tests;
mod value;
mod view;

pub use complete::{Completion, complete};
pub use error::{Code, Error};
use expression::Expression;
pub use parser::is_keyword;
pub use value::protocol_name;
pub use view::FlowView;

/// The longest filter in bytes, as written and as printed.
pub const MAX_BYTES: usize = 4096;
/// How deep parentheses may be nested.
pub const MAX_DEPTH: usize = 32;
/// How many values may stand between the parentheses of an `in`.
pub const MAX_VALUES: usize = 256;

/// A filter, compiled once and ready to be tried on many subjects. Equal filters print equally.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    expression: Expression,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The originator's.
    Source,
    /// The responder's.
    Destination,
}

/// What an end of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndKind {
    /// A Pod with an address of its own.
    Pod,
    /// A Node, host-network Pods included.
    Node,
    /// Anything else.
    External,
}

/// What a filter can be tried on; a record is by [`FlowView`]. Absent text is "". No method should allocate.
pub trait Subject {
    /// The address of that end.
    fn addr(&self, side: Side) -> IpAddr;
    /// The port of that end; none for protocols without ports.
    fn port(&self, side: Side) -> Option<u16>;
    /// What that end is.
    fn kind(&self, side: Side) -> EndKind;
    /// The name of the Pod at that end.
    fn pod(&self, side: Side) -> &str;
    /// The namespace of that Pod.
    fn namespace(&self, side: Side) -> &str;
    /// The name of the Node at that end, or of that Pod's Node.
    fn node(&self, side: Side) -> &str;
    /// The TCP flags that end sent (FIN 1, SYN 2, RST 4, ...).
    fn flags(&self, side: Side) -> u16;
    /// Layer-3 bytes that end sent.
    fn bytes(&self, side: Side) -> u64;
    /// Packets that end sent.
    fn packets(&self, side: Side) -> u64;
    /// Bits a second that end sends.
    fn rate(&self, side: Side) -> u64;
    /// The IP protocol's number.
    fn protocol(&self) -> u8;
    /// `namespace/name:port` or `namespace/name` of the Service it went to.
    fn service(&self) -> &str;
    /// The TCP state's name.
    fn state(&self) -> &str;
    /// `flowType` as it is on the wire.
    fn flow_type(&self) -> u8;
    /// `forwardingStatus` as it is on the wire.
    fn forwarding_status(&self) -> u8;
    /// `flowEndReason` as it is on the wire.
    fn end_reason(&self) -> u8;
    /// ICMP type and code; none for other protocols.
    fn icmp(&self) -> Option<(u8, u8)>;
    /// From the first packet to the last.
    fn duration(&self) -> Duration;
}

impl Filter {
    /// Reads a filter; an empty text holds for everything.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Ok(Self { expression: parser::parse(text)? })
    }

    /// One that holds where all of these do. It may be longer than one that is written.
    pub fn all(filters: impl IntoIterator<Item = Filter>) -> Self {
        Self { expression: Expression::all(filters.into_iter().map(|filter| filter.expression).collect()) }
    }

    /// Whether it holds for `subject`.
    pub fn matches(&self, subject: &impl Subject) -> bool {
        evaluate::holds(&self.expression, subject)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// The canonical form: parsed again it gives the same filter.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print::expression(&self.expression, f)
    }
}

impl Side {
    /// Both, the source first.
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];
}
