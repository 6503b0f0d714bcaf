//! A folder of ordinary Kubernetes manifests as a source of objects.
//!
//! Takes files as `kubectl` reads and writes them (`*.yaml`, `*.yml`, `*.json`; not those in folders below, nor
//! hidden ones); gives the changes since the last look. A file that is wrong is refused as a whole and what it gave
//! before stays. Two files cannot define the same object. Never touches the index.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest, ManifestError, Syntax};
use super::object::{Change, Object, ObjectRef};
use super::reduce::Strings;

mod watch;
pub use watch::run;

#[cfg(test)]
mod tests;

/// A file may be this long: 20,000 Pods with everything that `kubectl get -o yaml` writes.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Of more files than this the last ones by name are left out.
const MAX_FILES: usize = 10_000;

/// The folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    strings: Strings,
    files: BTreeMap<OsString, File>,
    /// What was wrong with the folder itself at the last look.
    error: Option<FolderError>,
}

/// What one look at the folder gave.
#[derive(Debug, Default)]
pub struct Look {
    /// What changed since the last one, deletions first.
    pub changes: Vec<Change>,
    /// All that is refused. What such files gave before stays.
    pub refused: Vec<FolderError>,
    /// What of that was not refused at the last look.
    pub errors: Vec<FolderError>,
    /// Objects of kinds that are not kept, in all files.
    pub ignored: usize,
}

/// Why a file or the folder is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        reason: io::ErrorKind,
    },
    /// There are too many files.
    #[error("{}: more than {MAX_FILES} manifests; put several objects into one file", path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// A file is too long.
    #[error("{}: longer than {} MiB; split it", path.display(), MAX_FILE_BYTES >> 20)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// What stands in it is wrong.
    #[error("{}:{error}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Where and what.
        error: ManifestError,
    },
    /// It defines an object that is defined already.
    #[error("{}:{line}: {object} is defined in {}:{other_line} already", path.display(), other.display())]
    Twice {
        /// The file that is refused.
        path: PathBuf,
        /// The line of the second definition.
        line: u64,
        /// The object.
        object: ObjectRef,
        /// The file that defines it first.
        other: PathBuf,
        /// The line of the first definition.
        other_line: u64,
    },
}

/// Objects by name, each with the line that defines it.
type Objects = BTreeMap<ObjectRef, (Object, u64)>;

/// What is known of one file.
#[derive(Debug, Default)]
struct File {
    /// Of the content at the last look.
    hash: Option<u64>,
    /// Of the last content that was right.
    objects: Objects,
    ignored: usize,
    error: Option<FolderError>,
}

/// A file as it is found at a look.
struct Found {
    file: File,
    /// The objects of a new content that is right by itself.
    proposed: Option<Objects>,
}

impl Folder {
    /// A folder that nobody has looked at yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), strings: Strings::default(), files: BTreeMap::new(), error: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is new or other than at the last look. Blocks on the file system.
    pub fn look(&mut self) -> Look {
        let before = self.refused();
        self.error = None;
        let mut look = Look::default();
        match manifests(&self.path) {
            Ok(mut names) => {
                if names.len() > MAX_FILES {
                    names = names.into_iter().take(MAX_FILES).collect();
                    self.error = Some(FolderError::TooMany { path: self.path.clone() });
                }
                look.changes = self.read(names);
            }
            Err(error) => self.error = Some(FolderError::Read { path: self.path.clone(), reason: error.kind() }),
        }
        look.refused = self.refused();
        look.errors = look.refused.iter().filter(|error| !before.contains(error)).cloned().collect();
        look.ignored = self.files.values().map(|file| file.ignored).sum();
        look
    }

    fn refused(&self) -> Vec<FolderError> {
        self.error.iter().chain(self.files.values().filter_map(|file| file.error.as_ref())).cloned().collect()
    }

    fn read(&mut self, names: BTreeSet<OsString>) -> Vec<Change> {
        let mut known = std::mem::take(&mut self.files);
        let old: BTreeMap<ObjectRef, Object> = objects(known.values().map(|file| &file.objects));
        let mut found = BTreeMap::new();
        for name in names {
            let file = known.remove(&name).unwrap_or_default();
            if let Some(file) = self.read_file(&name, file) {
                found.insert(name, file);
            }
        }
        refuse_duplicates(&self.path, &mut found);
        self.files = found.into_iter().map(|(name, found)| (name, found.settle())).collect();
        changes(&old, &objects(self.files.values().map(|file| &file.objects)))
    }

    /// One file as it is now; none if it is gone.
    fn read_file(&mut self, name: &OsString, mut file: File) -> Option<Found> {
        let path = self.path.join(name);
        let content = match content(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                file.error = Some(match error.kind() {
                    io::ErrorKind::FileTooLarge => FolderError::TooLong { path },
                    reason => FolderError::Read { path, reason },
                });
                file.hash = None;
                return Some(Found { file, proposed: None });
            }
        };
        let hash = Some(hash(&content));
        // What another file defined already may be free by now.
        let tried = file.hash == hash && !matches!(file.error, Some(FolderError::Twice { .. }));
        if tried {
            return Some(Found { file, proposed: None });
        }
        file.hash = hash;
        match self.parse(&path, &content) {
            Ok((proposed, ignored)) => {
                (file.error, file.ignored) = (None, ignored);
                Some(Found { file, proposed: Some(proposed) })
            }
            Err(error) => {
                file.error = Some(error);
                Some(Found { file, proposed: None })
            }
        }
    }

    fn parse(&mut self, path: &Path, content: &[u8]) -> Result<(Objects, usize), FolderError> {
        let wrong = |error| FolderError::Manifest { path: path.to_owned(), error };
        let text = std::str::from_utf8(content).map_err(|error| wrong(ManifestError::not_text(content, error)))?;
        let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let syntax = if json { Syntax::Json } else { Syntax::Yaml };
        let Manifest { objects, ignored } = manifest::parse(text, syntax, &mut self.strings).map_err(wrong)?;
        let mut by_name = Objects::new();
        for (object, line) in objects {
            let reference = object.reference();
            if let Some((_, other_line)) = by_name.get(&reference) {
                let (path, other) = (path.to_owned(), path.to_owned());
                return Err(FolderError::Twice { path, line, object: reference, other, other_line: *other_line });
            }
            by_name.insert(reference, (object, line));
        }
        Ok((by_name, ignored))
    }
}

impl Found {
    /// What the file defines unless its new content is refused.
    fn objects(&self) -> &Objects {
        self.proposed.as_ref().unwrap_or(&self.file.objects)
    }

    fn settle(mut self) -> File {
        if let Some(proposed) = self.proposed {
            self.file.objects = proposed;
        }
        self.file
    }
}

/// Refuses new contents until no two files define the same object. What was there before has no duplicates, so this
/// ends.
fn refuse_duplicates(folder: &Path, found: &mut BTreeMap<OsString, Found>) {
    loop {
        let mut definitions: BTreeMap<&ObjectRef, &OsString> = BTreeMap::new();
        let mut refused: BTreeMap<OsString, FolderError> = BTreeMap::new();
        for (name, file) in &*found {
            for object in file.objects().keys() {
                let Some(other) = definitions.insert(object, name) else { continue };
                // Of two new contents that with an older right to the object stays, else the first by name.
                let second = file.proposed.is_some()
                    && !(found[other].proposed.is_some() && file.file.objects.contains_key(object));
                let (loser, winner) = if second { (name, other) } else { (other, name) };
                let line = |name: &OsString| found[name].objects().get(object).map_or(0, |(_, line)| *line);
                let twice = FolderError::Twice {
                    path: folder.join(loser),
                    line: line(loser),
                    object: object.clone(),
                    other: folder.join(winner),
                    other_line: line(winner),
                };
                refused.entry(loser.clone()).or_insert(twice);
                definitions.insert(object, winner);
            }
        }
        if refused.is_empty() {
            return;
        }
        for (name, error) in refused {
            if let Some(found) = found.get_mut(&name) {
                found.proposed = None;
                found.file.error = Some(error);
            }
        }
    }
}

fn objects<'a>(files: impl Iterator<Item = &'a Objects>) -> BTreeMap<ObjectRef, Object> {
    files.flatten().map(|(reference, (object, _))| (reference.clone(), object.clone())).collect()
}

fn changes(old: &BTreeMap<ObjectRef, Object>, new: &BTreeMap<ObjectRef, Object>) -> Vec<Change> {
    let gone = old.keys().filter(|reference| !new.contains_key(*reference)).cloned().map(Change::Delete);
    let other = new.iter().filter(|(reference, object)| old.get(*reference) != Some(*object));
    gone.chain(other.map(|(_, object)| Change::Apply(object.clone()))).collect()
}

/// The names of the manifests in a folder. Hidden files are swap files of editors and the folders behind mounted
/// ConfigMaps.
fn manifests(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let extension = Path::new(&name).extension().map(OsStr::to_ascii_lowercase);
        let manifest =
            extension.is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
        if manifest && !name.as_encoded_bytes().starts_with(b".") && !folder.join(&name).is_dir() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    // To open a named pipe would be to wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
