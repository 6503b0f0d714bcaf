//! Looks at the folder whenever something in it changes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Folder, Look};

/// A folder is looked at when nothing happened for so long: programs write files in steps.
const QUIET: Duration = Duration::from_millis(200);

/// But no later than this after the first thing that happened.
const PATIENCE: Duration = Duration::from_secs(2);

/// And from time to time in any case: files may be links to what is elsewhere, and the kernel's events may be lost.
const ANYWAY: Duration = Duration::from_secs(30);

/// Looks at the folder now and whenever it changes, and hands on looks that found something new: other objects, or
/// something else to refuse. Returns when nobody listens any more.
pub async fn run(mut folder: Folder, output: mpsc::Sender<Look>) {
    let changed = Arc::new(Notify::new());
    let mut watcher = FolderWatcher::new(&changed);
    let mut refused = Vec::new();
    loop {
        // Watched before it is read, so that no change falls between.
        watcher.watch(folder.path());
        let looked = tokio::task::spawn_blocking(move || {
            let look = folder.look();
            (folder, look)
        });
        // The task neither panics nor is cancelled except with the runtime.
        let Ok((same, look)) = looked.await else { return };
        folder = same;
        tracing::debug!(folder = %folder.path().display(), changes = look.changes.len(), ignored = look.ignored, "looked at manifests");
        if !look.changes.is_empty() || look.refused != refused {
            refused.clone_from(&look.refused);
            if output.send(look).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = changed.notified() => settled(&changed).await,
            () = sleep(ANYWAY) => {}
            () = output.closed() => return,
        }
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

/// The kernel's events for one folder. Where there are none (no more watches, a file system without), looks happen
/// only [`ANYWAY`].
struct FolderWatcher {
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of what is watched: another folder may take its name.
    watched: Option<(u64, u64)>,
}

impl FolderWatcher {
    fn new(changed: &Arc<Notify>) -> Self {
        let changed = changed.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_change(event.kind)) {
                changed.notify_one();
            }
        });
        let watcher =
            watcher.inspect_err(|error| tracing::warn!(%error, "changes of manifests are seen up to 30 s late")).ok();
        Self { watcher, watched: None }
    }

    fn watch(&mut self, folder: &Path) {
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
                tracing::warn!(folder = %folder.display(), %error, "changes of manifests are seen up to 30 s late");
            }
        }
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
