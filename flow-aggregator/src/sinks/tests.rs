//! What the task of a sink does as its destination fails, sticks and is changed, in simulated time.

use super::*;
use crate::{aggregate::testing::batch_of, metrics::Metrics};
use flow_common::net::{Address, Protocol};
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex};

/// Settings that differ by the port alone.
fn spec(port: u16) -> Spec {
    let address = Address::parse(&format!("[::1]:{port}"), Protocol::Tcp).unwrap();
    Spec::Json(JsonSettings { peer: Peer { address, trust: None, name: None }, extended: true })
}

/// Serves a sink as [`super::run`] does, with settings that nobody changes.
async fn run(sink: impl Sink, queue: Receiver, metrics: SinkMetrics) {
    let (_kept, spec) = watch::channel(spec(1));
    let held = AtomicU64::new(0);
    let task = Task { name: "test", queue: &queue, metrics: &metrics, held: &held };
    let mut changes = Changes::new(spec);
    task.ended(async { assert!(task.attempts(sink, &mut changes).await.is_break()) }).await;
}

/// A destination that is away at first and lost in the middle of a batch.
struct Fickle {
    /// Attempts that fail before the first success.
    away: u32,
    /// Deliveries left until it is lost, once.
    until_lost: Option<u32>,
    delivered: Arc<Mutex<Vec<u16>>>,
}

impl Sink for Fickle {
    async fn open(&mut self) -> Result<(), SinkError> {
        match self.away.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.away = left;
                Err(SinkError::Lost(io::ErrorKind::ConnectionRefused.into()))
            }
        }
    }

    async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
        let lost = self.until_lost.is_some_and(|left| left == 0);
        self.until_lost = if lost { None } else { self.until_lost.map(|left| left - 1) };
        let through = if lost { from + 1 } else { batch.len() };
        let flows = batch.iter().filter_map(|joined| joined.decode()).map(|flow| flow.head.src_port);
        self.delivered.lock().unwrap().extend(flows.take(through).skip(from));
        let error = lost.then(|| SinkError::Lost(io::ErrorKind::BrokenPipe.into()));
        Delivery { through, delivered: (through - from) as u64, refused: 0, error }
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        std::future::pending().await
    }

    async fn close(&mut self) {}
}

#[tokio::test(start_paused = true)]
async fn a_lost_sink_goes_on_where_it_was() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry).sink("test");
    let delivered = Arc::new(Mutex::new(Vec::new()));
    let (queue, receiver) = Queue::new(1_000);
    let sink = Fickle { away: 3, until_lost: Some(1), delivered: delivered.clone() };
    let running = tokio::spawn(run(sink, receiver, metrics.clone()));
    let begin = tokio::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(queue.put(Arc::new(batch_of(3))), 0);
    }
    while metrics.delivered.get() < 9 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(queue);
    running.await.unwrap();
    assert_eq!(*delivered.lock().unwrap(), [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    assert_eq!(metrics.failures.get(), 4);
    let waited = begin.elapsed().as_secs();
    assert_eq!(waited, 1 + 2 + 4 + 1, "back-off while it is away, from the start after a success");
    let mut shown = String::new();
    prometheus_client::encoding::text::encode(&mut shown, &registry).unwrap();
    assert!(shown.contains("sink_latency_seconds_count{sink=\"test\"} 3\n"), "{shown}");
    assert!(shown.contains("sink_latency_seconds_sum{sink=\"test\"} 23."), "7 + 8 + 8 s: {shown}");
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_away_cost_the_oldest_flows_beyond_the_bound_and_no_more() {
    let metrics = Metrics::new(&mut Registry::default()).sink("test");
    let delivered = Arc::new(Mutex::new(Vec::new()));
    let (queue, receiver) = Queue::new(300);
    // 1, 2, 4, 8 and 16 s, then every 30 s: open after 601 s.
    let sink = Fickle { away: 24, until_lost: None, delivered: delivered.clone() };
    let running = tokio::spawn(run(sink, receiver, metrics.clone()));
    let mut dropped = 0;
    for _ in 0..600 {
        dropped += queue.put(Arc::new(batch_of(3)));
        assert!(queue.len() <= 300);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((dropped, metrics.failures.get(), metrics.delivered.get()), (1_500, 24, 0));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((metrics.delivered.get(), queue.len()), (300, 0));
    drop(queue);
    running.await.unwrap();
    assert_eq!(delivered.lock().unwrap().len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_away_at_the_end_is_given_up_and_counted() {
    let metrics = Metrics::new(&mut Registry::default()).sink("test");
    let (queue, receiver) = Queue::new(1_000);
    let sink = Fickle { away: u32::MAX, until_lost: None, delivered: Arc::default() };
    let running = tokio::spawn(run(sink, receiver, metrics.clone()));
    queue.put(Arc::new(batch_of(7)));
    tokio::task::yield_now().await;
    drop(queue);
    running.await.unwrap();
    assert_eq!((metrics.delivered.get(), metrics.dropped.get()), (0, 7));
}

/// A destination that does not come back from one of its calls, and takes no farewell either.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stuck {
    /// It is away, and the next try is far off.
    Away,
    Open,
    Idle,
    Deliver,
    /// It takes flows to deliver them together with others.
    Settle,
}

impl Stuck {
    async fn at(self, call: Stuck) {
        if self == call {
            std::future::pending::<()>().await;
        }
    }
}

impl Sink for Stuck {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.at(Stuck::Open).await;
        if *self == Stuck::Away { Err(SinkError::Closed) } else { Ok(()) }
    }

    async fn deliver(&mut self, batch: &Batch, _: usize) -> Delivery {
        self.at(Stuck::Deliver).await;
        Delivery { through: batch.len(), delivered: 0, refused: 0, error: None }
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        self.at(Stuck::Idle).await;
        sleep(Duration::from_millis(100)).await;
        Ok(())
    }

    async fn settle(&mut self) -> Result<u64, SinkError> {
        self.at(Stuck::Settle).await;
        Ok(0)
    }

    async fn close(&mut self) {
        std::future::pending::<()>().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stuck_sink_holds_up_the_end_for_a_while_only() {
    let metrics = Metrics::new(&mut Registry::default()).sink("test");
    let (queue, receiver) = Queue::new(1_000);
    let running = tokio::spawn(run(Stuck::Deliver, receiver, metrics.clone()));
    queue.put(Arc::new(batch_of(4)));
    queue.put(Arc::new(batch_of(4)));
    tokio::task::yield_now().await;
    let begin = tokio::time::Instant::now();
    drop(queue);
    running.await.unwrap();
    assert_eq!((begin.elapsed(), metrics.dropped.get()), (LAST_WORDS, 8));
}

#[tokio::test(start_paused = true)]
async fn changed_settings_get_in_though_the_destination_takes_nothing() {
    let cases = [
        (Stuck::Away, Duration::ZERO),
        (Stuck::Open, Duration::ZERO),
        (Stuck::Idle, FAREWELL),
        (Stuck::Deliver, LAST_WORDS + FAREWELL),
        // What it had taken it may deliver after the change, too.
        (Stuck::Settle, 2 * LAST_WORDS + FAREWELL),
    ];
    for (stuck, wanted) in cases {
        let metrics = Metrics::new(&mut Registry::default()).sink("test");
        let (queue, receiver) = Queue::new(1_000);
        queue.put(Arc::new(batch_of(4)));
        let (change, settings) = watch::channel(spec(1));
        let served = async {
            let held = AtomicU64::new(0);
            let task = Task { name: "test", queue: &receiver, metrics: &metrics, held: &held };
            task.attempts(stuck, &mut Changes::new(settings)).await
        };
        let changed = async {
            // Far into the first delay of one that is away.
            sleep(Duration::from_millis(500)).await;
            change.send_replace(spec(2));
            tokio::time::Instant::now()
        };
        let served = async { (served.await, tokio::time::Instant::now()) };
        let both = async { tokio::join!(served, changed) };
        let ((over, then), begin) = timeout(Duration::from_secs(60), both).await.unwrap_or_else(|_| {
            panic!("{stuck:?} keeps new settings out");
        });
        assert_eq!(over, ControlFlow::Continue(()), "{stuck:?}");
        assert_eq!(then - begin, wanted, "{stuck:?}");
        let waiting = if matches!(stuck, Stuck::Idle | Stuck::Settle) { 0 } else { 4 };
        assert_eq!((queue.len(), metrics.dropped.get()), (waiting, 0), "{stuck:?}: what waits stays");
    }
}
