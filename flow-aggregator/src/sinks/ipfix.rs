//! Joined flows as IPFIX over TCP, TLS or UDP.
//!
//! Takes the collector's address and our observation domain; every connection is a session of its own, with its own
//! sequence numbers and templates. What a record looks like, the record table knows.

use super::{Delivery, Peer, Sink, SinkError};
use crate::aggregate::Batch;
use flow_common::{
    ipfix::exporter::{Session, Settings},
    net::{Connection, Protocol},
    record::Content,
    time::Timestamp,
};
use std::time::{Duration, SystemTime};
use tokio::time::sleep;

/// So often a silent session looks whether templates are due, unless they are due more often.
const LOOK: Duration = Duration::from_secs(60);
/// Bytes that are written together on a stream.
const WRITE: usize = 64 * 1024;

/// Where IPFIX goes, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct IpfixSettings {
    /// The collector.
    pub peer: Peer,
    /// Our observation domain.
    pub domain: u32,
    /// What the flows that come are expected to tell; others make it begin a session of theirs.
    pub content: Content,
    /// Whether records have the extended elements.
    pub extended: bool,
    /// Bytes of a message at most, where less than the transport carries.
    pub max_message: Option<usize>,
    /// Over datagrams the templates are sent again so often, in seconds (RFC 7011, section 8.4).
    pub template_refresh: u32,
}

/// A collector of IPFIX.
#[derive(Debug)]
pub struct IpfixSink {
    settings: IpfixSettings,
    content: Content,
    open: Option<(Connection, Session)>,
    warned: bool,
}

impl IpfixSink {
    /// Nothing is open yet.
    pub fn new(settings: IpfixSettings) -> IpfixSink {
        IpfixSink { content: settings.content, settings, open: None, warned: false }
    }
}

impl Sink for IpfixSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let settings = &self.settings;
        let mut connection = settings.peer.connect().await?;
        let datagrams = connection.protocol() == Protocol::Udp;
        let mut session = Session::new(Settings {
            domain: settings.domain,
            content: self.content,
            extended: settings.extended,
            accounting: false,
            message_limit: settings.max_message.unwrap_or(usize::MAX).min(connection.message_limit()),
            template_resend: datagrams.then_some(settings.template_refresh),
        });
        session.begin(now());
        write(&mut connection, &mut session).await?;
        self.open = Some((connection, session));
        Ok(())
    }

    async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
        let mut delivery = Delivery { through: from, delivered: 0, refused: 0, error: None };
        if batch.content() != self.content {
            // After a change of the mode the old mode's flows may still come.
            self.content = batch.content();
            self.close().await;
            if let Err(error) = self.open().await {
                return Delivery { error: Some(error), ..delivery };
            }
        }
        let Some((connection, session)) = &mut self.open else {
            return Delivery { error: Some(SinkError::Closed), ..delivery };
        };
        session.begin(now());
        let mut refused = 0;
        for (number, joined) in batch.iter().enumerate().skip(from) {
            if let Err(reason) = session.push_encoded(joined.family, joined.bytes(self.settings.extended)) {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!("a flow is not sent: {reason}; further ones are only counted");
                }
                refused += 1;
            }
            if session.len() >= WRITE || number + 1 == batch.len() {
                session.finish();
                if let Err(error) = write(connection, session).await {
                    return Delivery { error: Some(error), ..delivery };
                }
                let delivered = (number + 1 - from) as u64 - refused;
                delivery = Delivery { through: number + 1, delivered, refused, error: None };
            }
        }
        delivery
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        let look = LOOK.min(Duration::from_secs(self.settings.template_refresh.into()));
        let Some((connection, session)) = &mut self.open else { return Err(SinkError::Closed) };
        tokio::select! {
            error = connection.closed() => return Err(SinkError::Lost(error)),
            () = sleep(look) => session.begin(now()),
        }
        write(connection, session).await
    }

    async fn close(&mut self) {
        if let Some((connection, _)) = self.open.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!("the IPFIX collector's connection did not end in order: {error}");
        }
    }
}

async fn write(connection: &mut Connection, session: &mut Session) -> Result<(), SinkError> {
    let written = async {
        if connection.protocol() == Protocol::Udp {
            for message in session.messages() {
                connection.send(message).await?;
            }
        } else if !session.bytes().is_empty() {
            connection.send(session.bytes()).await?;
        }
        connection.flush().await
    };
    written.await.map_err(SinkError::Lost)?;
    session.clear();
    Ok(())
}

/// Seconds since 1970, as messages bear them.
fn now() -> u32 {
    Timestamp::from(SystemTime::now()).seconds()
}
