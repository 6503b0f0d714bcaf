//! Runs every fuzz target's body over its corpus: the targets stay true without a fuzzer at hand.

use std::path::Path;

#[expect(unreachable_pub, reason = "a library of another workspace")]
#[path = "../../fuzz/src/lib.rs"]
mod bodies;

/// Runs the body over each file of the target's folder.
fn over_corpus(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = 0;
    for entry in entries {
        let path = entry.expect("the folder can be read").path();
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        body(&bytes);
        // And every begin of it.
        (0..bytes.len()).for_each(|length| body(&bytes[..length]));
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}

#[test]
fn collector() {
    over_corpus("collector", bodies::collector);
}

#[test]
fn foreign() {
    over_corpus("foreign", bodies::foreign);
}

#[test]
fn filter() {
    over_corpus("filter", bodies::filter);
}

#[test]
fn manifest() {
    over_corpus("manifest", bodies::manifest);
}
