//! Work that may take its time, such as trying a filter of many large regular expressions.
//!
//! Takes a piece of it; does it beside the runtime's threads, few at one time: sinks need such threads, too, and a client
//! that asks and goes away leaves its piece to be done.

use std::{io, sync::Arc};
use tokio::{sync::Semaphore, task::spawn_blocking};

/// Pieces of work at one time; further ones wait.
const AT_ONCE: usize = 4;

/// Where such work is done; every clone counts the same.
#[derive(Clone, Debug)]
pub struct Aside(Arc<Semaphore>);

impl Default for Aside {
    fn default() -> Aside {
        Aside(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Aside {
    /// Does a piece when it is its turn.
    pub(super) async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let turn = self.0.clone().acquire_owned().await.map_err(io::Error::other)?;
        let done = spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        Ok(done.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};
    use tokio::time::timeout;

    #[tokio::test]
    async fn work_of_clients_that_went_away_keeps_its_turn() {
        let (aside, mut stuck) = (Aside::default(), Vec::new());
        for _ in 0..AT_ONCE {
            let (end, ended) = mpsc::channel::<()>();
            let gone = timeout(Duration::from_millis(20), aside.work(move || ended.recv().is_err()));
            assert!(gone.await.is_err());
            stuck.push(end);
        }
        assert!(timeout(Duration::from_millis(20), aside.work(|| ())).await.is_err(), "others wait");
        stuck.pop();
        aside.work(|| ()).await.unwrap();
    }
}
