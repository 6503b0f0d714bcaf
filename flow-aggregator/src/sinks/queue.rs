//! The bounded queue before a sink: batches in order of time, the oldest dropped when there is no room.
//!
//! Takes and gives batches that other sinks share; counts flows, not batches. One task puts, one takes. What is being
//! delivered is not dropped: whoever takes it counts it as delivered.

use crate::aggregate::Batch;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

#[derive(Debug, Default)]
struct State {
    /// Each with the moment at which it was put.
    batches: VecDeque<(Arc<Batch>, Instant)>,
    /// Flows of the first batch that are delivered.
    through: usize,
    /// The first batch is being delivered.
    delivering: bool,
    flows: usize,
    max: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// For the one task that takes.
    changed: Notify,
    closed: watch::Sender<bool>,
}

/// The end that puts; dropped, it closes the queue.
#[derive(Debug)]
pub struct Queue(Arc<Shared>);

/// The end that takes.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

/// The first batch of a queue; as long as this lives, it makes no room for others.
#[derive(Debug)]
pub struct Front<'a> {
    receiver: &'a Receiver,
    /// The batch.
    pub batch: Arc<Batch>,
    /// How many of its flows are delivered already.
    pub from: usize,
}

impl Queue {
    /// Both ends of a queue for `max` flows.
    pub fn new(max: usize) -> (Queue, Receiver) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { max, ..State::default() }),
            changed: Notify::new(),
            closed: watch::Sender::new(false),
        });
        (Queue(shared.clone()), Receiver(shared))
    }

    /// From here on it holds so many flows. What is beyond goes with the next batch that is put.
    pub fn bound(&self, max: usize) {
        self.0.state().max = max;
    }

    /// Puts a batch. Gives how many flows were dropped to make room; a batch always finds room in a queue in which nothing
    /// waits but what is being delivered.
    pub fn put(&self, batch: Arc<Batch>) -> u64 {
        let mut state = self.0.state();
        let mut dropped = 0;
        let oldest = usize::from(state.delivering);
        while state.flows + batch.len() > state.max {
            let Some((gone, _)) = state.batches.remove(oldest) else { break };
            let left = gone.len() - if oldest == 0 { std::mem::take(&mut state.through) } else { 0 };
            state.flows -= left;
            dropped += left as u64;
        }
        state.flows += batch.len();
        state.batches.push_back((batch, Instant::now()));
        drop(state);
        self.0.changed.notify_one();
        dropped
    }

    /// Flows that wait.
    pub fn len(&self) -> usize {
        self.0.state().flows
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.closed.send_replace(true);
        self.0.changed.notify_one();
    }
}

impl Receiver {
    /// The first batch; `None` when the queue is closed and empty. It stays until it was taken through to its end
    /// ([`Front::advance`]). Cancel-safe.
    pub async fn front(&self) -> Option<Front<'_>> {
        loop {
            {
                let mut state = self.0.state();
                if let Some((batch, _)) = state.batches.front() {
                    let front = Front { receiver: self, batch: batch.clone(), from: state.through };
                    state.delivering = true;
                    return Some(front);
                }
                if *self.0.closed.borrow() {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// Waits until no more will be put. Cancel-safe.
    pub async fn closed(&self) {
        // The sender lives as long as this end.
        let _ = self.0.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Empties the queue and gives how many flows were in it.
    pub fn drain(&self) -> u64 {
        let mut state = self.0.state();
        let left = state.flows;
        *state = State { max: state.max, ..State::default() };
        left as u64
    }
}

impl Front<'_> {
    /// So many flows of the batch are delivered. Gives how long the batch waited if that were all of it.
    pub fn advance(self, through: usize) -> Option<Duration> {
        let mut state = self.receiver.0.state();
        state.flows -= through - state.through;
        state.through = through;
        if through < self.batch.len() {
            return None;
        }
        state.through = 0;
        state.batches.pop_front().map(|(_, put)| put.elapsed())
    }
}

impl Drop for Front<'_> {
    fn drop(&mut self) {
        self.receiver.0.state().delivering = false;
    }
}

impl Shared {
    /// A panic of another holder cannot leave a half-written state: every change is one statement of plain values.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::testing::batch_of;

    #[tokio::test]
    async fn the_oldest_flows_make_room() {
        let (queue, receiver) = Queue::new(10);
        assert_eq!([4, 4, 4].map(|flows| queue.put(Arc::new(batch_of(flows)))), [0, 0, 4]);
        assert_eq!(queue.len(), 8);
        let front = receiver.front().await.unwrap();
        assert_eq!(front.from, 0);
        front.advance(3);
        assert_eq!(queue.len(), 5);
        assert_eq!(queue.put(Arc::new(batch_of(6))), 1, "only what was not delivered counts as dropped");
        assert_eq!((receiver.front().await.unwrap().from, queue.len()), (0, 10));
        drop(queue);
        receiver.closed().await;
        assert_eq!(receiver.drain(), 10);
        assert!(receiver.front().await.is_none());
    }

    #[tokio::test]
    async fn what_is_being_delivered_is_not_dropped_as_well() {
        let (queue, receiver) = Queue::new(10);
        queue.put(Arc::new(batch_of(4)));
        queue.put(Arc::new(batch_of(5)));
        let front = receiver.front().await.unwrap();
        assert_eq!(queue.put(Arc::new(batch_of(6))), 5, "the oldest of those that nobody has taken");
        assert_eq!(queue.put(Arc::new(batch_of(7))), 6);
        assert_eq!(queue.len(), 11, "the bound, but for what is being delivered");
        front.advance(4);
        assert_eq!((receiver.front().await.unwrap().batch.len(), queue.len()), (7, 7));
        assert_eq!(queue.put(Arc::new(batch_of(6))), 7, "a delivery that was given up is one no more");
    }

    #[tokio::test]
    async fn a_batch_beyond_the_bound_finds_room_in_an_empty_queue() {
        let (queue, receiver) = Queue::new(2);
        assert_eq!(queue.put(Arc::new(batch_of(5))), 0);
        assert_eq!(receiver.front().await.unwrap().batch.len(), 5);
    }
}
