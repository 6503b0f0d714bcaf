//! A modern ClickHouse for tests, demo and benchmark: the library libchdb.so, as npm packages it, kept in the user's cache and linked to
//! where the tests look. Debian packages only a ClickHouse of 2018.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Releases between this one and 26.5 lack the statement that opens the server's ports.
const VERSION: &str = "26.7.3-stable.1";
const LIBRARY: &str = "libchdb.so";

/// Whether it is where the tests look.
pub(super) fn is_there() -> bool {
    let library = Path::new(VERSION).join(LIBRARY);
    fs::read_link(link()).is_ok_and(|to| to.exists() && to.ends_with(library))
}

/// Fetches it, if the cache has none, and links it.
pub(super) fn fetch() -> Result<()> {
    let folder = cache()?.join(VERSION);
    let library = folder.join(LIBRARY);
    if !library.exists() {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        download(&folder).context("the tests with a modern ClickHouse need the package of npm that has its library")?;
    }
    let link = link();
    fs::create_dir_all(link.parent().unwrap_or(Path::new(".")))?;
    // One of another version, or of a cache that is gone.
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&library, &link).with_context(|| format!("cannot link {}", link.display()))
}

fn download(folder: &Path) -> Result<()> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "lib-linux-x64-gnu",
        "aarch64" => "lib-linux-arm64-gnu",
        other => bail!("there is none for {other}"),
    };
    println!("setup: fetching ClickHouse {VERSION} (180 MB)");
    // A name of its own, so that a fetch that was broken off is not taken for a whole one.
    let part = folder.join("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part)?;
    let mut npm = shell::command("npm");
    npm.args(["pack", "--silent", &format!("@chdb/{name}@{VERSION}")]).current_dir(&part);
    let packed =
        shell::output(&mut npm).with_context(|| format!("{} failed: is the registry reachable?", shell::line(&npm)))?;
    let mut tar = shell::command("tar");
    let file = packed.lines().last().unwrap_or_default();
    shell::run(tar.args(["-xzf", file, "--strip-components=1", &format!("package/{LIBRARY}")]).current_dir(&part))?;
    fs::rename(part.join(LIBRARY), folder.join(LIBRARY))?;
    Ok(fs::remove_dir_all(part)?)
}

fn link() -> PathBuf {
    shell::root().join("target/tools/lib").join(LIBRARY)
}

fn cache() -> Result<PathBuf> {
    Ok(shell::cache()?.join("clickhouse"))
}
