//! `cargo xtask build-ebpf` and `cargo xtask build`: the kernel programs, then all of the workspace with them inside.
//!
//! The programs build with the pinned stable toolchain: RUSTC_BOOTSTRAP opens `-Z build-std=core`, for a target that has no
//! prebuilt `core`. Cargo decides what is to be done; nothing is copied if nothing changed.

use crate::setup::{self, Need};
use crate::shell;
use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSymbol as _};
use std::fs;
use std::path::Path;

const TARGET: &str = "bpfel-unknown-none";
/// The binaries of flow-ebpf.
const OBJECTS: [&str; 4] = ["flow-ebpf", "conntrack", "drop", "textbook"];

/// What `build-ebpf` takes.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Builds the kernel programs into `target/ebpf/*.o`, from where the agent's build takes them in.
pub(crate) fn run(_options: &Options) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    let path = linker_path()?;
    let folder = shell::root().join("target/ebpf");
    let mut cargo = shell::cargo();
    cargo
        .args(["build", "--quiet", "--package", "flow-ebpf", "--bins", "--profile", "bpf"])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&folder)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path)
        // BTF names maps and types, and lines in the verifier's words.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
        // Set by the cargo that runs us, for its own build.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC");
    shell::run(&mut cargo)?;
    for name in OBJECTS {
        let built = fs::read(folder.join(TARGET).join("bpf").join(name))?;
        check(&built).with_context(|| format!("the kernel program {name}"))?;
        write_if_changed(&folder.join(name).with_extension("o"), &built)?;
    }
    Ok(())
}

/// Builds everything in release mode.
pub(crate) fn build(options: &Options) -> Result<()> {
    run(options)?;
    shell::run(shell::cargo().args(["build", "--release", "--workspace"]))
}

/// PATH with the tools that setup built in front.
fn linker_path() -> Result<std::ffi::OsString> {
    let old = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(std::iter::once(setup::tools()).chain(std::env::split_paths(&old)))?)
}

/// A panic links without complaint and is refused only when it is loaded, so its symbols must not be there.
fn check(object: &[u8]) -> Result<()> {
    let file = object::File::parse(object).context("is not an ELF file")?;
    let panics: Vec<&str> =
        file.symbols().filter_map(|symbol| symbol.name().ok()).filter(|name| name.contains("panic")).collect();
    if !panics.is_empty() {
        bail!("can panic, which no kernel loads: {}", panics.join(", "));
    }
    Ok(())
}

/// Leaves the file's time alone if there is nothing new, so that the agent is not built anew.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
