//! The operators' HTTP port: metrics, liveness, readiness, version.
//!
//! Takes a metrics registry and conditions of readiness; serves them as plain HTTP until shutdown. Nothing here
//! changes anything, so nobody is asked who they are: bind it to an address that only operators reach.

use super::{
    Shutdown,
    http::{self, Connections},
};
use crate::net::StreamListener;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why the port cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics and health on {addr}: {source}; set adminAddr to a free address")]
pub struct AdminError {
    /// The address.
    pub addr: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// The bound port.
#[derive(Debug)]
pub struct Admin {
    listener: StreamListener,
    state: Served,
}

#[derive(Debug)]
struct Served {
    registry: Arc<Registry>,
    readiness: Readiness,
    version: &'static str,
}

/// Named conditions that must all hold before the program is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<Named>>>);

/// A condition's name, and why it does not hold.
type Named = (&'static str, Option<String>);

/// One condition; it does not hold until it is said to.
#[derive(Clone, Debug)]
pub struct Condition {
    readiness: Readiness,
    at: usize,
}

impl Readiness {
    /// With no condition: ready.
    pub fn new() -> Readiness {
        Readiness::default()
    }

    /// Adds a condition, which does not hold yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        let mut conditions = self.conditions();
        conditions.push((name, Some("starting".to_owned())));
        Condition { readiness: self.clone(), at: conditions.len() - 1 }
    }

    /// Whether every condition holds.
    pub fn is_ready(&self) -> bool {
        self.conditions().iter().all(|(_, failing)| failing.is_none())
    }

    /// A line a condition, as Kubernetes' own components write it.
    fn report(&self) -> String {
        let mut report = String::new();
        for (name, failing) in self.conditions().iter() {
            let written = match failing {
                None => writeln!(report, "[+]{name} ok"),
                Some(reason) => writeln!(report, "[-]{name} failed: {reason}"),
            };
            written.unwrap_or_default();
        }
        report
    }

    /// A panic of another holder cannot leave a half-written entry.
    fn conditions(&self) -> MutexGuard<'_, Vec<Named>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// It holds.
    pub fn holds(&self) {
        self.set(None);
    }

    /// It does not, and why.
    pub fn fails(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, failing: Option<String>) {
        if let Some(entry) = self.readiness.conditions().get_mut(self.at) {
            entry.1 = failing;
        }
    }
}

impl Admin {
    /// Binds the port. `version` is what `/version` answers.
    pub async fn bind(
        addr: SocketAddr,
        registry: Arc<Registry>,
        readiness: Readiness,
        version: &'static str,
    ) -> Result<Admin, AdminError> {
        let listener = StreamListener::bind(addr, None).await.map_err(|source| AdminError { addr, source })?;
        Ok(Admin { listener, state: Served { registry, readiness, version } })
    }

    /// Where it listens.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.listener.local()
    }

    /// Serves until the end is requested.
    pub async fn run(self, shutdown: Shutdown) {
        let Served { registry, readiness, version } = self.state;
        let router = health(readiness).merge(figures(registry, version));
        http::serve(self.listener, router, Connections::default(), shutdown).await;
    }
}

/// `/livez`, `/healthz` and `/readyz`.
pub fn health(readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
}

/// `/metrics` and `/version`.
pub fn figures(registry: Arc<Registry>, version: &'static str) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/version", get(move || async move { format!("{version}\n") }))
        .with_state(registry)
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => {
            let text = format!("the metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text)
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, readiness.report())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    async fn ask(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_operators_until_the_end() {
        let mut registry = Registry::default();
        let seen = Counter::<u64>::default();
        registry.register("seen", "What was seen", seen.clone());
        seen.inc_by(7);
        let readiness = Readiness::new();
        let collector = readiness.condition("collector");
        let (trigger, shutdown) = Shutdown::new();
        let admin = Admin::bind(([127, 0, 0, 1], 0).into(), Arc::new(registry), readiness, "1.2.3").await.unwrap();
        let addr = admin.local().unwrap();
        let serving = tokio::spawn(admin.run(shutdown));

        assert!(ask(addr, "/metrics").await.contains("seen_total 7\n"));
        assert!(ask(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(ask(addr, "/version").await.ends_with("1.2.3\n"));
        let unready = ask(addr, "/readyz").await;
        assert!(unready.starts_with("HTTP/1.1 503") && unready.contains("[-]collector failed: starting"), "{unready}");
        collector.holds();
        assert!(ask(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        collector.fails("the port is gone");
        assert!(ask(addr, "/readyz").await.contains("[-]collector failed: the port is gone"));

        trigger.request();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn clients_that_say_nothing_take_no_place_of_others() {
        let (trigger, shutdown) = Shutdown::new();
        let any = ([127, 0, 0, 1], 0).into();
        let admin = Admin::bind(any, Arc::new(Registry::default()), Readiness::new(), "1.2.3").await.unwrap();
        let addr = admin.local().unwrap();
        let serving = tokio::spawn(admin.run(shutdown));
        let mut silent = Vec::new();
        for _ in 0..40 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
            silent.push(socket.connect(addr).await.unwrap());
        }
        assert!(ask(addr, "/livez").await.ends_with("ok"));
        // Those beyond an address's share are closed at once.
        let last = silent.last_mut().unwrap();
        assert_eq!(last.read(&mut [0]).await.unwrap_or_default(), 0);
        trigger.request();
        serving.await.unwrap();
    }
}
