//! The module nf_conntrack as it comes, goes and comes again. Takes a time, tells whether something changed; loads nothing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The module's folder, or that of the part of the kernel with its parameters.
const FOLDER: &str = "/sys/module/nf_conntrack";

/// How often the module is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The load of the module that was there when it was last looked for.
#[derive(Debug)]
pub struct ConntrackModule {
    instance: Option<u64>,
    looked: Option<Instant>,
}

impl ConntrackModule {
    /// As it is now.
    pub fn here() -> Self {
        Self { instance: instance(), looked: None }
    }

    /// Whether it was there.
    pub fn is_there(&self) -> bool {
        self.instance.is_some()
    }

    /// Looks for it, once a second at most. True if it has come, gone or come again since the look before.
    pub fn has_changed(&mut self, now: Instant) -> bool {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_EVERY) {
            return false;
        }
        self.looked = Some(now);
        let instance = instance();
        std::mem::replace(&mut self.instance, instance) != instance
    }
}

/// Which load is there: a number that no later one has. None while there is none, or it is not ready yet.
fn instance() -> Option<u64> {
    let folder = Path::new(FOLDER);
    let state = fs::read_to_string(folder.join("initstate"));
    // What is built in has no such file.
    if state.is_ok_and(|state| state.trim() != "live") {
        return None;
    }
    fs::metadata(folder).ok().map(|folder| folder.ino())
}
