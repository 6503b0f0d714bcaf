//! Takes the kernel programs in where `cargo xtask build-ebpf` left them.
//!
//! Where it did not run yet, an empty file takes their place, so that the workspace still builds; the agent then says at its
//! start what is missing.

use std::path::Path;
use std::{env, fs, io};

/// The programs, and what the benchmark compares them with.
const OBJECTS: [&str; 4] = ["flow-ebpf.o", "conntrack.o", "drop.o", "textbook.o"];

fn main() -> io::Result<()> {
    let variable = |name| env::var(name).map_err(io::Error::other);
    let (from, to) = (Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../target/ebpf"), variable("OUT_DIR")?);
    for name in OBJECTS {
        let object = from.join(name);
        if !object.exists() {
            // It must exist for cargo to notice when it changes.
            fs::create_dir_all(&from)?;
            fs::write(&object, [])?;
        }
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, Path::new(&to).join(name))?;
    }
    Ok(())
}
