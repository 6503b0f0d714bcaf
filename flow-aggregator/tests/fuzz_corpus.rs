//! Runs the bodies of the fuzz targets that need this crate over their corpora: they stay true without a fuzzer at hand.

#[expect(unreachable_pub, reason = "part of another workspace's targets")]
#[path = "../../fuzz/src/aggregator.rs"]
mod bodies;

#[path = "../../fuzz/src/corpus.rs"]
mod corpus;

#[test]
fn clickhouse() {
    corpus::run_altered("clickhouse", bodies::clickhouse);
}

#[test]
fn aggregator_config() {
    corpus::run_altered("aggregator_config", bodies::aggregator_config);
}
