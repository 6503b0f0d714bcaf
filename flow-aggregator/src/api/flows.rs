//! `/flowrecords`: the table's flows in pages, or records as they are exported.
//!
//! Takes what is asked; gives the body piece by piece. The table's task is asked for one piece at a time, so that it has
//! its other work between two of them, and no more than a piece waits for a slow client. Filters are tried aside: one may
//! hold many regular expressions, each as large as is allowed, and keeps nobody else waiting.

use super::{
    Aside, Desk,
    query::{Ask, Form},
};
use crate::{
    aggregate::{Batch, Cursor, Page, Piece},
    join::Question,
};
use axum::body::{Body, Bytes};
use flow_common::{
    filter::{Filter, FlowView},
    record::AggregatedFlow,
    row::Row,
    time::Timestamp,
};
use futures_util::stream::unfold;
use prometheus_client::metrics::counter::Counter;
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{broadcast, oneshot},
    time::{Instant, timeout_at},
};

/// Records of one piece of what is followed.
const PIECE: usize = 256;
/// A follower whose connection is gone is noticed when an empty line cannot be sent.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

struct Listing {
    desk: Desk,
    filter: Arc<Filter>,
    form: Form,
    at: Option<Cursor>,
    left: usize,
    begun: bool,
    any: bool,
    ended: bool,
}

/// The list, as one JSON object.
pub(super) fn list(desk: Desk, ask: Ask) -> Body {
    let Ask { filter, form, from, limit, .. } = ask;
    let filter = Arc::new(filter);
    let listing = Listing { desk, filter, form, at: Some(from), left: limit, begun: false, any: false, ended: false };
    Body::from_stream(unfold(listing, |mut listing| async {
        if listing.ended {
            return None;
        }
        let piece = listing.piece().await;
        listing.ended |= piece.is_err();
        Some((piece, listing))
    }))
}

impl Listing {
    async fn piece(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.extend_from_slice(b"{\"flowRecords\":[");
        }
        let now = Timestamp::from(SystemTime::now());
        while let Some(from) = self.at.filter(|_| self.left > 0) {
            let Page { flows, next } = self.page(from).await?;
            self.left -= flows.len();
            self.at = next;
            for flow in &flows {
                if std::mem::replace(&mut self.any, true) {
                    out.push(b',');
                }
                write(flow, self.form, now, &mut out);
                // A line's end would be allowed here, but is of no use.
                out.truncate(out.trim_ascii_end().len());
            }
            if !flows.is_empty() {
                return Ok(out.into());
            }
        }
        self.ended = true;
        match self.at {
            Some(next) => out.extend_from_slice(format!("],\"next\":\"{next}\"}}\n").as_bytes()),
            None => out.extend_from_slice(b"]}\n"),
        }
        Ok(out.into())
    }

    async fn page(&self, from: Cursor) -> io::Result<Page> {
        let (answer, given) = oneshot::channel();
        let piece: Piece = self.desk.ask(Question::Piece { from, answer }, given).await?;
        let (filter, left) = (self.filter.clone(), self.left);
        self.desk.aside.work(move || piece.select(&filter, left)).await
    }
}

/// Which records are wanted, and how they are told.
struct Wanted {
    filter: Filter,
    form: Form,
}

/// Records as they are exported, with the batch that is being told of.
struct Following {
    batches: broadcast::Receiver<Arc<Batch>>,
    aside: Aside,
    wanted: Arc<Wanted>,
    skipped: Counter,
    /// It, and how many of its records are done with.
    batch: Option<(Arc<Batch>, usize)>,
}

/// A line for each record that is exported from now on.
pub(super) async fn follow(desk: Desk, ask: Ask) -> io::Result<Body> {
    let (answer, given) = oneshot::channel();
    let batches = desk.ask(Question::Follow(answer), given).await?;
    let skipped = desk.metrics.api.skipped.clone();
    let wanted = Arc::new(Wanted { filter: ask.filter, form: ask.form });
    let following = Following { batches, aside: desk.aside, wanted, skipped, batch: None };
    Ok(Body::from_stream(unfold(following, |mut following| async {
        let piece = following.piece().await.transpose()?;
        Some((piece, following))
    })))
}

impl Following {
    /// `None` at the end of the process.
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let due = Instant::now() + SIGN_OF_LIFE;
        loop {
            let Some((batch, done)) = self.batch.take() else {
                // Also where batches come without a pause, and nothing in them is wanted.
                let received =
                    if Instant::now() < due { timeout_at(due, self.batches.recv()).await.ok() } else { None };
                let Some(received) = received else { return Ok(Some(Bytes::from_static(b"\n"))) };
                match received {
                    Ok(batch) => self.batch = Some((batch, 0)),
                    Err(broadcast::error::RecvError::Lagged(count)) => {
                        self.skipped.inc_by(count);
                        return Ok(Some(format!("{{\"skippedBatches\":{count}}}\n").into()));
                    }
                    Err(broadcast::error::RecvError::Closed) => return Ok(None),
                }
                continue;
            };
            let (wanted, told) = (self.wanted.clone(), batch.clone());
            let lines = self.aside.work(move || wanted.lines(&told, done)).await?;
            self.batch = Some((batch, done + PIECE)).filter(|(batch, done)| *done < batch.len());
            if !lines.is_empty() {
                return Ok(Some(lines.into()));
            }
        }
    }
}

impl Wanted {
    fn lines(&self, batch: &Batch, from: usize) -> Vec<u8> {
        let (mut out, now) = (Vec::new(), Timestamp::from(SystemTime::now()));
        for joined in batch.iter().skip(from).take(PIECE) {
            let wanted = |flow: &AggregatedFlow| self.filter.matches(&FlowView::from(flow));
            let Some(flow) = joined.decode().filter(wanted) else { continue };
            match self.form {
                // What is not joined has other elements than a joined flow.
                Form::Records => drop(joined.json(true, now, &mut out)),
                Form::Rows => write(&flow, self.form, now, &mut out),
            }
        }
        out
    }
}

/// Appends a line.
fn write(flow: &AggregatedFlow, form: Form, now: Timestamp, out: &mut Vec<u8>) {
    match form {
        Form::Records => flow.json(true, now, out),
        Form::Rows => {
            let row = Row::from_parts(&flow.head, &flow.tail, &flow.extended);
            serde_json::to_writer(&mut *out, &row).expect("a row is JSON, and a vector takes every byte");
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::testing::batch_of;
    use tokio::time::{sleep, timeout};

    #[tokio::test(start_paused = true)]
    async fn a_follower_whose_filter_nothing_fulfils_gets_signs_of_life() {
        let (exported, batches) = broadcast::channel(16);
        tokio::spawn(async move {
            while exported.send(Arc::new(batch_of(2))).is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let wanted = Arc::new(Wanted { filter: Filter::parse("src.port = 7").unwrap(), form: Form::Rows });
        let mut following =
            Following { batches, aside: Aside::default(), wanted, skipped: Counter::default(), batch: None };
        let begin = Instant::now();
        for signs in 1..=3 {
            let piece = timeout(SIGN_OF_LIFE * 2, following.piece()).await.expect("a sign of life");
            assert_eq!(piece.unwrap().as_deref(), Some(&b"\n"[..]));
            assert_eq!(begin.elapsed(), SIGN_OF_LIFE * signs);
        }
    }
}
