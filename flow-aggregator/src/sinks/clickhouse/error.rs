//! What can go wrong with a ClickHouse server, each with what to do about it.

use super::wire::Fault;
use flow_common::net::{ConnectError, TlsError};
use std::{fmt, io, time::Duration};

/// Why the server is not served at the moment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The certificates of the configuration cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection is gone.
    #[error("the connection is lost: {0}")]
    Lost(#[from] io::Error),
    /// It answered too late.
    #[error("no answer within {}s; the commit is tried again", .0.as_secs())]
    Late(Duration),
    /// It does not greet back.
    #[error("no greeting within {}s: the server hangs, or this is not its port of the native protocol (9000 for tcp, 9440 for tls)", .0.as_secs())]
    Silent(Duration),
    /// It said no.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// It is no ClickHouse server, or not on this port.
    #[error("{fault}{}", foreign(*.native))]
    Foreign {
        /// What was read.
        fault: Fault,
        /// Whether the native protocol was spoken.
        native: bool,
    },
    /// The tables were made by a later version.
    #[error(
        "the tables are of schema version {found}, and this flow-aggregator knows versions up to {known}: run the version that \
         made them, or set clickHouse.database to another database"
    )]
    Newer {
        /// Of the database.
        found: u64,
        /// The newest that we know.
        known: u64,
    },
    /// There is such a table, but not ours.
    #[error(
        "table {table} is of a foreign layout: {why}. Rename it (RENAME TABLE {table} TO {table}_old), or set clickHouse.database \
         to another database"
    )]
    Layout {
        /// Its name.
        table: String,
        /// What is not as it should be.
        why: String,
    },
    /// A commit whose outcome is not known must be repeated where it was begun.
    #[error(
        "a commit was begun on shard {begun} and this server is of shard {found}; it is tried again until that shard answers"
    )]
    Shard {
        /// Where it was begun.
        begun: String,
        /// Where the connection led.
        found: String,
    },
}

/// What a server says when it does not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// ClickHouse's number of the error; 0 if it gave none.
    pub code: u32,
    /// Its words.
    pub message: String,
}

/// Longer messages hold the statement or a stack trace.
const LONGEST_MESSAGE: usize = 400;

impl Refusal {
    /// From code and message as the native protocol has them, or as they stand in an answer of HTTP.
    pub fn new(code: u32, message: &str) -> Refusal {
        let message = message.split(", Stack trace").next().unwrap_or_default();
        let message = message.split("Stack trace:").next().unwrap_or_default();
        let mut message: String = message.split_whitespace().collect::<Vec<_>>().join(" ");
        if message.len() > LONGEST_MESSAGE {
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            message.push_str("...");
        }
        Refusal { code, message }
    }

    /// From the body of an answer of HTTP, which begins with `Code: N`.
    pub fn from_text(text: &str) -> Refusal {
        let digits = text.split("Code: ").nth(1).unwrap_or_default();
        let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
        Refusal::new(digits.parse().unwrap_or(0), text)
    }

    fn remedy(&self) -> &'static str {
        match self.code {
            192 | 193 | 194 | 516 => "check CH_USERNAME and CH_PASSWORD",
            81 => "make it (CREATE DATABASE) or set clickHouse.database to one that is there",
            164 | 497 => {
                "the user needs the rights CREATE, ALTER, INSERT, SELECT on the database, SELECT on system.* and TABLE ENGINE on *: grant them"
            }
            16 | 47 | 53 => "a table is not as it was made: put it right or rename it, and it is made anew",
            60 => "the table is gone and is made anew",
            159 | 160 | 202 | 209 | 210 => "the server is overloaded or cannot reach its peers; it is tried again",
            241 => "the server is out of memory; give it more, or set clickHouse.commitInterval lower",
            243 => "the server's disk is full: set clickHouse.ttl or clickHouse.retention lower, or give it more space",
            252 => "too many parts: set clickHouse.commitInterval higher",
            _ => "",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server refuses with code {}: {}", self.code, self.message)?;
        match self.remedy() {
            "" => Ok(()),
            remedy => write!(f, " ({remedy})"),
        }
    }
}

fn foreign(native: bool) -> &'static str {
    if native {
        ". The native protocol is spoken on port 9000 (tcp) or 9440 (tls); for 8123 and 8443 write http or https"
    } else {
        ". HTTP is spoken on port 8123 (http) or 8443 (https); for 9000 and 9440 write tcp or tls"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_and_bear_a_remedy() {
        let text = "Code: 516. DB::Exception: default: Authentication failed: password is incorrect, or there is no user with such \
                    name. (AUTHENTICATION_FAILED) (version 26.7.2)\n";
        let refusal = Refusal::from_text(text);
        assert_eq!(refusal.code, 516);
        assert!(refusal.to_string().ends_with("(check CH_USERNAME and CH_PASSWORD)"));
        let old = Refusal::from_text(
            "Code: 60, e.displayText() = DB::Exception: Table a.b doesn't exist., Stack trace:\n\n0. /usr/",
        );
        assert_eq!((old.code, old.message.contains("Stack")), (60, false));
        assert_eq!(Refusal::from_text("<html>").code, 0);
    }
}
