//! A part of the table as it is read by pieces. Plain values: where a reader is, and what it got.

use flow_common::record::{AggregatedFlow, Family};
use std::{fmt, str::FromStr};

/// Where to go on reading; readers carry it from page to page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) family: Family,
    pub(super) slot: u32,
}

/// Some flows of the table.
#[derive(Clone, Debug)]
pub struct Page {
    /// Those that were accepted; possibly none though more follow.
    pub flows: Vec<AggregatedFlow>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// A text that is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no place in the table: take it from the answer before, or leave it out")]
pub struct NoCursor;

impl Cursor {
    /// Where everything is yet to be read.
    pub const BEGIN: Cursor = Cursor { family: Family::V4, slot: 0 };

    pub(super) fn of(family: Family, slot: u32) -> Cursor {
        Cursor { family, slot }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        write!(f, "{family}-{}", self.slot)
    }
}

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Cursor, NoCursor> {
        let (family, slot) = text.split_once('-').ok_or(NoCursor)?;
        let family = match family {
            "4" => Family::V4,
            "6" => Family::V6,
            _ => return Err(NoCursor),
        };
        Ok(Cursor { family, slot: slot.parse().map_err(|_| NoCursor)? })
    }
}
