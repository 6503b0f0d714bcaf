//! Runs the body of a fuzz target over its corpus, for the crates' own tests: the targets stay true without a fuzzer at hand.

use std::path::Path;

/// Over each file of the target's folder and every begin of it.
pub(crate) fn run(target: &str, body: fn(&[u8])) {
    each(target, |bytes| (0..=bytes.len()).for_each(|length| body(&bytes[..length])));
}

/// And with each byte of it another one.
pub(crate) fn run_altered(target: &str, body: fn(&[u8])) {
    run(target, body);
    each(target, |bytes| {
        for at in 0..bytes.len() {
            for other in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.to_vec();
                bytes[at] = other;
                body(&bytes);
            }
        }
    });
}

fn each(target: &str, work: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = 0;
    for entry in entries {
        let path = entry.expect("the folder can be read").path();
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        work(&bytes);
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}
