//! The client's end of the socket. Takes a request, gives the replies one after the other.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::api::{Reply, Request};

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody answers.
    #[error("no agent answers at {}: start `flow-agent run`, or name its socket with --socket or its file with --config", .0.display())]
    Nobody(PathBuf),
    /// No right.
    #[error("only root may ask the agent: use sudo")]
    NotRoot,
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("the agent's answer broke off: {0}")]
    Broken(#[from] io::Error),
    /// The answer is not of this version.
    #[error("the agent's answer is not understood: {0}; is it of another version?")]
    Foreign(#[from] serde_json::Error),
}

/// The replies to one request.
#[derive(Debug)]
pub(super) struct Replies {
    lines: BufReader<UnixStream>,
    line: String,
}

/// Asks the agent at `path`.
pub(super) fn ask(path: &Path, request: &Request) -> Result<Replies, AskError> {
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::NotRoot,
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody(path.to_owned()),
        _ => AskError::Broken(error),
    })?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    Ok(Replies { lines: BufReader::new(stream), line })
}

impl Replies {
    /// Whether a part of the next reply is here already.
    pub(super) fn has_more(&self) -> bool {
        !self.lines.buffer().is_empty()
    }

    /// The next reply; none after the last.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, AskError> {
        self.line.clear();
        if self.lines.read_line(&mut self.line)? == 0 {
            return Err(AskError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&self.line)? {
            Reply::End => Ok(None),
            Reply::Error(reason) => Err(AskError::Refused(reason)),
            reply => Ok(Some(reply)),
        }
    }
}
