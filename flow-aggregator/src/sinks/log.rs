//! Flows as lines in a file or on the standard output.
//!
//! Takes a path (`-` is the standard output), how lines look, which flows are wanted, and when files are put aside.
//! Writing may block (a full pipe, a slow disk), so it is done beside the runtime's threads, and so are compression and
//! removal of files that were put aside, which no flow waits for.

mod file;
mod line;

pub use file::Rotation;

use super::{Delivery, Sink, SinkError, json::timestamp};
use crate::{
    aggregate::Batch,
    config::{ActionFilters, LogFormat},
};
use file::{LogFile, tidy_up};
use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

/// Flows of a batch whose lines are made and written together.
const AT_ONCE: usize = 4_096;

/// Which file, and what stands in it.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// The file; `-` is the standard output.
    pub path: PathBuf,
    /// Whether records have the extended elements (of JSON; CSV never has them).
    pub extended: bool,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether CSV has names for numbers.
    pub pretty: bool,
    /// Which flows are written.
    pub filters: ActionFilters,
    /// When a file is put aside.
    pub rotation: Rotation,
}

/// A file of lines.
#[derive(Debug)]
pub struct LogSink {
    settings: LogSettings,
    file: Option<LogFile>,
    tidying: Option<JoinHandle<()>>,
    /// A file was put aside while the others were looked after.
    untidy: bool,
}

/// Lines of a batch, and for each where it ends and how many flows of the batch are done with it.
#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    ends: Vec<(usize, usize)>,
}

/// What came of writing lines.
struct Written {
    file: LogFile,
    through: usize,
    delivered: u64,
    rotated: bool,
    error: Option<io::Error>,
}

impl LogSink {
    /// Nothing is open yet.
    pub fn new(settings: LogSettings) -> LogSink {
        LogSink { settings, file: None, tidying: None, untidy: false }
    }

    fn lines(&self, batch: &Batch, from: usize) -> (Lines, u64) {
        let LogSettings { extended, format, pretty, filters, .. } = &self.settings;
        let (mut lines, mut refused, at) = (Lines::default(), 0, timestamp());
        for (number, joined) in batch.iter().enumerate().skip(from).take(AT_ONCE) {
            if *format == LogFormat::Csv || !filters.is_empty() {
                let Some(flow) = joined.decode() else {
                    refused += 1;
                    continue;
                };
                if !filters.accept(flow.tail.ingress_action, flow.tail.egress_action) {
                    continue;
                }
                if *format == LogFormat::Csv {
                    line::csv(&flow, *pretty, &mut lines.text);
                }
            }
            if *format == LogFormat::Json && !joined.json(*extended, at, &mut lines.text) {
                refused += 1;
                continue;
            }
            lines.ends.push((lines.text.len(), number + 1));
        }
        (lines, refused)
    }

    fn failed(&self, source: io::Error) -> SinkError {
        SinkError::File { path: self.settings.path.clone(), source }
    }

    /// Beside everything else, one run at a time.
    fn tidy(&mut self) {
        let LogSettings { path, rotation, .. } = self.settings.clone();
        self.untidy = self.tidying.as_ref().is_some_and(|tidying| !tidying.is_finished());
        if path == Path::new("-") || self.untidy {
            return;
        }
        self.tidying = Some(spawn_blocking(move || {
            if let Err(error) = tidy_up(&path, &rotation, SystemTime::now()) {
                tracing::warn!("files beside {} cannot be compressed or removed: {error}", path.display());
            }
        }));
    }
}

impl Sink for LogSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let path = self.settings.path.clone();
        // Opening a pipe waits for its reader.
        let opened = spawn_blocking(move || LogFile::open(&path)).await.map_err(io::Error::other);
        self.file = Some(opened.flatten().map_err(|source| self.failed(source))?);
        self.tidy();
        Ok(())
    }

    /// After a failure no line is half there, and only those that are not there are written again.
    async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
        let (lines, refused) = self.lines(batch, from);
        let failed = |error| Delivery { through: from, delivered: 0, refused: 0, error: Some(error) };
        let Some(file) = self.file.take() else { return failed(SinkError::Closed) };
        let rotation = self.settings.rotation.clone();
        let Written { file, through, delivered, rotated, error } =
            match spawn_blocking(move || write(file, &lines, &rotation, from)).await {
                Ok(written) => written,
                Err(error) => return failed(self.failed(io::Error::other(error))),
            };
        self.file = Some(file);
        if rotated {
            self.tidy();
        }
        let done = batch.len().min(from + AT_ONCE);
        match error {
            None => Delivery { through: done, delivered, refused, error: None },
            Some(error) => Delivery { through, delivered, refused: 0, error: Some(self.failed(error)) },
        }
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        if let Some(tidying) = self.tidying.as_mut().filter(|_| self.untidy) {
            // It has said itself what went wrong.
            let _ = tidying.await;
            self.tidying = None;
            self.tidy();
            return Ok(());
        }
        let due = self.file.as_ref().and_then(|file| file.due(&self.settings.rotation));
        let Some(due) = due else { return std::future::pending().await };
        // The clock may be set meanwhile, so it is looked at again.
        let left = due.duration_since(SystemTime::now()).unwrap_or_default();
        sleep(left.min(Duration::from_secs(60))).await;
        if SystemTime::now() < due {
            return Ok(());
        }
        // From here on nothing waits, so that this is cancelled before or not at all.
        let Some(file) = &mut self.file else { return Err(SinkError::Closed) };
        if let Err(source) = file.rotate(SystemTime::now()) {
            return Err(self.failed(source));
        }
        self.tidy();
        Ok(())
    }

    async fn close(&mut self) {
        self.file = None;
        while let Some(tidying) = self.tidying.take() {
            let _ = tidying.await;
            if self.untidy {
                self.tidy();
            }
        }
    }
}

/// Writes lines in as few pieces as the files' bound allows; `through` is how many flows of the batch are done with.
fn write(mut file: LogFile, lines: &Lines, rotation: &Rotation, from: usize) -> Written {
    let (mut begin, mut next, mut through, mut rotated) = (0, 0, from, false);
    let mut step = || -> io::Result<bool> {
        let Some((first, _)) = lines.ends.get(next) else { return Ok(false) };
        let room =
            |file: &LogFile| file.room(rotation).map_or(usize::MAX, |room| usize::try_from(room).unwrap_or(usize::MAX));
        if first - begin > room(&file) && !file.is_empty()
            || file.due(rotation).is_some_and(|due| due <= SystemTime::now())
        {
            file.rotate(SystemTime::now())?;
            rotated = true;
        }
        let fits = lines.ends[next..].partition_point(|(end, _)| end - begin <= room(&file)).max(1);
        let (end, done) = lines.ends[next + fits - 1];
        file.append(&lines.text[begin..end])?;
        (begin, next, through) = (end, next + fits, done);
        Ok(true)
    };
    let error = loop {
        match step() {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    Written { file, through, delivered: next as u64, rotated, error }
}
