//! What goes over the socket: one request, then replies, each a line of JSON.

use serde::{Deserialize, Serialize};

use crate::doctor::{Drops, Facts};
use crate::verify::Report;
use flow_common::row::Row;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The live flows, or every record from now on.
    Flows {
        /// An expression of the filter language; empty for all.
        #[serde(default)]
        filter: String,
        /// Records from now on instead of what is there.
        #[serde(default)]
        follow: bool,
        /// How flows are told.
        #[serde(default)]
        form: Form,
    },
    /// The flows with the most traffic, every second.
    Top {
        /// An expression of the filter language; empty for all.
        #[serde(default)]
        filter: String,
        /// How many.
        rows: usize,
    },
    /// The facts.
    Doctor,
    /// What the kernel dropped, and the flows that did not come through.
    Drops,
    /// Whether connection tracking counted the same.
    Verify,
}

/// How flows are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As rows for people.
    #[default]
    Row,
    /// As records, by the names of their elements.
    Record,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// A flow.
    Row(Box<Row>),
    /// A flow as a record.
    Record(serde_json::Value),
    /// The flows with the most traffic.
    Top(Top),
    /// The facts.
    Doctor(Box<Facts>),
    /// What the kernel dropped, and the flows that did not come through.
    Drops(Box<DropsReply>),
    /// Whether connection tracking counted the same.
    Verify(Box<Report>),
    /// So many records were not told so far, because the client is slow.
    Skipped(u64),
    /// The request cannot be answered; nothing follows.
    Error(String),
    /// That was all.
    End,
}

/// What the kernel dropped, and the flows that did not come through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DropsReply {
    /// What the kernel dropped.
    pub drops: Drops,
    /// Flows that did not come through, those with the latest packet first; of very many only the latest.
    pub flows: Vec<DeniedFlow>,
}

/// A flow that did not come through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeniedFlow {
    /// The flow.
    pub row: Row,
    /// Packets of it that were dropped here, both directions.
    pub dropped: u64,
    /// Reason, interface and place of the last drop; empty if only an answer says that it was refused.
    pub reason: String,
    /// As `reason`.
    pub interface: String,
    /// As `reason`.
    pub location: String,
}

/// The flows with the most traffic at a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Top {
    /// Flows with packets within the window.
    pub active: u64,
    /// Bits a second of all of them, both directions.
    pub bits: u64,
    /// Packets a second of all of them, both directions.
    pub packets: u64,
    /// The first ones.
    pub rows: Vec<Ranked>,
}

/// A flow and its traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Bits a second, both directions.
    pub bits: u64,
    /// Packets a second, both directions.
    pub packets: u64,
    /// The flow.
    pub row: Row,
}

impl Request {
    /// The filter's text.
    pub fn filter(&self) -> &str {
        match self {
            Self::Flows { filter, .. } | Self::Top { filter, .. } => filter,
            Self::Doctor | Self::Drops | Self::Verify => "",
        }
    }
}
