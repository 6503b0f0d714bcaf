//! Sessions of exporters and what comes in them, on their way from the collector to the table.

use bytes::Bytes;
use flow_common::ipfix::message::MessageError;
use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::oneshot;

/// A transport session, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// A number that was never given before.
    pub fn next() -> SessionId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        SessionId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the collector hands to the table.
#[derive(Debug)]
pub enum Input {
    /// A session begins.
    Opened {
        /// Its number.
        session: SessionId,
        /// The exporter's address.
        peer: IpAddr,
        /// By datagrams: templates expire, messages may be lost.
        datagrams: bool,
        /// Closes a stream whose messages make no sense.
        close: Option<oneshot::Sender<MessageError>>,
    },
    /// Whole messages of a session.
    Messages {
        /// Its number.
        session: SessionId,
        /// One or more of them.
        bytes: Bytes,
    },
    /// A session is over.
    Closed {
        /// Its number.
        session: SessionId,
    },
}
