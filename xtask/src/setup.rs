//! `cargo xtask setup`: what building, the lab and the tests need of the machine. Installs only what is missing, so it can run before every
//! command that needs it. What the distribution does not package is not touched, but for bpf-linker, which is built into `target/tools`, and
//! a modern ClickHouse, which is linked from there.

use crate::shell::{self, Rights};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

mod clickhouse;

/// bpf-linker reads the bitcode that rustc writes, so its LLVM must be at least rustc's: newest first.
const LLVM_VERSIONS: [u32; 2] = [23, 22];
const BPF_LINKER: &str = "0.13.0";
/// What go-ipfix asks for: major and minor version.
const GO: (u32, u32) = (1, 23);

/// ZooKeeper, by which ClickHouse servers of a cluster agree: a library that brings no program of its own.
const ZOOKEEPER: &str = "/usr/share/java/zookeeper.jar";

/// What `setup` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing; exit status 1 if something is.
    #[arg(long)]
    check: bool,
}

/// What a command needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The kernel programs' toolchain.
    Build,
    /// Namespaces, Services and traffic.
    Lab,
    /// Foreign collectors and captures.
    Interop,
    /// Servers of ClickHouse, old and modern.
    ClickHouse,
    /// Virtual machines with other kernels, and what is copied into them.
    Vm,
}

impl Need {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Build, Self::Lab, Self::Interop, Self::ClickHouse, Self::Vm];
}

impl Need {
    /// Debian's and Ubuntu's names: the program that shows that the package is there, and the package.
    fn packages(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Need::Build => &[("cc", "gcc"), ("make", "make"), ("git", "git")],
            Need::Lab => {
                &[("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack"), ("ping", "iputils-ping")]
            }
            Need::Interop => &[("tshark", "tshark"), ("nfcapd", "nfdump")],
            Need::ClickHouse => &[
                ("clickhouse-server", "clickhouse-server"),
                ("npm", "npm"),
                ("tar", "tar"),
                ("java", "default-jre-headless"),
            ],
            Need::Vm => &[
                ("qemu-system-x86_64", "qemu-system-x86"),
                ("busybox", "busybox-static"),
                ("depmod", "kmod"),
                ("xz", "xz-utils"),
            ],
        }
    }
}

/// Installs everything that any of the commands needs.
pub(crate) fn run(options: &Options) -> Result<()> {
    let needs = Need::ALL;
    if !options.check {
        ensure(&needs)?;
        println!("setup: everything is there");
        return Ok(());
    }
    let missing = missing(&needs)?;
    if missing.is_empty() {
        println!("setup: everything is there");
        return Ok(());
    }
    bail!("missing: {}; run `cargo xtask setup`", missing.names().join(", "))
}

/// Installs what `needs` lack, with a line for each thing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs)?;
    if !missing.packages.is_empty() {
        install_packages(&missing.packages)?;
    }
    if missing.rust_src {
        println!("setup: installing the component rust-src of the pinned toolchain");
        shell::run(shell::command("rustup").args(["component", "add", "rust-src"])).context(
            "rust-src is needed to build `core` for the kernel side; with a toolchain that is not rustup's install its source package",
        )?;
    }
    if missing.bpf_linker {
        build_bpf_linker()?;
    }
    if missing.clickhouse {
        clickhouse::fetch()?;
    }
    Ok(())
}

/// The folder of tools that setup built; commands put it first on their PATH.
pub(crate) fn tools() -> PathBuf {
    shell::root().join("target/tools/bin")
}

struct Missing {
    packages: Vec<String>,
    rust_src: bool,
    bpf_linker: bool,
    clickhouse: bool,
}

impl Missing {
    fn is_empty(&self) -> bool {
        self.names().is_empty()
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.packages.iter().map(String::as_str).collect();
        names.extend(self.rust_src.then_some("rust-src"));
        names.extend(self.bpf_linker.then_some("bpf-linker"));
        names.extend(self.clickhouse.then_some("a modern ClickHouse (npm)"));
        names
    }
}

fn missing(needs: &[Need]) -> Result<Missing> {
    let programs = needs.iter().flat_map(|need| need.packages());
    let mut packages: Vec<String> = programs
        .filter(|(program, _)| shell::which(program).is_none())
        .map(|(_, package)| (*package).to_owned())
        .collect();
    if needs.contains(&Need::Interop) {
        packages.extend(missing_go()?);
    }
    if needs.contains(&Need::ClickHouse) && !Path::new(ZOOKEEPER).exists() {
        packages.push("libzookeeper-java".to_owned());
    }
    let build = needs.contains(&Need::Build);
    let bpf_linker = build && !tools().join("bpf-linker").is_file();
    if bpf_linker {
        packages.extend(missing_llvm()?);
    }
    let clickhouse = needs.contains(&Need::ClickHouse) && !clickhouse::is_there();
    Ok(Missing { packages, rust_src: build && !rust_src()?, bpf_linker, clickhouse })
}

/// The libraries bpf-linker is built against. An LLVM of the user's own (`LLVM_PREFIX`) needs none of them.
fn missing_llvm() -> Result<Vec<String>> {
    if std::env::var_os("LLVM_PREFIX").is_some() {
        return Ok(Vec::new());
    }
    let version = match llvm_installed() {
        Some(version) => version,
        None => llvm_offered()?,
    };
    let names =
        [format!("llvm-{version}-dev"), format!("libpolly-{version}-dev"), "libzstd-dev".into(), "zlib1g-dev".into()];
    Ok(names.into_iter().filter(|name| !installed(name)).collect())
}

/// The package of Go, where there is none that is new enough.
fn missing_go() -> Result<Option<String>> {
    const PACKAGE: &str = "golang-go";
    let installed = shell::output(Command::new("go").args(["env", "GOVERSION"]));
    let is_enough = |text: &str| go_version(text).is_some_and(|version| version >= GO);
    if installed.as_deref().is_some_and(is_enough) {
        return Ok(None);
    }
    let offered = || candidate(PACKAGE).filter(|version| is_enough(version));
    if offered().is_none() && candidate(PACKAGE).is_none() && shell::which("apt-get").is_some() {
        refresh_lists()?;
    }
    offered().with_context(|| {
        format!(
            "the interop tests need Go {}.{} or newer; here is {}, and this system's package lists offer {}: install Go from a newer \
             suite or from go.dev and put its `bin` first on the PATH",
            GO.0,
            GO.1,
            installed.as_deref().unwrap_or("none"),
            candidate(PACKAGE).as_deref().unwrap_or("none"),
        )
    })?;
    Ok(Some(PACKAGE.to_owned()))
}

/// Major and minor version of `go1.23.4`, or of a package's version such as `2:1.23~1`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let text = text.rsplit_once(':').map_or(text, |(_, version)| version);
    let mut numbers = text.trim_start_matches("go").split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn llvm_installed() -> Option<u32> {
    LLVM_VERSIONS.into_iter().find(|version| llvm_folder(*version).join("bin/llvm-config").exists())
}

fn llvm_folder(version: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{version}"))
}

/// The newest LLVM that the machine's package lists offer; the lists are fetched once if they know of none.
fn llvm_offered() -> Result<u32> {
    let offered = || LLVM_VERSIONS.into_iter().find(|version| candidate(&format!("llvm-{version}-dev")).is_some());
    if let Some(version) = offered() {
        return Ok(version);
    }
    if shell::which("apt-get").is_some() && shell::rights() != Rights::None {
        refresh_lists()?;
    }
    offered().with_context(|| {
        format!(
            "bpf-linker needs LLVM {} or newer (rustc's own), and this system's package lists offer none: add a package source that has \
             llvm-{}-dev, or set LLVM_PREFIX to the folder of such an LLVM",
            LLVM_VERSIONS[1], LLVM_VERSIONS[1]
        )
    })
}

fn installed(package: &str) -> bool {
    shell::output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package])).as_deref()
        == Some("installed")
}

/// The version of a package that would be installed.
fn candidate(package: &str) -> Option<String> {
    let policy = shell::output(Command::new("apt-cache").args(["policy", package]))?;
    let version = policy.lines().find_map(|line| line.trim_start().strip_prefix("Candidate:"))?;
    Some(version.trim().to_owned()).filter(|version| version != "(none)")
}

fn refresh_lists() -> Result<()> {
    println!("setup: fetching the package lists");
    shell::run(shell::privileged("apt-get")?.args(["update", "-qq"]))
}

fn install_packages(packages: &[String]) -> Result<()> {
    let list = packages.join(" ");
    if shell::which("apt-get").is_none() {
        bail!("missing: {list}; this is no Debian or Ubuntu, so install what they are called here");
    }
    if shell::rights() == Rights::None {
        bail!("missing: {list}; as root run\n    apt-get update && apt-get install --no-install-recommends -y {list}");
    }
    println!("setup: installing {list}");
    refresh_lists()?;
    // tshark asks whether users may capture: no.
    let mut apt = shell::privileged("env")?;
    apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y", "--no-install-recommends"]);
    shell::run(apt.args(packages))
}

fn rust_src() -> Result<bool> {
    let sysroot = shell::output(shell::command("rustc").args(["--print", "sysroot"]))
        .context("no rustc on the PATH: install Rust by rustup, which reads rust-toolchain.toml")?;
    Ok(Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

fn build_bpf_linker() -> Result<()> {
    let (version, prefix) = match std::env::var_os("LLVM_PREFIX") {
        Some(prefix) => (prefix_version(Path::new(&prefix))?, PathBuf::from(prefix)),
        None => {
            let version = llvm_installed().context("the LLVM packages are there, but no llvm-config of theirs is")?;
            (version, llvm_folder(version))
        }
    };
    println!("setup: building bpf-linker {BPF_LINKER} against LLVM {version} (about a minute)");
    let mut install = shell::cargo();
    install.args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER, "--no-default-features"]);
    install.args(["--features", &format!("llvm-{version}"), "--root", "target/tools"]);
    shell::run(install.env("LLVM_PREFIX", prefix))
}

fn prefix_version(prefix: &Path) -> Result<u32> {
    let config = prefix.join("bin/llvm-config");
    let text = shell::output(Command::new(&config).arg("--version"))
        .with_context(|| format!("LLVM_PREFIX: {} does not run", config.display()))?;
    let version = text.split('.').next().and_then(|major| major.parse().ok());
    version.filter(|version| LLVM_VERSIONS.contains(version)).with_context(|| {
        format!(
            "LLVM_PREFIX: {} is LLVM {text}; bpf-linker {BPF_LINKER} wants {} or {}",
            prefix.display(),
            LLVM_VERSIONS[1],
            LLVM_VERSIONS[0]
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_read_wherever_they_stand() {
        for (text, version) in
            [("go1.26.8", (1, 26)), ("2:1.19~1", (1, 19)), ("2:1.24~2ubuntu1", (1, 24)), ("go1.23", (1, 23))]
        {
            assert_eq!(go_version(text), Some(version), "{text}");
        }
        assert_eq!(go_version("devel"), None);
    }
}
