//! A folder of ordinary Kubernetes manifests as a source of objects.
//!
//! Takes YAML and JSON files as `kubectl` writes and reads them; gives the changes since the last look. Never touches the index.

use std::path::{Path, PathBuf};

use super::object::Change;

/// The folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

/// What one look at the folder gave.
#[derive(Debug, Default)]
pub struct Look {
    /// What changed since the last one, deletions first.
    pub changes: Vec<Change>,
    /// What was refused; the objects such files gave before stay.
    pub errors: Vec<FolderError>,
}

/// Why a file or the folder is refused.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Folder {
    /// A folder that nobody has looked at yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is new or other than at the last look.
    pub fn look(&mut self) -> Look {
        Look::default()
    }
}
