//! Runs the bodies of the fuzz targets that need this crate over their corpora: they stay true without a fuzzer at hand.

use std::path::Path;

#[expect(unreachable_pub, reason = "part of another workspace's targets")]
#[path = "../../fuzz/src/agent.rs"]
mod bodies;

/// Runs the body over each file of the target's folder, every begin of it, and each byte of it otherwise.
fn over_corpus(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        (0..=bytes.len()).for_each(|length| body(&bytes[..length]));
        for at in 0..bytes.len() {
            for other in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = other;
                body(&bytes);
            }
        }
        files += 1;
    }
    assert!(files > 0, "the corpus is empty");
}

#[test]
fn btf() {
    over_corpus("btf", bodies::btf);
}

#[test]
fn netlink() {
    over_corpus("netlink", bodies::netlink);
}

#[test]
fn conntrack() {
    over_corpus("conntrack", bodies::conntrack);
}

#[test]
fn agent_config() {
    over_corpus("agent_config", bodies::agent_config);
}
