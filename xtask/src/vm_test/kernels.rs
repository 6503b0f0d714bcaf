//! Which kernels there are: Debian's for clouds, fetched once and kept in the user's cache, outside the checkout.

use super::apt::Apt;
use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

const FLAVOUR: &str = "-cloud-amd64";

/// A kernel that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest of a series such as 6.12; where there is none, of the next series that there is.
    Series([u32; 2]),
    /// The newest of all.
    Newest,
}

/// What is tested where nothing is asked for: long-term series, and the newest there is.
pub(super) const MATRIX: [Wanted; 5] =
    [Wanted::Series([5, 10]), Wanted::Series([6, 1]), Wanted::Series([6, 12]), Wanted::Series([6, 18]), Wanted::Newest];

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let parsed = text.split_once('.').and_then(|(major, minor)| Some([major.parse().ok()?, minor.parse().ok()?]));
        parsed
            .map(Self::Series)
            .with_context(|| format!("a kernel is a series such as 6.12, or `newest`, not {text:?}"))
    }
}

/// A kernel's full name, ordered by its numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    numbers: Vec<u32>,
    name: String,
}

impl Release {
    /// From what follows `linux-image-` in a package's name; none for those that stand for others.
    fn parse(name: &str) -> Option<Self> {
        let numbers: Vec<u32> = name
            .strip_suffix(FLAVOUR)?
            .split(|character: char| !character.is_ascii_digit())
            .filter(|digits| !digits.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let begins = name.starts_with(|first: char| first.is_ascii_digit());
        (begins && numbers.len() > 2).then(|| Self { numbers, name: name.to_owned() })
    }

    fn series(&self) -> [u32; 2] {
        [self.numbers[0], self.numbers[1]]
    }
}

/// A kernel on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    series: [u32; 2],
    /// As `uname -r` says.
    pub(super) release: String,
    /// `vmlinuz`, and `lib/modules` with the lists that modprobe reads.
    pub(super) folder: PathBuf,
}

impl Kernel {
    /// `6.12`.
    pub(super) fn series(&self) -> String {
        let [major, minor] = self.series;
        format!("{major}.{minor}")
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.release.strip_suffix(FLAVOUR).unwrap_or(&self.release))
    }
}

/// The wanted kernels, each once; fetches what is not in the cache, and newer ones if told to.
pub(super) fn find(wanted: &[Wanted], update: bool) -> Result<Vec<Kernel>> {
    let cache = Cache::open()?;
    if update || !cache.apt.has_lists() {
        cache.apt.update()?;
    }
    match cache.find(wanted) {
        // Old lists name packages that are gone since.
        Err(error) if !update => {
            println!("vm-test: {error:#}; trying again with new lists");
            cache.apt.update()?;
            cache.find(wanted)
        }
        result => result,
    }
}

struct Cache {
    folder: PathBuf,
    apt: Apt,
}

impl Cache {
    fn open() -> Result<Self> {
        let folder = shell::cache()?.join("kernels");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let apt = Apt::open(folder.join("apt"))?;
        Ok(Self { folder, apt })
    }

    fn find(&self, wanted: &[Wanted]) -> Result<Vec<Kernel>> {
        let packages = self.apt.names("linux-")?;
        let offered = packages.iter().filter_map(|package| Release::parse(package.strip_prefix("linux-image-")?));
        let kept = fs::read_dir(&self.folder)?.flatten();
        let kept = kept.filter_map(|entry| Release::parse(&entry.file_name().to_string_lossy()));
        let mut releases: Vec<Release> = offered.chain(kept).collect();
        releases.sort();
        let mut kernels = Vec::new();
        for wanted in wanted {
            let release = choose(wanted, &releases)?;
            let kernel = Kernel {
                series: release.series(),
                release: release.name.clone(),
                folder: self.folder.join(&release.name),
            };
            if !kernel.folder.exists() {
                self.fetch(&kernel, &packages)?;
            }
            if !kernels.contains(&kernel) {
                kernels.push(kernel);
            }
        }
        Ok(kernels)
    }

    /// Fetches, unpacks and puts into place; beside another run that does the same, whoever is first wins.
    fn fetch(&self, kernel: &Kernel, packages: &[String]) -> Result<()> {
        let release = &kernel.release;
        let own = |kind: &str| {
            let name = format!("linux-{kind}-{release}");
            packages.contains(&name).then_some(name)
        };
        // From 6.19 on the image's package is empty; later modules and the lists of them have packages of their own.
        let parts: Vec<String> = match own("binary") {
            Some(binary) => [Some(binary), own("modules"), own("base")].into_iter().flatten().collect(),
            None => vec![format!("linux-image-{release}")],
        };
        let staging = self.folder.join(format!("fetching-{}", std::process::id()));
        let (archives, unpacked, ready) = (staging.join("debs"), staging.join("unpacked"), staging.join("ready"));
        fs::create_dir_all(&archives)?;
        self.apt.download(&parts, &archives)?;
        for archive in fs::read_dir(&archives)? {
            shell::run(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(&unpacked))?;
        }
        arrange(release, &unpacked, &ready)?;
        if fs::rename(&ready, &kernel.folder).is_err() {
            ensure!(kernel.folder.exists(), "cannot make {}", kernel.folder.display());
        }
        fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))
    }
}

fn choose<'a>(wanted: &Wanted, sorted: &'a [Release]) -> Result<&'a Release> {
    let newest = sorted.last().context("the package lists name no kernels")?;
    let Wanted::Series(series) = wanted else { return Ok(newest) };
    let series = sorted.iter().map(Release::series).find(|there| there >= series).unwrap_or(newest.series());
    sorted.iter().rfind(|release| release.series() == series).context("no kernel of the series")
}

/// Puts what the packages of a release have in places that differ by release into those of [`Kernel::folder`].
fn arrange(release: &str, unpacked: &Path, ready: &Path) -> Result<()> {
    let there = |places: &[String]| {
        let found = places.iter().map(|place| unpacked.join(place)).find(|place| place.exists());
        found.with_context(|| format!("the packages of {release} have none of {}", places.join(", ")))
    };
    let modules = there(&[format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")])?;
    let image = there(&[format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")])?;
    fs::create_dir_all(ready.join("lib/modules"))?;
    fs::rename(image, ready.join("vmlinuz"))?;
    fs::rename(modules, ready.join("lib/modules").join(release))?;
    let depmod = shell::which("depmod").context("depmod is not installed")?;
    let status = Command::new(depmod).arg("-b").arg(ready).arg(release).status()?;
    if !status.success() {
        bail!("depmod of {release} ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &str) -> String {
        let names = [
            "6.1.0-0.deb11.52-cloud-amd64",
            "6.1.0-53-cloud-amd64",
            "6.1.0-9-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.115+deb13.1-cloud-amd64",
            "6.12.117+deb13-cloud-amd64",
            "6.19.8+deb13-cloud-amd64",
            "6.19.14+deb13-cloud-amd64",
            "6.1-cloud-amd64",
            "unsigned-7.9.1+deb13-cloud-amd64",
        ];
        let mut releases: Vec<Release> = names.into_iter().filter_map(Release::parse).collect();
        releases.sort();
        choose(&wanted.parse().expect("a kernel"), &releases).expect("a release").name.clone()
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_or_of_the_next() {
        assert_eq!(chosen("6.1"), "6.1.0-53-cloud-amd64");
        assert_eq!(chosen("6.12"), "6.12.117+deb13-cloud-amd64");
        assert_eq!(chosen("6.18"), "6.19.14+deb13-cloud-amd64");
        assert_eq!(chosen("newest"), "6.19.14+deb13-cloud-amd64");
        assert_eq!(chosen("9.0"), "6.19.14+deb13-cloud-amd64", "the nearest there is");
        assert!("6".parse::<Wanted>().is_err());
    }
}
