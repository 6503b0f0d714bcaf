//! What is to be sent: the session's messages, the spool of ended flows, and the counts of both.
//!
//! Takes batches with or without a connection, gives messages to send. Opens no connection and reads no clock.

use std::sync::Once;
use std::time::Duration;

use flow_common::ipfix::accounting::Accounting;
use flow_common::ipfix::exporter::{Counters, STREAM_LIMIT, Session, Settings};
use flow_common::record::{Content, EndReason};
use flow_common::time::Timestamp;

use super::spool::Spool;
use crate::doctor::Tally;
use crate::enrich::Record;

/// How long ended flows are kept after they were sent.
const HOLD: Duration = Duration::from_secs(90);

/// Seconds between templates over UDP.
const TEMPLATE_RESEND: u32 = 600;

/// What was sent and what was not, since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Messages sent.
    pub(super) messages: u64,
    /// Flow records sent.
    pub(super) records: u64,
    /// Bytes of messages sent.
    pub(super) octets: u64,
    /// Ended flows that left the spool unsent.
    pub(super) lost_flows: u64,
    /// Their packets and bytes since their last record, both directions.
    pub(super) lost: Tally,
    /// When the first and the last of them left.
    pub(super) lost_at: [Timestamp; 2],
    /// Live flows' records that found no connection.
    pub(super) passed_over: u64,
    /// Records that do not fit a message.
    pub(super) oversized: u64,
}

/// What waits to be sent, and what was.
#[derive(Debug)]
pub(super) struct Outbox {
    settings: Settings,
    /// One a connection.
    session: Option<Session>,
    /// Of the session, as far as they are in `counts`.
    counted: Counters,
    spool: Spool<Record>,
    /// Records of the spool that wait that are in the session's messages.
    encoded: usize,
    capacity: usize,
    counts: Counts,
}

impl Outbox {
    /// Nothing yet; `capacity` is the spool's.
    pub(super) fn new(domain: u32, extended: bool, accounting: bool, capacity: usize) -> Self {
        let settings = Settings {
            domain,
            content: Content::Agent,
            extended,
            accounting,
            message_limit: STREAM_LIMIT,
            template_resend: None,
        };
        let (counted, counts) = (Counters::default(), Counts::default());
        Self { settings, session: None, counted, spool: Spool::new(capacity, HOLD), encoded: 0, capacity, counts }
    }

    /// A batch while there is no connection: ended flows wait, the totals of the others heal what they miss.
    pub(super) fn store(&mut self, batch: &[Record], now: Timestamp) {
        for record in batch {
            if is_over(record) {
                self.spool(record, now);
            } else {
                self.counts.passed_over += 1;
            }
        }
    }

    /// A connection began: every ended flow is to be sent on it, and templates come first.
    pub(super) fn begin(&mut self, message_limit: usize, datagrams: bool, now: Timestamp) {
        self.spool.reconnected();
        self.encoded = 0;
        let template_resend = datagrams.then_some(TEMPLATE_RESEND);
        let mut session = Session::new(Settings { message_limit, template_resend, ..self.settings });
        session.begin(now.seconds());
        self.counted = Counters::default();
        self.session = Some(session);
    }

    /// The connection is no more.
    pub(super) fn end(&mut self) {
        self.count();
        self.session = None;
    }

    /// A batch while there is a connection: live flows at once, ended ones by way of the spool.
    pub(super) fn add(&mut self, batch: &[Record], now: Timestamp) {
        if let Some(session) = &mut self.session {
            session.begin(now.seconds());
        }
        for record in batch {
            if is_over(record) {
                self.spool(record, now);
            } else if let Some(session) = &mut self.session {
                push(session, record);
            }
        }
    }

    /// Encodes up to `max` records of the spool that this connection has not carried. True if there are more.
    pub(super) fn take_spooled(&mut self, max: usize, now: Timestamp) -> bool {
        let Some(session) = &mut self.session else { return false };
        session.begin(now.seconds());
        for record in self.spool.waiting().skip(self.encoded).take(max) {
            push(session, record);
            self.encoded += 1;
        }
        self.spool.waiting().nth(self.encoded).is_some()
    }

    /// Encodes a record of options data.
    pub(super) fn account(&mut self, accounting: &Accounting, now: Timestamp) {
        if let Some(session) = &mut self.session {
            session.begin(now.seconds());
            if let Err(refused) = session.push_accounting(accounting) {
                tracing::debug!("accounting is not sent: {refused}");
            }
        }
    }

    /// What is due by time: templates again, and sent records that were kept long enough.
    pub(super) fn tick(&mut self, now: Timestamp) {
        if let Some(session) = &mut self.session {
            session.begin(now.seconds());
            self.spool.expire(now);
        }
    }

    /// The session with all its messages finished, for sending.
    pub(super) fn finished(&mut self) -> Option<&Session> {
        let session = self.session.as_mut()?;
        session.finish();
        Some(session)
    }

    /// The finished messages were sent.
    pub(super) fn sent(&mut self, now: Timestamp) {
        self.spool.mark_sent(std::mem::take(&mut self.encoded), now);
        if let Some(session) = &mut self.session {
            session.clear();
        }
        self.count();
    }

    /// What was sent and what was not.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Ended flows in the spool.
    pub(super) fn spooled(&self) -> usize {
        self.spool.len()
    }

    /// Ended flows that no connection carried.
    pub(super) fn unsent(&self) -> usize {
        self.spool.unsent()
    }

    /// Ended flows there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    fn spool(&mut self, record: &Record, now: Timestamp) {
        let Some(lost) = self.spool.push(record.clone()) else { return };
        let [packets, octets, reverse_packets, reverse_octets] = lost.head.deltas();
        self.counts.lost_flows += 1;
        self.counts.lost.add(Tally { packets: packets + reverse_packets, bytes: octets + reverse_octets });
        if self.counts.lost_at[0] == Timestamp::ZERO {
            self.counts.lost_at[0] = now;
        }
        self.counts.lost_at[1] = now;
    }

    /// Adds what the session counted since the last time.
    fn count(&mut self) {
        let Some(session) = &self.session else { return };
        let (now, before) = (*session.counters(), self.counted);
        self.counts.messages += now.messages - before.messages;
        self.counts.records += now.records - before.records;
        self.counts.octets += now.octets - before.octets;
        self.counts.oversized += now.too_long - before.too_long;
        self.counted = now;
    }
}

/// Whether the flow has no further record.
fn is_over(record: &Record) -> bool {
    matches!(record.head.end_reason, EndReason::End | EndReason::Forced | EndReason::Resources)
}

/// What cannot be encoded is counted by the session; why is said once a cause.
fn push(session: &mut Session, record: &Record) {
    static SAID: Once = Once::new();
    if let Err(refused) = session.push(&record.head, &record.tail, &record.extended) {
        SAID.call_once(|| tracing::warn!("a record is not sent, and others like it are only counted: {refused}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flow_common::record::{Cut, Extended, Family, Head, Tail};

    use super::*;

    fn ended(flow_id: u64) -> Record {
        let tail = Arc::new(Tail::default().to_encoded(Family::V4, &mut Cut::default()));
        let head = Head { end_reason: EndReason::End, packet_delta: 1, ..Head::default() };
        Record { head, tail, extended: Extended { flow_id, ..Extended::default() } }
    }

    #[test]
    fn what_a_connection_broke_under_was_not_sent() {
        let now = Timestamp::from_seconds(1_000);
        let mut outbox = Outbox::new(1, true, false, 2);
        outbox.store(&[ended(1), ended(2)], now);
        outbox.begin(STREAM_LIMIT, false, now);
        assert!(outbox.take_spooled(1, now));
        assert!(outbox.finished().is_some());
        outbox.sent(now);
        assert!(!outbox.take_spooled(1, now));
        assert_eq!(outbox.unsent(), 1, "it is on its way");
        outbox.end();
        assert_eq!((outbox.spooled(), outbox.unsent()), (2, 1));
        outbox.store(&[ended(3), ended(4)], now);
        assert_eq!(outbox.counts().lost_flows, 1, "of the two that left one was sent");
        outbox.begin(STREAM_LIMIT, false, now);
        while outbox.take_spooled(1, now) {}
        outbox.sent(now);
        assert_eq!(outbox.unsent(), 0);
    }
}
