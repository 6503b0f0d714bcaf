//! Programs as processes on the loopback, for tests of what goes over the wire: collectors and exporters that are not
//! ours (go-ipfix's, built from the Go module beside this crate, nfdump's nfcapd, tshark), ClickHouse servers, old and
//! modern, and the aggregator before them. What they say comes back as values; what they receive is the tests'.

mod aggregator;
mod clickhouse;
mod cluster;
mod go;
mod keeper;
mod nfcapd;
mod process;
mod relay;
mod tshark;
pub mod wait;

pub use aggregator::{Aggregator, clickhouse_metric, configuration};
pub use clickhouse::{Age, ClickHouse};
pub use cluster::{Cluster, Parts};
pub use go::{Certificates, Collector, Exporter, Record};
pub use nfcapd::Nfcapd;
pub use process::{PATIENCE, beside};
pub use relay::{Cut, Relay};
pub use tshark::Tshark;
