//! Runs the comparisons of [`crate::verify`] beside the flows task's own work.
//!
//! A thread of its own dumps connection tracking and hands it on in parts; each tick works on them for some milliseconds and no longer, so
//! that neither rings nor records wait. One comparison at a time: who asks meanwhile gets the next one.

use std::time::{Duration, Instant};

use flow_common::time::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::conntrack::{Conntrack, Entry, Groups, Zones};
use crate::doctor::Verification;
use crate::enrich::Enricher;
use crate::sources::Sources;
use crate::table::{Ends, Parted, Table};
use crate::verify::{Check, Ended, Report, Sides};

/// How long a tick works on a comparison.
const WORK: Duration = Duration::from_millis(10);

/// Connections of a part of the dump, and parts that wait.
const PART: usize = 512;
const PARTS: usize = 8;

/// How long news may be under way to the table, before what nobody could explain is looked at again.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// Ended connections that wait for their other side, on each (some 15 MB in all), and what may end in a tick.
const ENDED: usize = 1 << 15;
const ENDED_IN_A_TICK: usize = 1 << 16;

/// Why nothing can be compared.
const ONE_SIDE: &str = "connection tracking itself counts the packets here (`source`)";

type Asker = oneshot::Sender<Box<Report>>;

/// All comparisons.
pub(super) struct Checks {
    ended: Ended,
    parted: Vec<Parted>,
    waiting: Vec<Asker>,
    running: Option<Running>,
}

/// The comparison that runs.
struct Running {
    askers: Vec<Asker>,
    check: Check,
    parts: mpsc::Receiver<Result<Vec<Entry>, String>>,
    stage: Stage,
    failure: Option<String>,
    began: Instant,
    worked: Duration,
}

enum Stage {
    Dump,
    Untracked,
    Pause(Instant),
    Second,
    Done,
}

impl Checks {
    /// From now on the table tells what ends.
    pub(super) fn new(table: &mut Table) -> Self {
        table.tell_parted(ENDED_IN_A_TICK);
        Self { ended: Ended::new(ENDED), parted: Vec::new(), waiting: Vec::new(), running: None }
    }

    /// Somebody wants to know.
    pub(super) fn ask(&mut self, asker: Asker) {
        self.waiting.push(asker);
    }

    /// What was found of ended connections.
    pub(super) fn verification(&self) -> Verification {
        Verification { ended: self.ended.findings().sums.clone(), not_kept: self.ended.not_kept() }
    }

    /// Takes in what has ended, and works on the comparison that runs.
    pub(super) fn tick(&mut self, sources: &mut Sources, table: &mut Table, enricher: &Enricher, now: Timestamp) {
        let refused = table.take_parted(&mut self.parted);
        self.ended.note_not_kept(refused);
        for parted in self.parted.drain(..) {
            self.ended.feed(&parted, table, now);
        }
        self.ended.expire(table, |ends, start| enricher.exports(ends, start), now);
        self.waiting.retain(|asker| !asker.is_closed());
        if sources.counts_by_tracking() {
            for asker in self.waiting.drain(..) {
                // Whoever asked may be gone.
                drop(asker.send(Box::new(Report { failure: Some(ONE_SIDE.to_owned()), ..Report::default() })));
            }
        }
        if self.running.is_none() && !self.waiting.is_empty() {
            self.running = Some(Running::new(std::mem::take(&mut self.waiting), sources.zones().clone()));
        }
        let Some(running) = &mut self.running else { return };
        running.work(&self.ended, sources, table, enricher, now);
        if matches!(running.stage, Stage::Done)
            && let Some(running) = self.running.take()
        {
            running.answer(&self.ended);
        }
    }
}

impl Running {
    fn new(askers: Vec<Asker>, zones: Zones) -> Self {
        let (sender, parts) = mpsc::channel(PARTS);
        tokio::task::spawn_blocking(move || dump(&zones, &sender));
        Self {
            askers,
            check: Check::default(),
            parts,
            stage: Stage::Dump,
            failure: None,
            began: Instant::now(),
            worked: Duration::ZERO,
        }
    }

    /// Goes on for [`WORK`], or as long as there is something to do.
    fn work(&mut self, ended: &Ended, sources: &mut Sources, table: &Table, enricher: &Enricher, now: Timestamp) {
        let began = Instant::now();
        let (mut lookup, mut read) = sources.single();
        let is_local = |ends: &Ends, start: Timestamp| enricher.exports(ends, start);
        let mut sides = Sides { table, ended, lookup: &mut lookup, read: &mut read, is_local: &is_local, now };
        while began.elapsed() < WORK && self.step(&mut sides) {}
        self.worked += began.elapsed();
    }

    /// The next part. False if there is nothing to do now.
    fn step(&mut self, sides: &mut Sides<'_>) -> bool {
        match self.stage {
            Stage::Dump => match self.parts.try_recv() {
                Ok(Ok(entries)) => self.check.dumped(&entries, sides),
                Ok(Err(failure)) => self.failure = Some(failure),
                Err(mpsc::error::TryRecvError::Empty) => return false,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.stage = if self.failure.is_some() { Stage::Done } else { Stage::Untracked };
                }
            },
            Stage::Untracked if self.check.untracked(PART, sides) => {}
            Stage::Untracked if self.check.begin_second() => self.stage = Stage::Pause(Instant::now() + UNDER_WAY),
            Stage::Untracked => self.stage = Stage::Done,
            Stage::Pause(until) if Instant::now() < until => return false,
            Stage::Pause(_) => self.stage = Stage::Second,
            Stage::Second if self.check.again(PART, sides) => {}
            Stage::Second => self.stage = Stage::Done,
            Stage::Done => return false,
        }
        true
    }

    fn answer(self, ended: &Ended) {
        let mut report = Report { failure: self.failure, ..Report::default() };
        (report.live, report.accounting) = self.check.finish();
        ended.tell(&mut report);
        report.took_ms =
            [self.began.elapsed(), self.worked].map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        for asker in self.askers {
            // Whoever asked may be gone.
            drop(asker.send(Box::new(report.clone())));
        }
    }
}

/// Everything that connection tracking has, in parts; ends early if nobody takes them.
fn dump(zones: &Zones, parts: &mpsc::Sender<Result<Vec<Entry>, String>>) {
    let mut part = Vec::with_capacity(PART);
    let dumped = Conntrack::open(Groups { new: false, update: false, end: false }).and_then(|mut conntrack| {
        conntrack.dump(zones, |entry| {
            part.push(*entry);
            if part.len() >= PART {
                // A closed channel swallows the rest of the dump, which has an end.
                let _ = parts.blocking_send(Ok(std::mem::replace(&mut part, Vec::with_capacity(PART))));
            }
        })
    });
    let _ = parts.blocking_send(Ok(part));
    if let Err(error) = dumped {
        let _ = parts.blocking_send(Err(error.to_string()));
    }
}
