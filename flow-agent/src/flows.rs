//! The flows task: owns sources, table and enricher, and turns what is due into batches of records.
//!
//! Takes ticks, questions of the API and the Node's addresses; gives batches to export and followers, and the facts every five
//! seconds. A full channel to export delays records, never counting: what is due stays due in the table.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flow_common::daemon::Shutdown;
use flow_common::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};

mod checks;
mod facts;

use crate::addresses::Address;
use crate::api::{DeniedFlow, DropsReply, Follower, Question, Row};
use crate::doctor::{Export, Facts};
use crate::enrich::{Enricher, Record};
use crate::sources::Sources;
use crate::table::{Denied, Table, Update};
use checks::Checks;

/// How often rings, connection tracking and sweep are looked after.
const TICK: Duration = Duration::from_millis(100);

/// How often the facts are told; gathering them looks over every flow. Who asks gets them as they are then.
const FACTS: Duration = Duration::from_secs(5);

/// Records of a batch.
const BATCH: usize = 2_048;

/// How long the end waits for export to take a batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Live flows shown to a client of the API in a tick.
const SHOWN: usize = 8_192;

/// Flows that did not come through, shown to a client of the API.
const DENIED: usize = 1_000;

/// What the task talks to.
#[derive(Debug)]
pub struct Channels {
    /// To export; closed when the agent ends.
    pub batches: mpsc::Sender<Arc<Vec<Record>>>,
    /// From the API.
    pub questions: mpsc::Receiver<Question>,
    /// The Node's own addresses, when they change.
    pub addresses: mpsc::Receiver<Vec<Address>>,
    /// The latest facts.
    pub facts: watch::Sender<Arc<Facts>>,
    /// How export is doing.
    pub export: watch::Receiver<Export>,
}

/// A client that is shown the live flows, part by part.
#[derive(Debug)]
struct Show {
    batches: mpsc::Sender<Vec<Record>>,
    /// The slot that comes next.
    next: u32,
}

/// The task's state.
pub struct Flows {
    node: String,
    sources: Sources,
    table: Table,
    enricher: Enricher,
    channels: Channels,
    updates: Vec<Update>,
    followers: Vec<Follower>,
    shows: Vec<Show>,
    checks: Checks,
    addresses: Vec<Address>,
    began: Timestamp,
    told: Timestamp,
}

impl Flows {
    /// Everything it owns.
    pub fn new(node: String, sources: Sources, mut table: Table, enricher: Enricher, channels: Channels) -> Self {
        let (began, checks) = (now(), Checks::new(&mut table));
        let (updates, followers) = (Vec::with_capacity(BATCH), Vec::new());
        let (shows, addresses, told) = (Vec::new(), Vec::new(), Timestamp::ZERO);
        Self { node, sources, table, enricher, channels, updates, followers, shows, checks, addresses, began, told }
    }

    /// Until the end is requested; then everything is read once more, every flow ended (unless the kernel goes on counting) and handed on.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick().await,
                Some(question) = self.channels.questions.recv() => self.answer(question),
                Some(addresses) = self.channels.addresses.recv() => self.own(addresses),
                () = shutdown.requested() => break,
            }
        }
        self.finish().await;
    }

    async fn tick(&mut self) {
        let now = now();
        self.sources.tick(&mut self.table, &mut self.enricher, now);
        let connected = self.channels.export.borrow().peer.is_some();
        // Room is taken before the table is asked: what it gives, it counts as handed on.
        while let Ok(room) = self.channels.batches.clone().try_reserve_owned() {
            let more = self.take(now, connected, BATCH);
            if let Some(batch) = self.batch() {
                room.send(batch);
            }
            if !more {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.show();
        self.checks.tick(&mut self.sources, &mut self.table, &self.enricher, now);
        if now.is_past(self.told, FACTS) {
            self.tell(now);
        }
    }

    async fn finish(mut self) {
        let now = now();
        self.sources.finish(&mut self.table, now);
        if self.sources.goes_on() {
            tracing::info!("the programs go on counting for the next agent; `flow-agent detach` ends that");
        }
        self.table.finish(self.sources.goes_on(), now);
        loop {
            let more = self.take(now, true, BATCH);
            if let Some(batch) = self.batch()
                && !matches!(timeout(PATIENCE, self.channels.batches.send(batch)).await, Ok(Ok(())))
            {
                tracing::warn!("the collector takes nothing: the last flows are not sent");
                break;
            }
            if !more {
                break;
            }
        }
        self.tell(now);
    }

    /// Fills `updates` with what is due. True if there is more.
    fn take(&mut self, now: Timestamp, connected: bool, max: usize) -> bool {
        self.updates.clear();
        let enricher = &self.enricher;
        let more = self.table.due(now, connected, max, |ends, start| enricher.exports(ends, start), &mut self.updates);
        self.sources.identify(&mut self.table);
        more
    }

    /// The updates as records, also for those who follow.
    fn batch(&mut self) -> Option<Arc<Vec<Record>>> {
        if self.updates.is_empty() {
            return None;
        }
        let enricher = &mut self.enricher;
        let batch = Arc::new(self.updates.iter().map(|update| enricher.record(update)).collect());
        self.followers.retain(|follower| follower.offer(&batch));
        Some(batch)
    }

    fn tell(&mut self, now: Timestamp) -> Arc<Facts> {
        self.told = now;
        let export = self.channels.export.borrow().clone();
        let uptime = now.since(self.began);
        let mut facts = facts::gather(uptime, &mut self.sources, &self.table, self.enricher.index());
        facts.node.clone_from(&self.node);
        facts.addresses.clone_from(&self.addresses);
        facts.export = export;
        facts.verification = self.checks.verification();
        let facts = Arc::new(facts);
        self.channels.facts.send_replace(Arc::clone(&facts));
        facts
    }

    /// The Node's addresses are these from now on.
    fn own(&mut self, addresses: Vec<Address>) {
        let plain: Vec<IpAddr> = addresses.iter().map(|address| address.addr).collect();
        self.enricher.index_mut().report_node_addresses(&self.node, &plain);
        self.addresses = addresses;
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Follow(follower) => self.followers.push(follower),
            Question::Live(batches) => self.shows.push(Show { batches, next: 0 }),
            Question::Verify(answer) => self.checks.ask(answer),
            Question::Drops(answer) => drop(answer.send(self.drops())),
            // Whoever asked may be gone.
            Question::Facts(answer) => drop(answer.send(self.tell(now()))),
        }
    }

    /// What the kernel dropped, and the flows that did not come through.
    fn drops(&mut self) -> DropsReply {
        // Where the symbols cannot be read, places are addresses.
        let _ = self.sources.drops().name_places();
        let drops = self.tell(now()).drops.clone();
        let mut denied: Vec<Denied> = self.table.denied().collect();
        denied.sort_by_key(|denied| std::cmp::Reverse(denied.update.extended.end_milliseconds));
        denied.truncate(DENIED);
        let flows = denied.iter().map(|Denied { update, site }| {
            let [reason, interface, location] = site.map(|site| self.sources.drops().name(&site)).unwrap_or_default();
            let row = Row::of(&self.enricher.record(update).owned());
            DeniedFlow { row, dropped: update.extended.dropped_packets, reason, interface, location }
        });
        DropsReply { flows: flows.collect(), drops }
    }

    /// The next live flows for those who asked, at the pace at which they take them.
    fn show(&mut self) {
        let (table, enricher) = (&self.table, &mut self.enricher);
        self.shows.retain_mut(|show| {
            let Ok(room) = show.batches.try_reserve() else { return !show.batches.is_closed() };
            let mut next = None;
            let some = table.flows_from(show.next).take(SHOWN).inspect(|update| next = Some(update.slot + 1));
            room.send(some.map(|update| enricher.record(&update)).collect());
            // None left: the channel closes, which tells the client that this was all.
            next.is_some_and(|next| {
                show.next = next;
                true
            })
        });
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
