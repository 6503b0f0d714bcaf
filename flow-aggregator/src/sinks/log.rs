//! Joined flows as lines of JSON into a file or the standard output.
//!
//! Takes a path; `-` is the standard output. Writing may block (a full pipe, a slow disk), so it is done beside the
//! runtime's threads. Nothing is rotated here.

use super::{Delivery, Sink, SinkError, json::timestamp};
use crate::aggregate::Batch;
use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// Which file, and how lines look.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// The file; `-` is the standard output.
    pub path: PathBuf,
    /// Whether records have the extended elements.
    pub extended: bool,
}

/// A file of JSON lines.
#[derive(Debug)]
pub struct LogSink {
    settings: LogSettings,
    file: Option<Arc<File>>,
}

impl LogSink {
    /// Nothing is open yet.
    pub fn new(settings: LogSettings) -> LogSink {
        LogSink { settings, file: None }
    }
}

impl Sink for LogSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let opened = if self.settings.path == Path::new("-") {
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::options().append(true).create(true).open(&self.settings.path)
        };
        let file = opened.map_err(|source| SinkError::File { path: self.settings.path.clone(), source })?;
        self.file = Some(Arc::new(file));
        Ok(())
    }

    /// A batch's lines are written as one piece; after a failure all of them are written again, so that none is half
    /// there for good.
    async fn deliver(&mut self, batch: &Batch, from: usize) -> Delivery {
        let Some(file) = self.file.clone() else {
            return Delivery { through: from, refused: 0, error: Some(SinkError::Closed) };
        };
        let (mut lines, mut refused, at) = (Vec::new(), 0, timestamp());
        for joined in batch.iter().skip(from) {
            match joined.decode() {
                Some(flow) => flow.json(self.settings.extended, at, &mut lines),
                None => refused += 1,
            }
        }
        let written = spawn_blocking(move || (&*file).write_all(&lines)).await.map_err(io::Error::other);
        match written.flatten() {
            Ok(()) => Delivery { through: batch.len(), refused, error: None },
            Err(source) => {
                let error = Some(SinkError::File { path: self.settings.path.clone(), source });
                Delivery { through: from, refused: 0, error }
            }
        }
    }

    async fn idle(&mut self) -> Result<(), SinkError> {
        std::future::pending().await
    }

    async fn close(&mut self) {
        self.file = None;
    }
}
