//! Runs the body of the fuzz target that needs this crate over its corpus: it stays true without a fuzzer at hand.

use std::path::Path;

#[expect(unreachable_pub, reason = "part of another workspace's target")]
#[path = "../../fuzz/src/clickhouse.rs"]
mod body;

#[test]
fn clickhouse() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/clickhouse");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        // All of it, every begin of it, and each byte of it otherwise.
        (0..=bytes.len()).for_each(|length| body::clickhouse(&bytes[..length]));
        for at in 0..bytes.len() {
            for other in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = other;
                body::clickhouse(&bytes);
            }
        }
        files += 1;
    }
    assert!(files > 0, "the corpus is empty");
}
