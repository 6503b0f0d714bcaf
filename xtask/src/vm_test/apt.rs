//! A private apt: sources, package lists and cache of its own in one folder, so that kernels of other releases of Debian never meet the
//! machine's packages. It takes the mirror and the ways through proxies from the machine's configuration.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose suites hold the kernels, by what their labels say.
const SUITES: [(&str, &str); 4] = [
    ("Debian-Security", "bullseye-security"),
    ("Debian-Security", "bookworm-security"),
    ("Debian-Security", "trixie-security"),
    ("Debian", "trixie-backports"),
];
/// Package debian-archive-keyring, which every Debian has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where a machine that is no Debian finds the folders `debian` and `debian-security`.
const MIRROR: &str = "DEBIAN_MIRROR";
/// Parts of the machine's configuration that are not for us: hooks (in containers that of `update` empties the archives under an
/// installation that runs beside it) and indexes of other things than packages.
const NOT_OURS: [&str; 3] = ["APT::Update", "DPkg", "Acquire::IndexTargets"];

/// The private apt.
pub(super) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Configures it in a folder; nothing is fetched.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let apt = Self { folder };
        fs::write(apt.folder.join("sources.list"), sources()?)?;
        fs::write(apt.configuration(), configuration(&apt.folder)?)?;
        Ok(apt)
    }

    /// Whether package lists were fetched before.
    pub(super) fn has_lists(&self) -> bool {
        let files = fs::read_dir(self.folder.join("lists")).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().contains("_Packages")).count() >= SUITES.len()
    }

    /// Fetches the package lists.
    pub(super) fn update(&self) -> Result<()> {
        println!("vm-test: fetching the lists of Debian's kernels");
        shell::run(self.command("apt-get").args(["update", "-qq"]))
    }

    /// Names of packages that begin so.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = shell::output(self.command("apt-cache").args(["pkgnames", prefix]));
        Ok(names.context("apt-cache cannot read the package lists")?.lines().map(str::to_owned).collect())
    }

    /// Fetches packages into a folder.
    pub(super) fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        println!("vm-test: fetching {}", packages.join(" "));
        shell::run(self.command("apt-get").args(["download", "-qq"]).args(packages).current_dir(into))
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("apt.conf")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = shell::command(program);
        command.env("APT_CONFIG", self.configuration());
        command
    }
}

/// The machine's configuration but for what is not ours, then our own folders.
fn configuration(folder: &Path) -> Result<String> {
    let machine = shell::output(Command::new("apt-config").arg("dump"))
        .context("no apt on this machine: the kernels come from Debian's packages")?;
    let ours = |line: &&str| !NOT_OURS.iter().any(|part| line.starts_with(part));
    let mut text: String = machine.lines().filter(ours).map(|line| format!("{line}\n")).collect();
    let folder = folder.display();
    for (key, value) in [
        ("Dir::Etc::main", "/dev/null".to_owned()),
        ("Dir::Etc::parts", "/dev/null".to_owned()),
        ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
        ("Dir::Etc::sourcelist", format!("{folder}/sources.list")),
        ("Dir::State::lists", format!("{folder}/lists")),
        ("Dir::Cache", format!("{folder}/cache")),
        ("Acquire::Languages", "none".to_owned()),
        // The folder may be one that only its owner can read.
        ("APT::Sandbox::User", "root".to_owned()),
    ] {
        text += &format!("{key} \"{value}\";\n");
    }
    Ok(text)
}

fn sources() -> Result<String> {
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing: install debian-archive-keyring");
    }
    let line =
        |(label, suite): (&str, &str)| Ok(format!("deb [signed-by={KEYRING}] {} {suite} main\n", archive(label)?));
    SUITES.into_iter().map(line).collect()
}

/// Where the machine itself gets the packages of Debian or of its security team.
fn archive(label: &str) -> Result<String> {
    if let Some(mirror) = std::env::var_os(MIRROR) {
        return Ok(format!("{}/{}", mirror.to_string_lossy().trim_end_matches('/'), label.to_lowercase()));
    }
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let targets = shell::output(&mut targets).unwrap_or_default();
    let prefix = format!("Debian {label} ");
    let uri = targets.lines().find_map(|line| line.strip_prefix(&prefix));
    uri.map(str::to_owned).with_context(|| {
        format!(
            "apt on this machine has no source labelled {label}: set {MIRROR} to the address of a mirror that has the folders debian and \
             debian-security"
        )
    })
}
