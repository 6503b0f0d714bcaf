//! The unix socket behind `flow-agent flows`, `top`, `drops`, `verify` and `doctor`: a line of JSON asks, lines of JSON answer.
//!
//! Takes connections of root alone; gives live flows and records from the flows task, and the facts. A slow client loses records
//! (and is told how many), never holds up the flows task.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flow_common::daemon::Shutdown;
use flow_common::filter::{Filter, FlowView};
use flow_common::time::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

mod protocol;
mod ranking;

pub use flow_common::row::{End, Row, protocol_name};
pub use protocol::{DeniedFlow, DropsReply, Form, Ranked, Reply, Request, Top};

use crate::doctor::Facts;
use crate::enrich::Record;
use crate::verify::Report;
use ranking::Ranking;

/// Clients at one time.
const CLIENTS: usize = 16;

/// The longest request; a filter has 4 KiB at most.
const LONGEST_REQUEST: u64 = 16 * 1_024;

/// Batches that wait for a client; what comes beyond is skipped and counted.
const BATCHES: usize = 64;

/// Bytes gathered before they are written.
const WRITE: usize = 64 * 1_024;

/// How often `top` is told anew.
const FRAME: Duration = Duration::from_secs(1);

/// What the flows task is asked.
#[derive(Debug)]
pub enum Question {
    /// Every live flow, batch after batch; then the channel closes.
    Live(mpsc::Sender<Vec<Record>>),
    /// The facts as they are now.
    Facts(oneshot::Sender<Arc<Facts>>),
    /// What the kernel dropped, and the flows that did not come through.
    Drops(oneshot::Sender<DropsReply>),
    /// Whether connection tracking counted the same.
    Verify(oneshot::Sender<Box<Report>>),
    /// Every record from now on, as it goes to export.
    Follow(Follower),
}

/// Where a client's records go.
#[derive(Clone, Debug)]
pub struct Follower {
    batches: mpsc::Sender<Arc<Vec<Record>>>,
    skipped: watch::Sender<u64>,
}

impl Follower {
    /// Hands a batch on, or counts it as skipped. False if the client is gone.
    pub fn offer(&self, batch: &Arc<Vec<Record>>) -> bool {
        match self.batches.try_send(Arc::clone(batch)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(batch)) => {
                self.skipped.send_modify(|skipped| *skipped += u64::try_from(batch.len()).unwrap_or(u64::MAX));
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("another agent answers at {}: stop it, or set apiSocket to another path", .0.display())]
    Taken(PathBuf),
    /// The system refuses.
    #[error("cannot listen at {}: {source}; set apiSocket to a path that this agent may write", path.display())]
    Refused {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens at `path`, for root alone. A socket that a dead agent left is replaced.
pub async fn bind(path: &Path) -> Result<UnixListener, BindError> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let refused = |source| BindError::Refused { path: path.to_owned(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(BindError::Taken(path.to_owned()));
    }
    let leftover = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if leftover {
        std::fs::remove_file(path).map_err(refused)?;
    }
    let listener = UnixListener::bind(path).map_err(refused)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(refused)?;
    Ok(listener)
}

/// What a client's task needs.
#[derive(Clone, Debug)]
pub struct Desk {
    /// To the flows task.
    pub questions: mpsc::Sender<Question>,
    /// Over how long `top` averages: the time in which every active flow has a record.
    pub window: Duration,
    /// Whether records have the extended elements.
    pub extended: bool,
}

/// Serves until the end is requested.
pub async fn run(listener: UnixListener, desk: Desk, mut shutdown: Shutdown) {
    let mut clients = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS => accepted,
            Some(_) = clients.join_next() => continue,
            () = shutdown.requested() => return,
        };
        match stream {
            Ok((stream, _)) => {
                let desk = desk.clone();
                clients.spawn(async move {
                    if let Err(error) = serve(stream, desk).await {
                        tracing::debug!("a client of the API socket: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("the API socket: {error}");
                tokio::time::sleep(FRAME).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, desk: Desk) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reader, writer) = stream.into_split();
    let mut client = Client { writer, buffer: Vec::new() };
    if uid != 0 {
        return client.end(&Reply::Error("only root may ask the agent".to_owned())).await;
    }
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    reader.read_line(&mut line).await?;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return client.end(&Reply::Error(format!("this is no request: {error}"))).await,
    };
    let gone = reader.into_inner().into_inner();
    tokio::select! {
        answered = answer(request, desk, &mut client) => answered,
        () = hung_up(gone) => Ok(()),
    }
}

/// Waits until the client closes its end; it has nothing more to say.
async fn hung_up(mut reader: OwnedReadHalf) {
    let mut rest = [0; 64];
    while matches!(reader.read(&mut rest).await, Ok(1..)) {}
}

async fn answer(request: Request, desk: Desk, client: &mut Client) -> io::Result<()> {
    let filter = match Filter::parse(request.filter()) {
        Ok(filter) => filter,
        Err(error) => return client.end(&Reply::Error(format!("the filter: {error}"))).await,
    };
    let answered = match request {
        Request::Doctor => {
            let (answer, facts) = oneshot::channel();
            ask(&desk, Question::Facts(answer)).await?;
            let facts = facts.await.map_err(|_| ending())?;
            client.say(&Reply::Doctor(Box::new(facts.as_ref().clone()))).await
        }
        Request::Drops => {
            let (answer, drops) = oneshot::channel();
            ask(&desk, Question::Drops(answer)).await?;
            client.say(&Reply::Drops(Box::new(drops.await.map_err(|_| ending())?))).await
        }
        Request::Verify => {
            let (answer, report) = oneshot::channel();
            ask(&desk, Question::Verify(answer)).await?;
            client.say(&Reply::Verify(report.await.map_err(|_| ending())?)).await
        }
        Request::Flows { follow: false, form, .. } => live(&desk, &filter, form, client).await,
        Request::Flows { follow: true, form, .. } => follow(&desk, &filter, form, client).await,
        Request::Top { rows, .. } => top(&desk, &filter, rows, client).await,
    };
    answered?;
    client.end(&Reply::End).await
}

async fn live(desk: &Desk, filter: &Filter, form: Form, client: &mut Client) -> io::Result<()> {
    let (sender, mut batches) = mpsc::channel(2);
    ask(desk, Question::Live(sender)).await?;
    while let Some(batch) = batches.recv().await {
        for record in &batch {
            client.show(record, filter, form, desk.extended).await?;
        }
    }
    Ok(())
}

async fn follow(desk: &Desk, filter: &Filter, form: Form, client: &mut Client) -> io::Result<()> {
    let (mut batches, mut skipped) = subscribe(desk).await?;
    while let Some(batch) = batches.recv().await {
        for record in batch.iter() {
            client.show(record, filter, form, desk.extended).await?;
        }
        if skipped.has_changed().unwrap_or(false) {
            let skipped = *skipped.borrow_and_update();
            client.say(&Reply::Skipped(skipped)).await?;
        }
        client.flush().await?;
    }
    Ok(())
}

async fn top(desk: &Desk, filter: &Filter, rows: usize, client: &mut Client) -> io::Result<()> {
    let (mut batches, _skipped) = subscribe(desk).await?;
    let mut ranking = Ranking::new(desk.window);
    let mut frames = tokio::time::interval(FRAME);
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else { return Ok(()) };
                let now = frames_now();
                batch.iter().filter(|record| filter.matches(&FlowView::from(&record.owned()))).for_each(|record| ranking.add(record, now));
            }
            _ = frames.tick() => {
                client.say(&Reply::Top(ranking.top(rows, frames_now()))).await?;
                client.flush().await?;
            }
        }
    }
}

fn frames_now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

async fn subscribe(desk: &Desk) -> io::Result<(mpsc::Receiver<Arc<Vec<Record>>>, watch::Receiver<u64>)> {
    let (sender, batches) = mpsc::channel(BATCHES);
    let (count, skipped) = watch::channel(0);
    ask(desk, Question::Follow(Follower { batches: sender, skipped: count })).await?;
    Ok((batches, skipped))
}

async fn ask(desk: &Desk, question: Question) -> io::Result<()> {
    desk.questions.send(question).await.map_err(|_| ending())
}

fn ending() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the agent is ending")
}

/// The writing half of a connection; gathers small lines.
struct Client {
    writer: OwnedWriteHalf,
    buffer: Vec<u8>,
}

impl Client {
    async fn show(&mut self, record: &Record, filter: &Filter, form: Form, extended: bool) -> io::Result<()> {
        let owned = record.owned();
        if !filter.matches(&FlowView::from(&owned)) {
            return Ok(());
        }
        match form {
            Form::Row => self.say(&Reply::Row(Box::new(Row::of(&owned)))).await,
            Form::Record => {
                let mut line = Vec::new();
                let at = Timestamp::from_millis(owned.extended.end_milliseconds);
                owned.json(extended, at, &mut line);
                self.say(&Reply::Record(serde_json::from_slice(&line)?)).await
            }
        }
    }

    async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        serde_json::to_writer(&mut self.buffer, reply)?;
        self.buffer.push(b'\n');
        if self.buffer.len() >= WRITE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }

    async fn end(&mut self, reply: &Reply) -> io::Result<()> {
        self.say(reply).await?;
        self.flush().await
    }
}
