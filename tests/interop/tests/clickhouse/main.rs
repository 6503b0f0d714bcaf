//! The aggregator before ClickHouse servers that are there: agents' records in over a socket, rows out, looked at by
//! questions to the server.

mod aggregator;
mod cluster;
mod failures;
mod tables;
mod values;
