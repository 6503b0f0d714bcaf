//! The table of connections: records of many exporters in, joined flows out.
//!
//! Takes read buffers of sessions and the passing of time; gives batches of joined flows for the sinks. No I/O and no
//! clock: `now` is in seconds of a clock that only goes forward. Everything is bounded and everything refused counted.

mod accounts;
mod cluster;
mod counts;
mod encode;
mod flow;
mod flows;
mod item;
mod key;
mod losses;
mod nodes;
mod page;
mod proxy;
mod rules;
mod table;
mod tails;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tombstones;

pub use accounts::Amount;
pub use counts::{Counts, Fill, Received};
pub use encode::{Batch, Joined};
pub use page::{Cursor, Page, Piece};

use crate::input::SessionId;
use accounts::Accounts;
use cluster::Cluster;
use flow::{Exporter, Told};
use flow_common::{
    ipfix::{
        accounting::Accounting,
        collector::{self, Limits, TailHash},
        message::MessageError,
    },
    k8s::Change,
    record::{Cut, Family},
    time::Timestamp,
};
use flows::{Flows, Turn};
use item::{Item, Names};
use key::Addr;
use losses::Losses;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Records that are decoded together, or as many as a message has.
const DECODED: usize = 128;
/// Records that are applied together: their cache misses overlap, and they themselves stay in the nearest cache.
const GROUP: usize = 64;
/// Places that one piece looks at: a fraction of a millisecond's work.
const LOOKED_AT: u32 = 256;
/// Marks exporters that are known by their domain alone.
const AGENT: u64 = 1 << 63;

/// Timeouts in seconds, and bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A ready flow with news is exported this long after its last export.
    pub active: u32,
    /// A flow without a record for so long leaves the table.
    pub inactive: u32,
    /// A half waits so long for its partner.
    pub correlation: u32,
    /// How long a tombstone stays.
    pub tombstone: u32,
    /// Flows of each address family.
    pub max_flows: usize,
    /// Tombstones of each address family.
    pub max_tombstones: usize,
    /// Whether records bear the Pods' labels, where an index knows them.
    pub labels: bool,
    /// Whether records are handed on one by one, unjoined: nothing is kept then.
    pub proxy: bool,
}

impl Settings {
    /// Without the room for flows that are not kept.
    fn kept(&self) -> Settings {
        let max_flows = if self.proxy { 0 } else { self.max_flows };
        Settings { max_flows, ..self.clone() }
    }
}

/// Who sent a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The exporter's address.
    pub addr: IpAddr,
    /// Its observation domain.
    pub domain: u32,
}

/// The table.
#[derive(Debug)]
pub struct Aggregate {
    v4: Flows<Ipv4Addr>,
    v6: Flows<Ipv6Addr>,
    cluster: Cluster,
    accounts: Accounts,
    losses: Losses,
    sessions: HashMap<SessionId, Session>,
    /// Of sessions that are over.
    past: collector::Counters,
    decoded: collector::Batch,
    tail_hash: TailHash,
    counts: Counts,
    cut: Cut,
    batch: Batch,
    proxy: bool,
    hasher: RandomState,
}

#[derive(Debug)]
struct Session {
    decoder: collector::Session,
    peer: IpAddr,
    datagrams: bool,
}

/// Decoded records that wait to be applied together.
#[derive(Debug, Default)]
struct Group<'a> {
    v4: Vec<Item<'a, Ipv4Addr>>,
    v6: Vec<Item<'a, Ipv6Addr>>,
}

impl Aggregate {
    /// An empty table.
    pub fn new(settings: &Settings) -> Aggregate {
        let hasher = RandomState::new();
        let tail_hash = TailHash::new(hasher.hash_one(GROUP));
        Aggregate {
            v4: Flows::new(&settings.kept(), &tail_hash),
            v6: Flows::new(&settings.kept(), &tail_hash),
            cluster: Cluster::new(settings.labels),
            accounts: Accounts::default(),
            losses: Losses::default(),
            sessions: HashMap::new(),
            past: collector::Counters::default(),
            decoded: collector::Batch::new(DECODED),
            tail_hash,
            counts: Counts::default(),
            cut: Cut::default(),
            batch: Batch::default(),
            proxy: settings.proxy,
            hasher,
        }
    }

    /// A session begins.
    pub fn open(&mut self, id: SessionId, peer: IpAddr, datagrams: bool) {
        let limits = if datagrams { Limits::DATAGRAMS } else { Limits::STREAM };
        let decoder = collector::Session::new(limits, self.tail_hash.clone());
        self.sessions.insert(id, Session { decoder, peer, datagrams });
    }

    /// A session is over, and its templates with it.
    pub fn close(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            let (counters, lost) = session.decoder.finish();
            self.past += counters;
            for (domain, records) in lost {
                self.losses.add(Source { addr: session.peer, domain }, records);
            }
        }
    }

    /// Takes whole messages of a session: of a stream many, of datagrams one. After an error a stream cannot go on;
    /// what came before the malformed message is taken.
    pub fn feed(&mut self, id: SessionId, buffer: &[u8], now: u32) -> Result<(), MessageError> {
        let mut decoded = std::mem::replace(&mut self.decoded, collector::Batch::new(0));
        let mut at = 0;
        let ended = loop {
            let Some(session) = self.sessions.get_mut(&id) else { break Ok(()) };
            let peer = session.peer;
            let step = match session.datagrams {
                true => session.decoder.decode_datagram(buffer, 0..buffer.len(), now, &mut decoded).map(|()| at),
                false => session.decoder.decode(buffer, at, now, &mut decoded),
            };
            self.work(peer, &decoded, buffer, now);
            decoded.clear();
            match step {
                Ok(next) if next > at => at = next,
                ended => break ended.map(|_| ()),
            }
        };
        self.decoded = decoded;
        ended
    }

    /// What is due by `now`, at most `max` flows of each family; true if there is more.
    pub fn expired(&mut self, now: u32, max: usize) -> bool {
        let (v4, v6, mut turn) = self.turn(now);
        let more = v4.expire(max, &mut turn);
        v6.expire(max, &mut turn) || more
    }

    /// Exports everything that has news: the process ends.
    pub fn finish(&mut self, now: u32) {
        let (v4, v6, mut turn) = self.turn(now);
        v4.finish(&mut turn);
        v6.finish(&mut turn);
    }

    /// Other timeouts and bounds from here on. Takes a moment for each flow, so it is for settings that rarely change.
    /// Where flows are kept no more, or from here on, all that was kept is exported and forgotten; the batch before
    /// must have been taken.
    pub fn configure(&mut self, settings: &Settings, now: u32) {
        if settings.proxy == self.proxy {
            self.v4.configure(settings, now);
            self.v6.configure(settings, now);
        } else {
            self.finish(now);
            self.cut = self.cut();
            self.v4 = Flows::new(&settings.kept(), &self.tail_hash);
            self.v6 = Flows::new(&settings.kept(), &self.tail_hash);
            self.proxy = settings.proxy;
        }
        self.cluster.show_labels(settings.labels);
    }

    /// Nothing is known of the cluster any more.
    pub fn forget_objects(&mut self) {
        self.cluster.forget_objects();
    }

    /// An object of the cluster came, changed or went; `at` is the time of day.
    pub fn change(&mut self, change: Change, at: Timestamp) {
        self.cluster.change(change, at);
    }

    /// The flows exported since the last call.
    pub fn take_batch(&mut self) -> Batch {
        let next = Batch::like(&self.batch);
        let mut taken = std::mem::replace(&mut self.batch, next);
        taken.fit();
        taken
    }

    /// How many flows wait in the batch.
    pub fn batched(&self) -> usize {
        self.batch.len()
    }

    /// Some flows from `from` on, as they would be exported now. A flow that lives meanwhile is in one piece exactly.
    pub fn piece(&self, from: Cursor) -> Piece {
        match from.family {
            Family::V4 => {
                let piece = self.show(&self.v4, from);
                Piece { next: piece.next.or(Some(Cursor::of(Family::V6, 0))), ..piece }
            }
            Family::V6 => self.show(&self.v6, from),
        }
    }

    fn show<A: Addr>(&self, flows: &Flows<A>, from: Cursor) -> Piece {
        let end = from.slot.saturating_add(LOOKED_AT).min(flows.slots());
        let next = (end < flows.slots()).then_some(Cursor::of(A::FAMILY, end));
        let (mut cut, mut piece) = (Cut::default(), Piece { flows: Batch::default(), places: Vec::new(), next });
        for slot in from.slot..end {
            if let Some(flow) = flows.at(slot) {
                piece.flows.push(flow, &flows.tails, &self.cluster, &mut cut);
                piece.places.push(Cursor::of(A::FAMILY, slot));
            }
        }
        piece
    }

    /// What was received since the start, of all sessions.
    pub fn received(&self) -> Received {
        let mut all = self.past;
        for session in self.sessions.values() {
            all += *session.decoder.counters();
        }
        Received::of(&all)
    }

    /// Records that sequence numbers show to be lost, by exporter; the last without one are of all further exporters.
    pub fn losses(&self) -> impl Iterator<Item = (Option<Source>, u64)> {
        self.losses.rows()
    }

    /// The cluster's sums of packets by heading, as agents account for them.
    pub fn accounted(&self) -> BTreeMap<&str, Amount> {
        self.accounts.interface_sums()
    }

    /// The same by the observation domain of each agent.
    pub fn accounted_by_agent(&self) -> BTreeMap<u32, BTreeMap<&str, Amount>> {
        self.accounts.agent_sums()
    }

    /// Flow records that agents sent, and those they could not send.
    pub fn agents_exported(&self) -> (u64, u64) {
        self.accounts.export_sums()
    }

    /// What happened since the start.
    pub fn counts(&self) -> Counts {
        let Cut { texts, objects } = self.cut();
        Counts { texts_cut: texts, objects_cut: objects, ..self.counts }
    }

    /// What was too long, as it came or as it was to leave.
    fn cut(&self) -> Cut {
        let all = [self.cut, self.v4.tails.cut(), self.v6.tails.cut()];
        Cut { texts: all.iter().map(|cut| cut.texts).sum(), objects: all.iter().map(|cut| cut.objects).sum() }
    }

    /// How much there is now.
    pub fn fill(&self) -> Fill {
        Fill {
            flows: self.v4.len() + self.v6.len(),
            tombstones: self.v4.tombstones.len() + self.v6.tombstones.len(),
            tails: self.v4.tails.len() + self.v6.tails.len(),
            node_addrs: self.cluster.nodes.len(),
        }
    }

    /// An agent's domain names its Node, whatever the address. Others are told apart by both, as many a domain is 0 or 1,
    /// and so are agents that give no flow ids.
    #[inline]
    fn exporter(&self, source: Source, told: &Told<'_>) -> Exporter {
        match told.is_agents && told.extended.flow_id != 0 {
            true => agent(source.domain),
            false => Exporter((self.hasher.hash_one(source) & !AGENT).max(1)),
        }
    }

    /// Applies what was decoded of one buffer.
    fn work(&mut self, peer: IpAddr, decoded: &collector::Batch, buffer: &[u8], now: u32) {
        for (domain, accounting) in decoded.accounting() {
            self.account(Source { addr: peer, domain: *domain }, accounting, now);
        }
        for (domain, records) in decoded.lost() {
            self.losses.add(Source { addr: peer, domain: *domain }, *records);
        }
        if self.proxy {
            return self.hand_on(peer, decoded, buffer);
        }
        let mut group = Group { v4: Vec::with_capacity(GROUP), v6: Vec::new() };
        for records in decoded.records().chunks(GROUP) {
            for record in records {
                let (head, extended) = (&record.head, &record.extended);
                let told = Told { head, extended, has_total: record.has_total, is_agents: record.is_agents };
                let (tail, http) = (decoded.tail(record, buffer), decoded.http(record, buffer));
                let names = Names { tail, tail_hash: record.tail_hash, http };
                self.gather(Source { addr: peer, domain: record.domain }, &told, names, &mut group);
            }
            self.apply(&mut group, now);
        }
    }

    fn hand_on(&mut self, peer: IpAddr, decoded: &collector::Batch, buffer: &[u8]) {
        let Aggregate { cluster, batch, cut, .. } = self;
        let before = batch.len();
        for record in decoded.records() {
            let source = Source { addr: peer, domain: record.domain };
            let names = [decoded.tail(record, buffer), decoded.http(record, buffer)];
            proxy::hand_on(source, record, names, cluster, batch, cut);
        }
        self.counts.received += decoded.records().len() as u64;
        self.counts.exported += (batch.len() - before) as u64;
    }

    fn account(&mut self, source: Source, accounting: &Accounting, now: u32) {
        let kept = match accounting {
            // Only agents send these, and an agent is known by its domain.
            Accounting::Addr(addr) => self.cluster.nodes.report(addr.addr, agent(source.domain), now),
            accounting => self.accounts.take(source.domain, accounting, now),
        };
        self.counts.accounting_refused += u64::from(!kept);
    }

    #[inline]
    fn gather<'a>(&self, source: Source, told: &Told<'_>, names: Names<'a>, group: &mut Group<'a>) {
        let exporter = self.exporter(source, told);
        match told.head.family() {
            Family::V4 => group.v4.push(self.v4.item(exporter, told, names)),
            Family::V6 => group.v6.push(self.v6.item(exporter, told, names)),
        }
    }

    fn apply(&mut self, group: &mut Group<'_>, now: u32) {
        self.counts.received += (group.v4.len() + group.v6.len()) as u64;
        let (v4, v6, mut turn) = self.turn(now);
        v4.apply(&group.v4, &mut turn);
        v6.apply(&group.v6, &mut turn);
        group.v4.clear();
        group.v6.clear();
    }

    /// The tables, and what a call of them comes with.
    fn turn(&mut self, now: u32) -> (&mut Flows<Ipv4Addr>, &mut Flows<Ipv6Addr>, Turn<'_>) {
        let Aggregate { v4, v6, cluster, batch, counts, cut, .. } = self;
        (v4, v6, Turn { now, cluster, batch, counts, cut })
    }
}

#[inline]
fn agent(domain: u32) -> Exporter {
    Exporter(AGENT | u64::from(domain))
}
