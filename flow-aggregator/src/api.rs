//! The API: flow records, numbers, accounting, log level, metrics and health over HTTPS.
//!
//! Takes questions of clients that bear the token (health is open to all) and asks the table's task; changes nothing but
//! the log level. Connections are bounded, in all and of one address, and none may take its time over a header: a
//! client that sends or reads slowly holds up nobody else. docs/api.md is its reference.

mod aside;
mod flows;
mod listen;
mod numbers;
mod query;
mod token;

pub use aside::Aside;
pub use listen::Api;
pub(crate) use listen::{CERTIFICATE, TOKEN};
pub use numbers::{Account, Accounting, RecordMetrics, SinkNumbers};

use crate::{
    join::Question,
    metrics::{ApiMetrics, Metrics},
};
use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Query, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use flow_common::daemon::{LogLevel, Readiness, figures, health};
use prometheus_client::registry::Registry;
use query::{Ask, BadParameter};
use serde_json::json;
use std::{io, ops::Range, path::PathBuf, sync::Arc, time::Duration};
use token::Token;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

/// A log level is no longer than this.
const LONGEST_BODY: usize = 1_024;
/// A body that is not there by then is not waited for.
const BODY: Duration = Duration::from_secs(5);
/// The table's task answers within milliseconds, unless the process ends.
const ANSWER: Duration = Duration::from_secs(10);

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Desk {
    /// To the table's task.
    pub questions: mpsc::Sender<Question>,
    /// Where filters are tried.
    pub aside: Aside,
    /// For the number of sessions.
    pub metrics: Metrics,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
    /// What `/readyz` shows.
    pub readiness: Readiness,
    /// What `/loglevel` shows and sets.
    pub level: LogLevel,
    /// Where the clients' token stands, if not the made one is good.
    pub token_file: watch::Receiver<Option<PathBuf>>,
    /// What `/version` answers.
    pub version: &'static str,
}

#[derive(Clone, Debug)]
struct Guard {
    token: Token,
    metrics: ApiMetrics,
}

impl Desk {
    /// Asks the table's task and waits for the answer.
    async fn ask<T>(&self, question: Question, given: oneshot::Receiver<T>) -> io::Result<T> {
        let asked = async {
            self.questions.send(question).await.ok()?;
            given.await.ok()
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the table does not answer");
        let ends = || io::Error::new(io::ErrorKind::ConnectionAborted, "the process ends");
        timeout(ANSWER, asked).await.map_err(|_| late())?.ok_or_else(ends)
    }
}

fn router(desk: Desk, token: Token) -> Router {
    let guard = Guard { token, metrics: desk.metrics.api.clone() };
    let guarded = Router::new()
        .route("/flowrecords", get(flow_records))
        .route("/recordmetrics", get(record_metrics))
        .route("/accounting", get(accounting))
        .route("/loglevel", get(log_level).put(set_log_level))
        .with_state(desk.clone())
        .merge(figures(desk.registry, desk.version))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "not_found", "there is nothing here", None) })
        .layer(from_fn_with_state(guard, bearing));
    health(desk.readiness).merge(guarded)
}

/// Lets nobody through without the token.
async fn bearing(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if guard.token.admits(shown) {
        return next.run(request).await;
    }
    guard.metrics.unauthorized.inc();
    let reason = "bear the API's token: Authorization: Bearer TOKEN";
    let mut refusal = problem(StatusCode::UNAUTHORIZED, "unauthorized", reason, None);
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refusal
}

async fn flow_records(State(desk): State<Desk>, Query(parameters): Query<Vec<(String, String)>>) -> Response {
    let ask = match Ask::of(&parameters) {
        Ok(ask) => ask,
        Err(BadParameter { parameter, reason, span }) => {
            let reason = format!("{parameter}: {reason}");
            return problem(StatusCode::BAD_REQUEST, "bad_parameter", &reason, span);
        }
    };
    if !ask.follow {
        return ([(header::CONTENT_TYPE, "application/json")], flows::list(desk, ask)).into_response();
    }
    match flows::follow(desk, ask).await {
        Ok(lines) => ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response(),
        Err(error) => unavailable(&error),
    }
}

async fn record_metrics(State(desk): State<Desk>) -> Response {
    let (answer, given) = oneshot::channel();
    match desk.ask(Question::Figures(answer), given).await {
        Ok(figures) => {
            let sessions = u64::try_from(desk.metrics.collector.sessions.get()).unwrap_or(0);
            Json(RecordMetrics::of(&figures, sessions)).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

async fn accounting(State(desk): State<Desk>) -> Response {
    let (answer, given) = oneshot::channel();
    match desk.ask(Question::Accounting(answer), given).await {
        Ok(accounting) => Json(Accounting::of(accounting)).into_response(),
        Err(error) => unavailable(&error),
    }
}

async fn log_level(State(desk): State<Desk>) -> Response {
    Json(json!({ "level": desk.level.shown() })).into_response()
}

/// The level stands in the body, as `{"level":"debug"}` or alone.
async fn set_log_level(State(desk): State<Desk>, body: Body) -> Response {
    let bad = |reason: &str| problem(StatusCode::BAD_REQUEST, "bad_body", reason, None);
    let Ok(Ok(body)) = timeout(BODY, to_bytes(body, LONGEST_BODY)).await else {
        return bad("the body is too long, or did not come");
    };
    let Ok(text) = std::str::from_utf8(&body) else { return bad("the body is no text") };
    let named = serde_json::from_str::<serde_json::Value>(text).ok();
    let named = named.and_then(|body| body.get("level")?.as_str().map(str::to_owned));
    let level = named.unwrap_or_else(|| text.trim().to_owned());
    match desk.level.set(&level) {
        Ok(()) => {
            tracing::info!("the log level is {level} from now on");
            log_level(State(desk)).await
        }
        Err(error) => bad(&error.to_string()),
    }
}

fn unavailable(error: &io::Error) -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &error.to_string(), None)
}

/// An error as every answer tells it.
fn problem(status: StatusCode, code: &str, message: &str, span: Option<Range<usize>>) -> Response {
    let mut error = json!({ "code": code, "message": message });
    if let Some(span) = span {
        error["span"] = json!([span.start, span.end]);
    }
    (status, Json(json!({ "error": error }))).into_response()
}
