//! Looks at the folder whenever something in it changes.

use tokio::sync::mpsc;

use super::{Folder, Look};
use crate::watch::FolderWatch;

/// Looks at the folder now and whenever it changes, and hands on looks that found something new: other objects, or
/// something else to refuse. Returns when nobody listens any more.
pub async fn run(mut folder: Folder, output: mpsc::Sender<Look>) {
    let mut watch = FolderWatch::new();
    let mut refused = Vec::new();
    loop {
        // Watched before it is read, so that no change falls between.
        watch.watch(folder.path());
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
            () = watch.changed() => {}
            () = output.closed() => return,
        }
    }
}
