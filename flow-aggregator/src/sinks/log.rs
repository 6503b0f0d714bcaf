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

/// A file of JSON lines.
#[derive(Debug)]
pub struct LogSink {
    path: PathBuf,
    extended: bool,
    file: Option<Arc<File>>,
}

impl LogSink {
    /// Appends to `path`, with the extended elements or without.
    pub fn new(path: PathBuf, extended: bool) -> LogSink {
        LogSink { path, extended, file: None }
    }
}

impl Sink for LogSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let opened = if self.path == Path::new("-") {
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::options().append(true).create(true).open(&self.path)
        };
        let file = opened.map_err(|source| SinkError::File { path: self.path.clone(), source })?;
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
                Some(flow) => flow.json(self.extended, at, &mut lines),
                None => refused += 1,
            }
        }
        let written = spawn_blocking(move || (&*file).write_all(&lines)).await.map_err(io::Error::other);
        match written.flatten() {
            Ok(()) => Delivery { through: batch.len(), refused, error: None },
            Err(source) => {
                let error = Some(SinkError::File { path: self.path.clone(), source });
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
