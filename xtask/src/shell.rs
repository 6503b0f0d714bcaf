//! Running other programs: from the workspace's root, with the command named in every error, and as root only where that is asked for.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The workspace's root, wherever cargo was called.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// A command that runs in the workspace's root.
pub(crate) fn command<S: AsRef<OsStr>>(program: S) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs it with our own output; any other end than success is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// What it printed, trimmed; `None` if it could not start or did not succeed.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The file that `program` names on the PATH.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    folders().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Where programs are looked for: Debian keeps nft and ip in sbin, which is not on every user's PATH.
fn folders() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own: Vec<PathBuf> = std::env::split_paths(&path).collect();
    own.into_iter().chain(["/usr/sbin".into(), "/sbin".into()])
}

/// The user's cache, outside the checkout, for what is large and rarely changes.
pub(crate) fn cache() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    Ok(base.context("neither HOME nor XDG_CACHE_HOME is set")?.join("flow-observer"))
}

/// How a command gets root's rights here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// We are root.
    Root,
    /// Through sudo, which may ask for a password.
    Sudo,
    /// Not at all.
    None,
}

/// Which of them holds: told by our effective user id and by whether there is a sudo.
pub(crate) fn rights() -> Rights {
    match output(Command::new("id").arg("-u")).as_deref() {
        Some("0") => Rights::Root,
        _ if which("sudo").is_some() => Rights::Sudo,
        _ => Rights::None,
    }
}

/// `program` with root's rights.
pub(crate) fn privileged<S: AsRef<OsStr>>(program: S) -> Result<Command> {
    match rights() {
        Rights::Root => Ok(command(program)),
        Rights::Sudo => {
            let mut sudo = command("sudo");
            sudo.env("PATH", std::env::join_paths(folders())?);
            sudo.arg("--preserve-env=PATH,CARGO_HOME,RUSTUP_HOME,RUST_LOG,CI").arg(program);
            Ok(sudo)
        }
        Rights::None => {
            bail!("{} needs root's rights: run this as root, or install sudo", program.as_ref().to_string_lossy())
        }
    }
}
