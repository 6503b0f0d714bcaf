//! What a filter says, in the one form that equal filters share.

use std::net::IpAddr;

use regex::Regex;

use super::Side;
use super::field::{Choice, Field};
use crate::cidr::Cidr;

/// A filter or a part of one. Only [`Expression::all`], [`Expression::any`] and [`Expression::not`] make them, so
/// that nothing is nested in its own kind and nothing is negated twice.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    /// All hold; none is no condition at all.
    All(Vec<Self>),
    /// One of two or more holds.
    Any(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// One condition.
    Test(Test),
}

/// A condition on one field.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Test {
    /// Which end; none for either, and for fields of the flow as a whole.
    pub(super) side: Option<Side>,
    pub(super) field: Field,
    pub(super) condition: Condition,
}

/// What a field is to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    /// One of these.
    Is(Vec<Value>),
    /// Something that a regular expression finds.
    Matches(Pattern),
    Less(u64),
    AtMost(u64),
    More(u64),
    AtLeast(u64),
    /// There at all.
    Has,
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Exactly this text, or for a bare word: this text somewhere.
    Text(Box<str>),
    /// Text in which each `*` stands for any characters; it has at least one.
    Glob(Box<str>),
    Addr(IpAddr),
    Network(Cidr),
    Number(u64),
    Choice(&'static Choice),
    /// All of these TCP flags.
    Flags(u16),
    /// An ICMP type with any code, or with this one.
    Icmp(u8, Option<u8>),
}

/// A regular expression, equal to another of the same text.
#[derive(Clone, Debug)]
pub(super) struct Pattern(pub(super) Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Expression {
    pub(super) fn all(parts: Vec<Self>) -> Self {
        let nested = |part| if let Self::All(parts) = part { parts } else { vec![part] };
        only(parts.into_iter().flat_map(nested).collect()).unwrap_or_else(Self::All)
    }

    pub(super) fn any(parts: Vec<Self>) -> Self {
        let nested = |part| if let Self::Any(parts) = part { parts } else { vec![part] };
        only(parts.into_iter().flat_map(nested).collect()).unwrap_or_else(Self::Any)
    }

    pub(super) fn not(part: Self) -> Self {
        if let Self::Not(part) = part { *part } else { Self::Not(Box::new(part)) }
    }
}

/// The only one of `parts`, or all of them back.
fn only(mut parts: Vec<Expression>) -> Result<Expression, Vec<Expression>> {
    match parts.pop() {
        Some(part) if parts.is_empty() => Ok(part),
        Some(part) => {
            parts.push(part);
            Err(parts)
        }
        None => Err(parts),
    }
}
