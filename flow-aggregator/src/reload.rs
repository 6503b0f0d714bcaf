//! Follows the configuration file.
//!
//! Takes its path and what is in force; gives each further configuration that is good, whole. A file with a fault is
//! refused whole and named by line and key. What only a restart can change (ports and the TLS of the servers) keeps its
//! value, and a warning names the keys. Applies nothing itself.

use crate::{
    config::{self, Config},
    metrics::ReloadMetrics,
};
use flow_common::{
    config::{Problems, Settings},
    watch::FolderWatch,
};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// A file that is followed.
#[derive(Debug)]
pub struct Reload {
    /// Where it is.
    pub path: PathBuf,
    /// What is in force.
    pub running: Config,
    /// What is counted.
    pub metrics: ReloadMetrics,
}

/// A good file.
#[derive(Debug)]
struct Accepted {
    config: Config,
    warnings: Vec<String>,
    /// Keys whose new values wait for a restart.
    waiting: Vec<&'static str>,
}

impl Reload {
    /// Follows the file until nobody listens any more.
    pub async fn run(mut self, output: mpsc::Sender<Config>) {
        let mut watch = FolderWatch::new();
        let mut known: Option<Vec<u8>> = None;
        loop {
            // Watched before it is read, so that no change falls between.
            watch.watch(folder(&self.path));
            let read = std::fs::read(&self.path);
            let content = read.as_ref().map_or_else(|error| error.to_string().into_bytes(), Clone::clone);
            if known.as_ref() != Some(&content) {
                // The first look is compared with what is in force like any other: it may have changed since the start.
                known = Some(content);
                let next = match read {
                    Ok(bytes) => self.judge(&bytes),
                    Err(error) => self.refuse(&format!("cannot read {}: {error}", self.path.display())),
                };
                if let Some(config) = next
                    && output.send(config).await.is_err()
                {
                    return;
                }
            }
            tokio::select! {
                () = watch.changed() => {}
                () = output.closed() => return,
            }
        }
    }

    /// The configuration that a content gives, if it is good and other than what is in force.
    fn judge(&mut self, content: &[u8]) -> Option<Config> {
        let Ok(text) = std::str::from_utf8(content) else {
            return self.refuse(&format!("{} is no text", self.path.display()));
        };
        let accepted = match accept(&self.path.display().to_string(), text, &self.running) {
            Ok(accepted) => accepted,
            Err(problems) => return self.refuse(&problems.to_string()),
        };
        self.metrics.stale.set(0);
        for key in &accepted.waiting {
            tracing::warn!("{key} changed, but takes effect with a restart only");
        }
        if accepted.config == self.running {
            return None;
        }
        for warning in &accepted.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!("{} changed: {}", self.path.display(), differences(&self.running, &accepted.config).join(", "));
        self.running = accepted.config.clone();
        Some(accepted.config)
    }

    fn refuse(&self, reason: &str) -> Option<Config> {
        tracing::error!("the changed configuration is refused, and the old one stays in force: {reason}");
        self.metrics.refused.inc();
        self.metrics.stale.set(1);
        None
    }
}

fn accept(file: &str, text: &str, running: &Config) -> Result<Accepted, Problems> {
    let loaded = config::read(file, text)?;
    let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
    let mut config = loaded.settings;
    let read = config.clone();
    config.keep_bound(running);
    Ok(Accepted { waiting: differences(&config, &read), config, warnings })
}

/// The keys in which two configurations differ.
fn differences(one: &Config, other: &Config) -> Vec<&'static str> {
    let pairs = one.values().into_iter().zip(other.values());
    pairs.filter(|(one, other)| one != other).map(|((key, _), _)| key).collect()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "aggregatorTransportProtocol: tcp\n";

    fn running() -> Config {
        config::read("flow-aggregator.conf", PLAIN).unwrap().settings
    }

    #[test]
    fn what_needs_a_restart_is_named_and_kept() {
        let text = format!(
            "{PLAIN}listenAddr: \"127.0.0.1:1\"\nadminAddr: \"\"\nmaxFlows: 2048\napiServer: {{apiPort: 1, tlsMinVersion: VersionTLS13}}\n"
        );
        let accepted = accept("flow-aggregator.conf", &text, &running()).unwrap();
        assert_eq!(accepted.waiting, ["listenAddr", "apiServer.apiPort", "apiServer.tlsMinVersion", "adminAddr"]);
        assert_eq!(accepted.config, Config { max_flows: 2048, ..running() });
    }

    #[test]
    fn a_bad_file_is_refused_whole() {
        let text = format!("{PLAIN}maxFlows: 2048\nsinkQueue: none\n");
        let said = accept("flow-aggregator.conf", &text, &running()).unwrap_err().to_string();
        assert!(said.starts_with("flow-aggregator.conf:3: sinkQueue:"), "{said}");
    }

    #[test]
    fn a_transport_waits_for_a_restart() {
        let text = "aggregatorTransportProtocol: udp\n";
        let accepted = accept("flow-aggregator.conf", text, &running()).unwrap();
        assert_eq!((accepted.waiting, accepted.config), (vec!["aggregatorTransportProtocol"], running()));
    }
}
