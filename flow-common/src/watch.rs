//! Wakes whoever keeps in step with the files of a folder.
//!
//! Takes a folder; says that something in it may have changed, once nothing happened for a moment. Kubernetes swaps a
//! mounted ConfigMap by renaming a link in the folder, which is a change like any other. Reads no file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// A folder is looked at when nothing happened for so long: programs write files in steps.
const QUIET: Duration = Duration::from_millis(200);

/// But no later than this after the first thing that happened.
const PATIENCE: Duration = Duration::from_secs(2);

/// And from time to time in any case: files may be links to what is elsewhere, and the kernel's events may be lost.
const ANYWAY: Duration = Duration::from_secs(30);

/// A folder that is watched. Where the kernel has no events for it (no more watches, a file system without), looks
/// happen only [`ANYWAY`].
#[derive(Debug)]
pub struct FolderWatch {
    changed: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of what is watched: another folder may take its name.
    watched: Option<(u64, u64)>,
}

impl FolderWatch {
    /// Watches nothing yet.
    pub fn new() -> FolderWatch {
        let changed = Arc::new(Notify::new());
        let wakes = changed.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_change(event.kind)) {
                wakes.notify_one();
            }
        });
        let watcher =
            watcher.inspect_err(|error| tracing::warn!(%error, "changes of files are seen up to 30 s late")).ok();
        FolderWatch { changed, watcher, watched: None }
    }

    /// Watches `folder` from here on; to be called before each look at it, so that no change falls between, and that
    /// another folder of the name is noticed.
    pub fn watch(&mut self, folder: &Path) {
        let identity = std::fs::metadata(folder).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let Some(watcher) = self.watcher.as_mut().filter(|_| identity != self.watched) else { return };
        if self.watched.is_some() {
            // Fails where the kernel has dropped it with the folder.
            let _ = watcher.unwatch(folder);
        }
        self.watched = None;
        if identity.is_none() {
            return;
        }
        match watcher.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => self.watched = identity,
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "changes of files are seen up to 30 s late");
            }
        }
    }

    /// Waits until another look is worth it. Cancel-safe.
    pub async fn changed(&self) {
        tokio::select! {
            () = self.changed.notified() => settled(&self.changed).await,
            () = sleep(ANYWAY) => {}
        }
    }
}

impl Default for FolderWatch {
    fn default() -> FolderWatch {
        FolderWatch::new()
    }
}

/// Waits until nothing has happened for a while.
async fn settled(changed: &Notify) {
    let latest = Instant::now() + PATIENCE;
    tokio::select! {
        () = async { while timeout(QUIET, changed.notified()).await.is_ok() {} } => {}
        () = sleep_until(latest) => {}
    }
}

/// Whether a file may be other than it was; reading one is no change.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}
