//! Runs every fuzz target's body over its corpus: the targets stay true without a fuzzer at hand.

#[expect(unreachable_pub, reason = "a library of another workspace")]
#[path = "../../fuzz/src/lib.rs"]
mod bodies;

#[path = "../../fuzz/src/corpus.rs"]
mod corpus;

#[test]
fn collector() {
    corpus::run_altered("collector", bodies::collector);
}

#[test]
fn foreign() {
    corpus::run_altered("foreign", bodies::foreign);
}

#[test]
fn filter() {
    corpus::run("filter", bodies::filter);
}

#[test]
fn manifest() {
    corpus::run("manifest", bodies::manifest);
}
