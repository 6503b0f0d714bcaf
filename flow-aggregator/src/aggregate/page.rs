//! A part of the table as it is read by pieces. Plain values: where a reader is, and what it got.
//!
//! The table gives [`Piece`]s; which flows of one are wanted is the reader's to find out, as a filter may take its time.

use super::encode::Batch;
use flow_common::{
    filter::{Filter, FlowView},
    record::{AggregatedFlow, Family},
};
use std::{fmt, str::FromStr};

/// Where to go on reading; readers carry it from page to page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) family: Family,
    pub(super) slot: u32,
}

/// Flows that stand together in the table, as they would be exported now.
#[derive(Clone, Debug)]
pub struct Piece {
    pub(super) flows: Batch,
    /// Where each of them is.
    pub(super) places: Vec<Cursor>,
    /// Where the next piece begins; `None` at the end.
    pub(super) next: Option<Cursor>,
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

impl Piece {
    /// The flows that the filter accepts, at most `max`.
    pub fn select(&self, filter: &Filter, max: usize) -> Page {
        let mut flows = Vec::new();
        for (joined, place) in self.flows.iter().zip(&self.places) {
            if flows.len() >= max {
                return Page { flows, next: Some(*place) };
            }
            flows.extend(joined.decode().filter(|flow| filter.matches(&FlowView::from(flow))));
        }
        Page { flows, next: self.next }
    }
}

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
