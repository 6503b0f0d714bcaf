//! Runs the bodies of the fuzz targets that need this crate over their corpora: they stay true without a fuzzer at hand.

#[expect(unreachable_pub, reason = "part of another workspace's targets")]
#[path = "../../fuzz/src/agent.rs"]
mod bodies;

#[path = "../../fuzz/src/corpus.rs"]
mod corpus;

#[test]
fn btf() {
    corpus::run_altered("btf", bodies::btf);
}

#[test]
fn netlink() {
    corpus::run_altered("netlink", bodies::netlink);
}

#[test]
fn conntrack() {
    corpus::run_altered("conntrack", bodies::conntrack);
}

#[test]
fn agent_config() {
    corpus::run_altered("agent_config", bodies::agent_config);
}
