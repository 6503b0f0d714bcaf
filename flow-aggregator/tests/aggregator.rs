//! The aggregator as it runs: agents over real sockets in, joined flows over real sockets and into files out.

#[path = "aggregator/api.rs"]
mod api;
#[path = "aggregator/ends.rs"]
mod ends;
#[path = "aggregator/hostile.rs"]
mod hostile;
#[path = "aggregator/killed.rs"]
mod killed;
#[path = "aggregator/live.rs"]
mod live;
#[path = "aggregator/pipeline.rs"]
mod pipeline;
#[path = "aggregator/process.rs"]
mod process;
#[path = "aggregator/sessions.rs"]
mod sessions;
#[path = "aggregator/sinks.rs"]
mod sinks;
