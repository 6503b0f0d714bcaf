//! The task that owns the table of connections.
//!
//! Takes the collector's messages, new settings, the API's questions and, where a folder of objects is configured, its
//! changes; gives batches of joined flows to every sink's queue. A question takes a moment at most. It reads the clock for
//! the table, once a turn, and never waits for a sink.

use crate::{
    aggregate::{Aggregate, Amount, Batch, Cursor, Piece, Settings, Source},
    input::{Input, SessionId},
    metrics::TableMetrics,
    outlets::Outlet,
};
use flow_common::{ipfix::message::MessageError, k8s::Look, time::Timestamp};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

/// How often the passing of time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Flows of each family that a turn takes from what is due, so that reads are not starved.
const DUE: usize = 2_048;
/// Joined flows that are handed on together at least, while there is more to read.
const HAND_ON: usize = 128;

/// Batches that wait for whoever follows the records; one that is slower misses some.
const FOLLOWED: usize = 16;

/// What the table's task receives.
#[derive(Debug)]
pub struct Inputs {
    /// The collector's messages; when they end, so does the task.
    pub messages: mpsc::Receiver<Input>,
    /// New settings.
    pub orders: mpsc::Receiver<Order>,
    /// What the API wants to know.
    pub questions: mpsc::Receiver<Question>,
}

/// What the table's task is asked. Who does not wait for the answer any more gets none.
#[derive(Debug)]
pub enum Question {
    /// Some flows, from a place on.
    Piece {
        /// Where to begin.
        from: Cursor,
        /// To whom.
        answer: oneshot::Sender<Piece>,
    },
    /// Every batch from now on.
    Follow(oneshot::Sender<broadcast::Receiver<Arc<Batch>>>),
    /// Numbers of records, flows and sinks.
    Figures(oneshot::Sender<Figures>),
    /// What agents account for.
    Accounting(oneshot::Sender<Accounting>),
}

/// Numbers since the start, and of now.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Flow records received.
    pub received: u64,
    /// Records exported.
    pub exported: u64,
    /// Records that were sent and did not come, by exporter; without one of all further exporters.
    pub lost: Vec<(Option<Source>, u64)>,
    /// Flows in the table.
    pub flows: usize,
    /// The sinks that run.
    pub outlets: Vec<Arc<Outlet>>,
}

/// What agents account for: packets and bytes by heading.
#[derive(Clone, Debug, Default)]
pub struct Accounting {
    /// Of the cluster.
    pub cluster: BTreeMap<String, Amount>,
    /// Of each agent, by its observation domain.
    pub agents: BTreeMap<u32, BTreeMap<String, Amount>>,
    /// Flow records that agents say they sent.
    pub sent: u64,
    /// Flow records that agents say they could not send.
    pub not_sent: u64,
}

/// What the table's task goes by.
#[derive(Debug)]
pub struct Order {
    /// Timeouts and bounds.
    pub table: Settings,
    /// Where batches go.
    pub outlets: Vec<Arc<Outlet>>,
    /// Another folder of objects than before, or none; `None` where that did not change.
    pub objects: Option<Option<Objects>>,
    /// Told when all of it is in force.
    pub obeyed: oneshot::Sender<()>,
}

/// A folder of objects: what it held at the first look, and what is found later.
pub type Objects = (Look, mpsc::Receiver<Look>);

/// Table, sessions and outlets.
#[derive(Debug)]
pub struct Join {
    aggregate: Aggregate,
    settings: Settings,
    outlets: Vec<Arc<Outlet>>,
    metrics: TableMetrics,
    objects: Option<mpsc::Receiver<Look>>,
    followers: broadcast::Sender<Arc<Batch>>,
    closers: HashMap<SessionId, oneshot::Sender<MessageError>>,
    begin: Instant,
    due: bool,
}

impl Join {
    /// A table that goes by the first order.
    pub fn new(first: Order, metrics: TableMetrics) -> Join {
        let mut join = Join {
            aggregate: Aggregate::new(&first.table),
            settings: first.table.clone(),
            outlets: Vec::new(),
            metrics,
            objects: None,
            followers: broadcast::Sender::new(FOLLOWED),
            closers: HashMap::new(),
            begin: Instant::now(),
            due: false,
        };
        join.obey(first);
        join
    }

    /// Joins until the input closes; then everything that has news is handed on.
    pub async fn run(mut self, inputs: Inputs) {
        let Inputs { messages: mut input, mut orders, mut questions } = inputs;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                look = next(&mut self.objects), if self.objects.is_some() => match look {
                    Some(look) => self.look(look),
                    None => self.objects = None,
                },
                Some(order) = orders.recv() => self.obey(order),
                Some(question) = questions.recv() => self.answer(question),
                next = input.recv() => match next {
                    Some(next) => self.take(next),
                    None => break,
                },
                _ = tick.tick() => {
                    self.due = true;
                    self.show();
                }
                // More is due than one turn takes.
                () = std::future::ready(()), if self.due => {}
            }
            if self.due {
                self.due = self.aggregate.expired(self.now(), DUE);
            }
            if self.aggregate.batched() >= HAND_ON || input.is_empty() {
                self.hand_on();
            }
            if self.due {
                tokio::task::yield_now().await;
            }
        }
        self.aggregate.finish(self.now());
        self.hand_on();
        self.show();
    }

    fn obey(&mut self, order: Order) {
        if order.table != self.settings {
            // What the change itself exports is of the mode before, and not in one batch with what follows.
            self.hand_on();
            self.aggregate.configure(&order.table, self.now());
            self.hand_on();
            self.settings = order.table;
        }
        self.outlets = order.outlets;
        if let Some(objects) = order.objects {
            self.aggregate.forget_objects();
            self.metrics.refused_objects(0);
            self.objects = objects.map(|(first, further)| {
                self.look(first);
                further
            });
        }
        // Whoever gave the first order does not wait.
        let _ = order.obeyed.send(());
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Opened { session, peer, datagrams, close } => {
                self.aggregate.open(session, peer, datagrams);
                self.closers.extend(close.map(|close| (session, close)));
            }
            Input::Closed { session } => {
                self.closers.remove(&session);
                self.aggregate.close(session);
            }
            Input::Messages { session, bytes } => {
                let Err(error) = self.aggregate.feed(session, &bytes, self.now()) else { return };
                match self.closers.remove(&session) {
                    // The session may have ended by itself meanwhile.
                    Some(close) => drop(close.send(error)),
                    None => tracing::debug!("a datagram was ignored: {error}"),
                }
            }
        }
    }

    /// Nobody may wait for the answer any more.
    fn answer(&self, question: Question) {
        match question {
            Question::Piece { from, answer } => drop(answer.send(self.aggregate.piece(from))),
            Question::Follow(answer) => drop(answer.send(self.followers.subscribe())),
            Question::Figures(answer) => {
                let counts = self.aggregate.counts();
                drop(answer.send(Figures {
                    received: counts.received,
                    exported: counts.exported,
                    lost: self.aggregate.losses().collect(),
                    flows: self.aggregate.fill().flows,
                    outlets: self.outlets.clone(),
                }));
            }
            Question::Accounting(answer) => {
                let (sent, not_sent) = self.aggregate.agents_exported();
                let cluster = owned(self.aggregate.accounted());
                let agents = self.aggregate.accounted_by_agent();
                let agents = agents.into_iter().map(|(domain, sums)| (domain, owned(sums))).collect();
                drop(answer.send(Accounting { cluster, agents, sent, not_sent }));
            }
        }
    }

    fn look(&mut self, look: Look) {
        for error in &look.errors {
            tracing::warn!("an object is refused, and what was known before stays: {error}");
        }
        let at = Timestamp::from(SystemTime::now());
        for change in look.changes {
            self.aggregate.change(change, at);
        }
        self.metrics.refused_objects(look.refused.len());
    }

    fn hand_on(&mut self) {
        if self.aggregate.batched() == 0 {
            return;
        }
        let batch: Arc<Batch> = Arc::new(self.aggregate.take_batch());
        for outlet in &self.outlets {
            outlet.metrics.dropped.inc_by(outlet.queue.put(batch.clone()));
        }
        if self.followers.receiver_count() > 0 {
            // They may all have gone meanwhile.
            let _ = self.followers.send(batch);
        }
    }

    fn show(&self) {
        self.metrics.show(&self.aggregate);
        for outlet in &self.outlets {
            outlet.metrics.queued.set(i64::try_from(outlet.queue.len()).unwrap_or(i64::MAX));
        }
    }

    /// Seconds since the start.
    fn now(&self) -> u32 {
        u32::try_from(self.begin.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// The folder's next look; `None` if there is no folder, or nobody looks any more. Cancel-safe.
async fn next(objects: &mut Option<mpsc::Receiver<Look>>) -> Option<Look> {
    objects.as_mut()?.recv().await
}

fn owned(sums: BTreeMap<&str, Amount>) -> BTreeMap<String, Amount> {
    sums.into_iter().map(|(heading, amount)| (heading.to_owned(), amount)).collect()
}
