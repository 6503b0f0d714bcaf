//! When a connection is exported, and as what.
//!
//! A live one that had packets when the active timeout has passed since its last record; one without packets for the
//! idle timeout, once; one that is over at once, and again if strays came. From its second record on a live flow waits
//! for the sweep to come by, so that the record has what the kernel counted up to then. Without a collector only what
//! is over is given: the totals of the others go on.

use std::hint::black_box;
use std::time::Duration;

use flow_common::record::{EndReason, Extended, Head, TcpState};
use flow_common::time::Timestamp;

use super::connection::{
    CLOSED, DENIAL_NEWS, DETACHED, DONE, EXPORTED, EXPORTS, FROM_END_1, IDLE, LIVE, OVER, QUEUED, Reason, SCHEDULED,
    TRACKED, WANTS_START, WANTS_TOTALS,
};
use super::counted::Parted;
use super::counters::difference;
use super::entry::{ATTENTION, Entry};
use super::key::is_icmp;
use super::ledger::Class;
use super::slab::NONE;
use super::time::{STRAYS_NS, since};
use super::{Ends, Table, Update};

const SECOND_NS: u64 = 1_000_000_000;

/// Connections whose memory is waited for at once.
const BLOCK: usize = 128;

/// What due() is told by its caller.
pub(super) struct Asked<F> {
    pub(super) now_ns: u64,
    pub(super) connected: bool,
    pub(super) exported: F,
}

impl Table {
    pub(super) fn give(
        &mut self,
        max: usize,
        asked: &mut Asked<impl FnMut(&Ends, Timestamp) -> bool>,
        updates: &mut Vec<Update>,
    ) -> bool {
        let end = updates.len() + max;
        let mut fired = std::mem::take(&mut self.fired);
        let mut more = self.timers.fire(seconds(asked.now_ns), max, &mut fired);
        for number in fired.drain(..) {
            self.connections[number].set(SCHEDULED, false);
            self.fire(number, asked);
        }
        self.fired = fired;
        let mut near = 0_usize;
        while updates.len() < end {
            near = near.checked_sub(1).unwrap_or_else(|| self.touch_ready());
            let Some(number) = self.ready.pop_front() else { break };
            if self.connections[number].has(QUEUED) {
                self.connections[number].set(QUEUED, false);
                updates.extend(self.produce(number, asked));
            }
        }
        more |= !self.ready.is_empty();
        if !more {
            // What waits for an answer of connection tracking's is looked at again next time.
            for number in std::mem::take(&mut self.held) {
                self.queue(number);
            }
        }
        more
    }

    /// Brings the memory of the next connections near, all at once instead of one after the other. Gives how many
    /// follow the first.
    fn touch_ready(&self) -> usize {
        let (mut counting, mut count) = ([NONE; BLOCK], 0);
        for (entry, number) in counting.iter_mut().zip(&self.ready) {
            let connection = &self.connections[*number];
            black_box([connection.total[0], connection.last_ns, u64::from(connection.flags)]);
            *entry = connection.counting;
            count += 1;
        }
        for entry in counting.into_iter().filter(|entry| *entry != NONE) {
            black_box((self.entries[entry].seen[0], self.entries[entry].at_pod()));
        }
        count.max(1) - 1
    }

    /// Puts a connection into the list of what may be due.
    pub(super) fn queue(&mut self, number: u32) {
        if !self.connections[number].has(QUEUED) {
            self.connections[number].set(QUEUED, true);
            self.ready.push_back(number);
        }
    }

    /// Sees to a connection again at that time, or up to a second later.
    pub(super) fn schedule(&mut self, number: u32, at_ns: u64) {
        self.connections[number].set(SCHEDULED, true);
        self.timers.schedule(number, seconds(at_ns.saturating_add(SECOND_NS - 1)));
    }

    /// Ends a connection.
    pub(super) fn end(&mut self, number: u32, reason: Reason, at_ns: u64) {
        let connection = &mut self.connections[number];
        connection.set(OVER, true);
        connection.reason = reason;
        connection.mark_ns = at_ns;
        self.live -= 1;
        self.queue(number);
    }

    /// Whether a sweep that comes by finds the connection due. The sweep may come a little earlier than the last time.
    pub(super) fn is_due_at_sweep(&self, number: u32, now_ns: u64) -> bool {
        let connection = &self.connections[number];
        let passed_ns = since(now_ns, connection.mark_ns).saturating_add(self.active_ns / 20);
        connection.has(EXPORTED) && passed_ns >= self.active_ns
    }

    /// A connection as it is now.
    pub(super) fn update(&self, number: u32, reason: EndReason) -> Update {
        let connection = &self.connections[number];
        let (ends, verdict) = (self.ends(number), self.verdict(number));
        let [packet_total, octet_total, reverse_packet_total, reverse_octet_total] = connection.total;
        let [packet_delta, octet_delta, reverse_packet_delta, reverse_octet_delta] =
            difference(connection.total, connection.exported);
        let (start, end) = (Timestamp::from_nanos(connection.start_ns), Timestamp::from_nanos(connection.last_ns));
        let head = Head {
            start_seconds: start.seconds(),
            end_seconds: end.seconds(),
            end_reason: reason,
            src_port: ends.src_port,
            dst_port: ends.dst_port,
            protocol: ends.protocol,
            packet_total,
            octet_total,
            packet_delta,
            octet_delta,
            src_addr: ends.src,
            dst_addr: ends.dst,
            reverse_packet_total,
            reverse_octet_total,
            reverse_packet_delta,
            reverse_octet_delta,
        };
        let mut extended = Extended {
            start_milliseconds: start.millis(),
            end_milliseconds: end.millis(),
            tcp_flags: connection.tcp_flags[0],
            reverse_tcp_flags: connection.tcp_flags[1],
            icmp_type_code: if is_icmp(ends.src, ends.protocol) { ends.dst_port } else { 0 },
            flow_id: connection.flow_id,
            dropped_packets: self.dropped_packets(number),
            forwarding_status: verdict,
            ..Extended::default()
        };
        if let Some((addr, port)) = ends.nat_src {
            (extended.nat_src_addr, extended.nat_src_port) = (addr, port);
        }
        Update {
            slot: number,
            revision: connection.revision,
            head,
            extended,
            ends,
            zone: connection.zone,
            tcp_state: if verdict.is_denied() { TcpState::None } else { connection.state.into() },
            start,
        }
    }

    /// Originator, responder, and what translation hides.
    pub(super) fn ends(&self, number: u32) -> Ends {
        let connection = &self.connections[number];
        let entry = &self.entries[connection.counting];
        let key = self.entries.key(connection.counting);
        let other = (connection.other != NONE).then(|| &self.entries[connection.other]);
        let at_pod = entry.at_pod() || other.is_some_and(Entry::at_pod);
        let (mut original_dst, mut nat_src) = (None, None);
        let [src, dst] = if connection.tracked == NONE {
            key.ends(connection.has(FROM_END_1))
        } else {
            let tracked = &self.tracker[connection.tracked];
            let [src, meant] = tracked.original.0.ends(tracked.original.1);
            let [seen_src, dst] = tracked.translated.0.ends(tracked.translated.1);
            original_dst = (meant != dst).then_some(meant);
            nat_src = (seen_src != src).then_some(seen_src);
            [src, dst]
        };
        Ends {
            src: src.0,
            dst: dst.0,
            src_port: src.1,
            dst_port: dst.1,
            protocol: key.protocol(),
            original_dst,
            nat_src,
            at_pod,
        }
    }

    /// What becomes of the packets that a connection's entries counted.
    pub(super) fn class(&self, number: u32) -> Class {
        let connection = &self.connections[number];
        match (connection.has(EXPORTS), connection.has(DONE)) {
            (true, _) => Class::Accounted,
            (false, true) => Class::NotLocal,
            (false, false) => Class::Undecided,
        }
    }

    /// Lets a connection go that nothing refers to any more.
    pub(super) fn release_if_done(&mut self, number: u32) {
        let connection = &self.connections[number];
        let unattached = connection.has(DETACHED) && connection.other == NONE;
        if connection.has(DONE) && unattached && !connection.has_news() {
            let class = self.class(number);
            self.ledger.book(connection.portions, class);
            self.part(|table| Parted::Flow(table.counted(number)));
            self.forget_connection(number);
        }
    }

    /// Frees a connection's number.
    pub(super) fn forget_connection(&mut self, number: u32) {
        let connection = &mut self.connections[number];
        self.live -= usize::from(!connection.has(OVER));
        self.tracked_flows -= usize::from(connection.has(TRACKED));
        let (tracked, was_closed) = (connection.tracked, connection.has(CLOSED));
        connection.flags = 0;
        if tracked != NONE {
            self.tracker.release(tracked, was_closed);
        }
        self.timers.cancel(number);
        self.connections.remove(number);
        self.forget_denial(number);
    }

    /// A deadline has come: queues the connection, or schedules the next one.
    fn fire(&mut self, number: u32, asked: &Asked<impl FnMut(&Ends, Timestamp) -> bool>) {
        let connection = &self.connections[number];
        let now_ns = asked.now_ns;
        if connection.has(OVER) {
            if connection.has_news() {
                self.queue(number);
            }
            return;
        }
        if !connection.has(TRACKED) {
            let protocol = self.entries.key(connection.counting).protocol();
            let over_at = connection.last_ns.saturating_add(nanos(connection.patience(protocol)));
            if now_ns >= over_at {
                return self.end(number, Reason::End, over_at);
            }
            if !connection.has_news() && connection.has(IDLE) {
                return self.schedule(number, over_at);
            }
        }
        let connection = &self.connections[number];
        let idle_at = connection.last_ns + self.idle_ns;
        if connection.has_news() {
            // Where a sweep should have come by and did not, the news is given as it is.
            let rounds = if connection.has(EXPORTED) { 2 } else { 1 };
            let due_at = (connection.mark_ns + rounds * self.active_ns).min(idle_at);
            let is_due = now_ns >= due_at || connection.mark_ns > now_ns;
            return if is_due { self.queue(number) } else { self.schedule(number, due_at) };
        }
        if !connection.has(IDLE) {
            if now_ns >= idle_at { self.queue(number) } else { self.schedule(number, idle_at) }
        }
    }

    /// The record of a connection from the list, if one is due.
    fn produce(&mut self, number: u32, asked: &mut Asked<impl FnMut(&Ends, Timestamp) -> bool>) -> Option<Update> {
        let connection = &self.connections[number];
        let (is_over, now_ns) = (connection.has(OVER), asked.now_ns);
        if !connection.has(LIVE) || connection.has(DONE) && !connection.has_news() {
            return None;
        }
        if connection.has(WANTS_TOTALS) {
            self.held.push(number);
            return None;
        }
        if connection.has(DONE) && !connection.has(EXPORTS) {
            self.conclude(number, now_ns);
            return None;
        }
        if !self.is_exported(number, asked) {
            if is_over {
                self.conclude(number, now_ns);
            } else {
                self.connections[number].mark_ns = now_ns;
                self.schedule(number, now_ns + self.active_ns);
            }
            return None;
        }
        if !is_over && !asked.connected {
            self.schedule(number, now_ns + self.active_ns);
            return None;
        }
        if !is_over && self.lacks_start(number) {
            self.held.push(number);
            return None;
        }
        let is_empty = self.connections[number].total == [0; 4];
        if is_over && (is_empty || self.is_said(number)) {
            self.conclude(number, now_ns);
            return None;
        }
        self.settle_identity(number, self.connections[number].start_ns);
        if self.config.keeps && !self.connections[number].has(EXPORTED) {
            self.identify(number);
        }
        let reason = self.reason(number, now_ns);
        let update = self.update(number, reason);
        self.note_given(number, reason, now_ns);
        Some(update)
    }

    fn note_given(&mut self, number: u32, reason: EndReason, now_ns: u64) {
        let connection = &mut self.connections[number];
        connection.exported = connection.total;
        connection.set(EXPORTED, true);
        connection.set(DENIAL_NEWS, false);
        if !connection.has(DETACHED) {
            self.ledger.account(&mut self.entries[connection.counting]);
        }
        if connection.has(OVER) {
            return self.conclude(number, now_ns);
        }
        connection.mark_ns = now_ns;
        // That it was denied is said once until there is more to say.
        let is_said = matches!(reason, EndReason::Idle | EndReason::End);
        connection.set(IDLE, is_said);
        let next = connection.last_ns + self.idle_ns;
        if is_said || !connection.has(SCHEDULED) {
            self.schedule(number, next.max(now_ns));
        }
    }

    /// Why a record is given now.
    fn reason(&self, number: u32, now_ns: u64) -> EndReason {
        let connection = &self.connections[number];
        match connection.reason {
            _ if !connection.has(OVER) && self.verdict(number).is_denied() => EndReason::End,
            _ if !connection.has(OVER) && now_ns >= connection.last_ns + self.idle_ns => EndReason::Idle,
            _ if !connection.has(OVER) => EndReason::Active,
            Reason::End => EndReason::End,
            Reason::Forced => EndReason::Forced,
            Reason::Resources => EndReason::Resources,
        }
    }

    /// Asks whether a flow is exported, until the answer is yes: Pods may become known later than their first packets.
    fn is_exported(&mut self, number: u32, asked: &mut Asked<impl FnMut(&Ends, Timestamp) -> bool>) -> bool {
        if self.connections[number].has(EXPORTS) {
            return true;
        }
        let start = Timestamp::from_nanos(self.connections[number].start_ns);
        let exports = (asked.exported)(&self.ends(number), start);
        self.connections[number].set(EXPORTS, exports);
        exports
    }

    /// Whether connection tracking is to say first when the connection began.
    fn lacks_start(&mut self, number: u32) -> bool {
        let connection = &mut self.connections[number];
        if connection.has(WANTS_START) {
            return true;
        }
        if connection.flow_id != 0 || !connection.has(TRACKED) || !self.config.timestamps || connection.attempts > 0 {
            return false;
        }
        connection.set(WANTS_START, true);
        self.wanted.push(number);
        true
    }

    /// Its last record was given, or it is not to have one: what is left are strays, and the deletion of its map
    /// entries. Those of a flow that fell silent long ago are deleted at once: sweeps pass them over.
    pub(super) fn conclude(&mut self, number: u32, now_ns: u64) {
        let connection = &mut self.connections[number];
        connection.set(DONE, true);
        connection.set(DENIAL_NEWS, false);
        connection.exported = connection.total;
        if connection.has(DETACHED) {
            return self.release_if_done(number);
        }
        let is_quiet = since(now_ns, connection.last_ns) >= STRAYS_NS;
        for slot in [connection.counting, connection.other].into_iter().filter(|slot| *slot != NONE) {
            self.entries[slot].set(ATTENTION, true);
            if is_quiet {
                self.ask_deletion(slot);
            }
        }
    }
}

/// Seconds since 1970, as the timers have them.
pub(super) fn seconds(at_ns: u64) -> u32 {
    Timestamp::from_nanos(at_ns).seconds()
}

/// A duration as the table computes with it.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}
