//! Joined flows as lines of JSON over TCP or TLS, or a line a datagram over UDP.
//!
//! Takes the collector's address; what a line looks like, the record table knows.

use super::{Delivery, Peer, Sink, SinkError};
use crate::aggregate::Batch;
use flow_common::{
    net::{Connection, Protocol},
    time::Timestamp,
};
use std::time::SystemTime;

/// Lines that are written together on a stream.
const WRITE: usize = 64 * 1024;

/// Where lines of JSON go.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonSettings {
    /// The collector.
    pub peer: Peer,
    /// Whether records have the extended elements.
    pub extended: bool,
}

/// A collector of JSON.
#[derive(Debug)]
pub struct JsonSink {
    settings: JsonSettings,
    connection: Option<Connection>,
    lines: Vec<u8>,
    warned: bool,
}

impl JsonSink {
    /// Nothing is open yet.
    pub fn new(settings: JsonSettings) -> JsonSink {
        JsonSink { settings, connection: None, lines: Vec::new(), warned: false }
    }
}

impl Sink for JsonSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.connection = Some(self.settings.peer.connect().await?);
        Ok(())
    }

    async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
        let mut delivery = Delivery { through: from, delivered: 0, refused: 0, error: None };
        let Some(connection) = &mut self.connection else {
            return Delivery { error: Some(SinkError::Closed), ..delivery };
        };
        let datagrams = connection.protocol() == Protocol::Udp;
        let limit = if datagrams { 0 } else { WRITE };
        let longest = if datagrams { connection.message_limit() } else { usize::MAX };
        let at = timestamp();
        self.lines.clear();
        let mut refused = 0;
        let count = batch.len();
        for (number, joined) in batch.iter().enumerate().skip(from) {
            refused += u64::from(!joined.json(self.settings.extended, at, &mut self.lines));
            if self.lines.len() <= limit && number + 1 < count {
                continue;
            }
            if self.lines.len() > longest {
                if !std::mem::replace(&mut self.warned, true) {
                    let length = self.lines.len();
                    tracing::warn!("a flow's line of {length} bytes fits no datagram; further ones are only counted");
                }
                refused += 1;
            } else if !self.lines.is_empty()
                && let Err(error) = connection.send(&self.lines).await
            {
                return Delivery { error: Some(SinkError::Lost(error)), ..delivery };
            }
            self.lines.clear();
            let delivered = (number + 1 - from) as u64 - refused;
            delivery = Delivery { through: number + 1, delivered, refused, error: None };
        }
        let flushed = connection.flush().await;
        Delivery { error: flushed.err().map(SinkError::Lost), ..delivery }
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        match &mut self.connection {
            Some(connection) => Err(SinkError::Lost(connection.closed().await)),
            None => Err(SinkError::Closed),
        }
    }

    async fn close(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!("the JSON collector's connection did not end in order: {error}");
        }
    }
}

/// The moment at which a line is written.
pub(super) fn timestamp() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
