//! A connection as the aggregator keeps it: numbers, two sides, and where the names are.
//!
//! Takes nothing from outside; what a record does to a flow is in `rules`, how it is shown in `encode`.

use super::{
    key::{Addr, Client, Key},
    tails::TailId,
};
use flow_common::record::{EndReason, Extended, ForwardingStatus, Head};

/// Packets, octets, reverse packets, reverse octets.
pub(super) type Counters = [u64; 4];

/// Places in [`Counters`].
pub(super) const PACKETS: usize = 0;
pub(super) const OCTETS: usize = 1;
pub(super) const REVERSE_PACKETS: usize = 2;
pub(super) const REVERSE_OCTETS: usize = 3;

/// Source and destination in [`Flow::sides`].
pub(super) const SOURCE: usize = 0;
pub(super) const DESTINATION: usize = 1;

/// The exporter of a half: a Node, or a device and its observation domain. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exporter(pub u64);

/// A record as it was decoded, but for its names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub(super) head: &'a Head,
    pub(super) extended: &'a Extended,
    /// Of which counters the sender gives totals, since the flow's begin; of the others only the deltas tell.
    pub(super) has_total: [bool; 4],
    /// The sender is an agent, whose domain names the Node.
    pub(super) is_agents: bool,
}

/// The numbers of one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) totals: Counters,
    pub(super) deltas: Counters,
    /// Milliseconds since 1970, as exact as the record has them.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flow_id: u64,
    pub(super) dropped: u64,
    pub(super) flags: [u16; 2],
    pub(super) icmp: u16,
    pub(super) reason: EndReason,
    pub(super) status: ForwardingStatus,
    pub(super) has_total: [bool; 4],
}

type Transactions = serde_json::Map<String, serde_json::Value>;

/// A flow keeps no more of HTTP transactions than this; a record shows less.
const HTTP_LIMIT: usize = 64 * 1024;

/// What one Node says of the flow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    /// Since the exporter began.
    pub(super) total: Counters,
    /// [`Flow::total`] at the last export.
    pub(super) last: Counters,
    /// Bits a second, both directions.
    pub(super) throughput: [u64; 2],
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flow_id: u64,
    pub(super) dropped: u64,
    /// Of the last record's tail as it came.
    pub(super) tail_hash: u64,
    pub(super) exporter: Exporter,
    pub(super) tail: TailId,
    pub(super) flags: [u16; 2],
    pub(super) reason: EndReason,
    pub(super) status: ForwardingStatus,
}

/// What few flows have.
#[derive(Clone, Debug, Default)]
pub(super) struct Rare {
    /// What a side's exporter had counted before it began anew.
    pub(super) base: [Counters; 2],
    /// HTTP transactions, a JSON object or "".
    pub(super) http: String,
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Flow<A> {
    pub(super) key: Key<A>,
    pub(super) client: Client<A>,
    pub(super) sides: [Side; 2],
    pub(super) rare: Option<Box<Rare>>,
    /// Earliest start of both sides.
    pub(super) start: u64,
    pub(super) icmp: u16,
    /// Second of the last record.
    pub(super) heard: u32,
    /// Second of the last export.
    pub(super) exported: u32,
    /// Second from which the partner is waited for.
    pub(super) waiting: u32,
    /// Everything is in that will come, or was waited for.
    pub(super) ready: bool,
    /// One half is all there will be: it stands for both sides.
    pub(super) alone: bool,
    /// Something is known that was not exported.
    pub(super) news: bool,
    /// It was exported at least once.
    pub(super) shown: bool,
}

impl Default for TailId {
    fn default() -> Self {
        TailId::NONE
    }
}

impl Numbers {
    #[inline]
    pub(super) fn of(Told { head, extended, has_total, .. }: &Told<'_>) -> Numbers {
        let exact = |milliseconds: u64, seconds: u32| {
            if milliseconds == 0 { u64::from(seconds) * 1000 } else { milliseconds }
        };
        Numbers {
            totals: head.totals(),
            deltas: head.deltas(),
            start: exact(extended.start_milliseconds, head.start_seconds),
            end: exact(extended.end_milliseconds, head.end_seconds),
            flow_id: extended.flow_id,
            dropped: extended.dropped_packets,
            flags: [extended.tcp_flags, extended.reverse_tcp_flags],
            icmp: if extended.icmp_type_code == 0 { head.icmp().unwrap_or(0) } else { extended.icmp_type_code },
            reason: head.end_reason,
            status: extended.forwarding_status,
            has_total: *has_total,
        }
    }

    /// What the sender had counted before this record; zero where only deltas tell.
    pub(super) fn before(&self) -> Counters {
        std::array::from_fn(|at| self.totals[at].saturating_sub(self.deltas[at]))
    }
}

impl Side {
    #[inline]
    pub(super) fn is_known(&self) -> bool {
        self.exporter != Exporter::default()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.reason == EndReason::End
    }
}

impl<A: Addr> Flow<A> {
    pub(super) fn new(key: Key<A>, now: u32) -> Flow<A> {
        Flow {
            key,
            client: Client::NONE,
            sides: [Side::default(); 2],
            rare: None,
            start: u64::MAX,
            icmp: 0,
            heard: now,
            exported: now,
            waiting: now,
            ready: false,
            alone: false,
            news: false,
            shown: false,
        }
    }

    /// A word of each of its cache lines, together: so that they come at once.
    #[inline]
    pub(super) fn touch(&self) -> u64 {
        let side = |side: &Side| {
            side.total[0]
                ^ side.total[3]
                ^ side.last[3]
                ^ side.throughput[1]
                ^ side.end
                ^ side.exporter.0
                ^ side.tail_hash
        };
        let [source, destination] = &self.sides;
        side(source) ^ side(destination) ^ self.start ^ u64::from(self.heard)
    }

    /// A side's total, with what its exporter counted before it began anew.
    #[inline]
    pub(super) fn total(&self, side: usize) -> Counters {
        let total = self.sides[side].total;
        match &self.rare {
            None => total,
            Some(rare) => std::array::from_fn(|at| total[at].saturating_add(rare.base[side][at])),
        }
    }

    /// The flow's: the larger of both sides'.
    pub(super) fn common_total(&self) -> Counters {
        larger(self.total(SOURCE), self.total(DESTINATION))
    }

    /// What the flow's total was at the last export.
    pub(super) fn common_last(&self) -> Counters {
        larger(self.sides[SOURCE].last, self.sides[DESTINATION].last)
    }

    /// The side whose record ends latest, the source at a tie.
    #[inline]
    pub(super) fn latest(&self) -> usize {
        if self.sides[DESTINATION].end > self.sides[SOURCE].end { DESTINATION } else { SOURCE }
    }

    /// Every side that is known said that the connection is over.
    pub(super) fn has_ended(&self) -> bool {
        self.sides.iter().all(|side| !side.is_known() || side.has_ended())
    }

    /// Why the last record was sent. The end of a connection stands against anything; the end of an attempt that was
    /// denied does not stand against the other side's going on.
    pub(super) fn reason(&self) -> EndReason {
        let over = |side: &Side| side.has_ended() && !side.status.is_denied();
        let latest = self.latest();
        match self.has_ended() || self.sides.iter().any(over) {
            true => EndReason::End,
            false if self.sides[latest].has_ended() => self.sides[1 - latest].reason,
            false => self.sides[latest].reason,
        }
    }

    /// Latest end of both sides.
    pub(super) fn end(&self) -> u64 {
        self.sides[self.latest()].end
    }

    /// The HTTP transactions with further ones. `None` if there is nothing new in them, or they are no JSON object.
    pub(super) fn http_with(&self, further: &str) -> Option<String> {
        let known = self.rare.as_ref().map_or("", |rare| rare.http.as_str());
        if further == known {
            return None;
        }
        let further: Transactions = serde_json::from_str(further).ok()?;
        let mut all: Transactions = serde_json::from_str(known).unwrap_or_default();
        let before = all.clone();
        all.extend(further);
        if all == before { None } else { serde_json::to_string(&all).ok().filter(|all| all.len() <= HTTP_LIMIT) }
    }

    /// After an export: deltas and throughputs are zero, totals stay.
    pub(super) fn settle(&mut self, now: u32) {
        for side in [SOURCE, DESTINATION] {
            self.sides[side].last = self.total(side);
            self.sides[side].throughput = [0; 2];
        }
        self.exported = now;
        self.news = false;
        self.shown = true;
    }
}

/// The larger of each two counters.
pub(super) fn larger(one: Counters, other: Counters) -> Counters {
    std::array::from_fn(|at| one[at].max(other[at]))
}

/// `now` less `before`, each.
pub(super) fn less(now: Counters, before: Counters) -> Counters {
    std::array::from_fn(|at| now[at].saturating_sub(before[at]))
}
