//! What a long-running program needs around its work: logging, an orderly end, open files, and an HTTP port for operators.
//!
//! Takes settings; gives a [`Shutdown`] that tasks wait for and a served [`Admin`] port. It decides nothing about the
//! program's work: what is ready, and which metrics there are, it is told.

mod admin;
mod files;
pub mod http;

pub use admin::{Admin, AdminError, Condition, Readiness, figures, health};
pub use files::allow_open_files;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// The exit status after a second signal, as shells report a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error("\"{level}\" is no log level: write error, warn, info, debug or trace")]
    Level {
        /// As written.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The level has no such name.
    #[error("\"{level}\" is no log level: write error, warn, info, debug or trace")]
    Unknown {
        /// As written.
        level: String,
    },
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Logs to standard error from the given level on ("info", or per module as `RUST_LOG` has it). The environment
/// variable `RUST_LOG`, where set, wins over the configuration.
pub fn log(level: &str) -> Result<LogLevel, LogError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let level = std::env::var("RUST_LOG").ok().filter(|value| !value.is_empty()).unwrap_or_else(|| level.to_owned());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(level_filter(&level)?)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.finish().try_init().map_err(LogError::Twice)?;
    let reload = move |filter| handle.reload(filter).is_ok();
    Ok(LogLevel(Arc::new(Level { shown: Mutex::new(level), reload: Box::new(reload) })))
}

/// Whether [`log`] and [`LogLevel::set`] take it.
pub fn check_level(level: &str) -> Result<(), LogError> {
    level_filter(level).map(drop)
}

/// A word alone would be taken for a module's name, so only levels may stand alone.
fn level_filter(level: &str) -> Result<EnvFilter, LogError> {
    let known = |part: &str| part.contains('=') || part.parse::<tracing::Level>().is_ok() || part == "off";
    if !level.split(',').all(|part| known(part.trim())) {
        return Err(LogError::Unknown { level: level.to_owned() });
    }
    EnvFilter::try_new(level).map_err(|source| LogError::Level { level: level.to_owned(), source })
}

/// The level from which on is logged; every clone changes the same.
#[derive(Clone)]
pub struct LogLevel(Arc<Level>);

struct Level {
    shown: Mutex<String>,
    /// False where nothing is logged by the process.
    reload: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

impl LogLevel {
    /// A level that nothing is logged by: in programs that set up no logging of their own.
    pub fn unused(level: &str) -> LogLevel {
        LogLevel(Arc::new(Level { shown: Mutex::new(level.to_owned()), reload: Box::new(|_| true) }))
    }

    /// The level, as it was set.
    pub fn shown(&self) -> String {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs from `level` on.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        let filter = level_filter(level)?;
        if (self.0.reload)(filter) {
            *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner) = level.to_owned();
        }
        Ok(())
    }
}

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogLevel").field(&self.shown()).finish()
    }
}

/// Tells every holder of a clone that the program shall end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Requests the end; dropped, it requests it too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl Shutdown {
    /// The end is requested by the returned trigger.
    pub fn new() -> (ShutdownTrigger, Shutdown) {
        let (trigger, shutdown) = watch::channel(false);
        (ShutdownTrigger(trigger), Shutdown(shutdown))
    }

    /// The end is requested by SIGINT or SIGTERM. A second signal ends the process at once, with nothing flushed.
    pub fn on_signals() -> io::Result<Shutdown> {
        let (trigger, shutdown) = Shutdown::new();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                }
            };
            let name = next().await;
            tracing::info!("{name}: ending; once more ends at once");
            trigger.request();
            next().await;
            std::process::exit(INTERRUPTED);
        });
        Ok(shutdown)
    }

    /// Waits for the request. Cancel-safe.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which is a request as well.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// Whether the end was requested.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

impl ShutdownTrigger {
    /// Requests the end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_holder_hears_of_the_end() {
        let (trigger, mut first) = Shutdown::new();
        let mut second = first.clone();
        assert!(!first.is_requested());
        trigger.request();
        first.requested().await;
        second.requested().await;
        assert!(first.is_requested() && second.is_requested());
    }

    #[tokio::test]
    async fn a_lost_trigger_is_a_request() {
        let (trigger, mut shutdown) = Shutdown::new();
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
