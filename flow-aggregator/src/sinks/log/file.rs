//! A file that lines are appended to, put aside when it is long or old.
//!
//! Takes whole lines and the time; keeps the file, and beside it those that were put aside: `flows.log` becomes
//! `flows-2026-11-27T15-04-05.123.log`, later with `.gz`. Blocks on the file system. After an error the file ends with
//! a whole line, so that the caller can try the same lines again.

use flate2::{Compression, write::GzEncoder};
use flow_common::{record::Rfc3339, time::Timestamp};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// When a file is put aside, and what becomes of it then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of a file at most; a longer line stands alone.
    pub max_bytes: u64,
    /// A file is put aside this long after it was begun.
    pub after: Option<Duration>,
    /// How many that were put aside stay.
    pub backups: Option<usize>,
    /// How long each of them stays.
    pub max_age: Option<Duration>,
    /// Whether they are compressed.
    pub compress: bool,
}

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    begun: SystemTime,
    /// Pipes and terminals are not rotated.
    regular: bool,
}

impl LogFile {
    /// Opens or makes the file; `-` is the standard output.
    pub(super) fn open(path: &Path) -> io::Result<LogFile> {
        let file = if path == Path::new("-") {
            File::from(io::stdout().as_fd().try_clone_to_owned()?)
        } else {
            File::options().read(is_regular(path)).append(true).create(true).open(path)?
        };
        let metadata = file.metadata()?;
        let regular = metadata.is_file() && path != Path::new("-");
        let begun = metadata.created().or_else(|_| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        let mut opened = LogFile { path: path.to_owned(), file, length: metadata.len(), begun, regular };
        opened.end_line()?;
        Ok(opened)
    }

    /// Appends whole lines; after an error none of them is there.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                if self.regular {
                    // Taking away needs no room, so it works on a full disk.
                    self.file.set_len(self.length)?;
                }
                Err(error)
            }
        }
    }

    /// How many bytes have room before the file is put aside; `None` without a bound.
    pub(super) fn room(&self, rotation: &Rotation) -> Option<u64> {
        self.regular.then(|| rotation.max_bytes.saturating_sub(self.length))
    }

    /// When the file is to be put aside for its age. Empty ones never are.
    pub(super) fn due(&self, rotation: &Rotation) -> Option<SystemTime> {
        let after = rotation.after.filter(|_| self.regular && self.length > 0)?;
        Some(self.begun + after)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Puts the file aside under a name with the time, and begins another.
    pub(super) fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let mut at = Timestamp::from(now).millis();
        let name = |at| self.path.with_file_name(backup(&self.path, Timestamp::from_millis(at)));
        let mut aside = name(at);
        while aside.exists() || with_gz(&aside).exists() {
            at += 1;
            aside = name(at);
        }
        fs::rename(&self.path, &aside)?;
        *self = LogFile { begun: now, ..LogFile::open(&self.path)? };
        Ok(())
    }

    /// What a killed process left of a line is ended, so that the next line stands alone.
    fn end_line(&mut self) -> io::Result<()> {
        if !self.regular || self.length == 0 {
            return Ok(());
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        if last == *b"\n" { Ok(()) } else { self.append(b"\n") }
    }
}

/// Compresses the files that were put aside, and removes those that are too many or too old. May be run again after
/// it was broken off anywhere.
pub(super) fn tidy_up(path: &Path, rotation: &Rotation, now: SystemTime) -> io::Result<()> {
    let backups = backups(path)?;
    let old = rotation.max_age.map(|age| time(Timestamp::from(now - age)));
    let many = rotation.backups.map_or(0, |kept| backups.len().saturating_sub(kept));
    for (at, (put_aside, name)) in backups.into_iter().enumerate() {
        let file = path.with_file_name(&name);
        if at < many || old.as_ref().is_some_and(|old| put_aside < *old) {
            match fs::remove_file(file) {
                // Somebody else has tidied up.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else if rotation.compress && !name.ends_with(".gz") {
            compress(&file)?;
        }
    }
    Ok(())
}

/// The compressed file has its name only when it is whole.
fn compress(file: &Path) -> io::Result<()> {
    let whole = with_gz(file);
    let part = whole.with_extension("gz.part");
    let written = (|| {
        let mut encoder = GzEncoder::new(File::create(&part)?, Compression::default());
        io::copy(&mut File::open(file)?, &mut encoder)?;
        encoder.finish()?.sync_all()
    })();
    if let Err(error) = written {
        // The original stays; the part would only take the room that is missing.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fs::rename(part, whole)?;
    fs::remove_file(file)
}

/// The files of `path` that were put aside, the oldest first: when, and their names.
fn backups(path: &Path) -> io::Result<Vec<(String, String)>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if let Some(at) = put_aside(&name, path) {
            found.push((at.to_owned(), name));
        }
    }
    found.sort();
    Ok(found)
}

fn backup(path: &Path, at: Timestamp) -> String {
    let (stem, extension) = parts(path);
    format!("{stem}-{}{extension}", time(at))
}

/// As names have it; in the order of letters is in the order of time.
fn time(at: Timestamp) -> String {
    let at = Rfc3339(at).to_string().replace(':', "-");
    at.trim_end_matches('Z').to_owned()
}

/// The time in a name that [`backup`] made; no other name has one.
fn put_aside<'a>(name: &'a str, path: &Path) -> Option<&'a str> {
    let (stem, extension) = parts(path);
    let name = name.strip_suffix(".gz").unwrap_or(name);
    let at = name.strip_prefix(&format!("{stem}-"))?.strip_suffix(&extension)?;
    (is_like(at, "0000-00-00T00-00-00") || is_like(at, "0000-00-00T00-00-00.000")).then_some(at)
}

/// Whether it is the form, with any digits for its zeros.
fn is_like(text: &str, form: &str) -> bool {
    let same = |(byte, form): (u8, u8)| if form == b'0' { byte.is_ascii_digit() } else { byte == form };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(same)
}

fn parts(path: &Path) -> (String, String) {
    let text =
        |part: Option<&std::ffi::OsStr>| part.map_or_else(String::new, |part| part.to_string_lossy().into_owned());
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

fn with_gz(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    PathBuf::from(name)
}

/// Also what is not there yet.
fn is_regular(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;

    const ROTATION: Rotation = Rotation { max_bytes: 10, after: None, backups: Some(2), max_age: None, compress: true };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_put_aside_compressed_and_removed_in_order_of_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.log");
        // Not ours, whatever they look like.
        let others =
            ["flows-2026-01-01-report-of-node-a.log", "flows-old.log", "flows.log.1", "other-2026-01-01T00-00-00.log"];
        for other in others {
            fs::write(dir.path().join(other), "x").unwrap();
        }
        let mut file = LogFile::open(&path).unwrap();
        for second in 0..4 {
            file.append(format!("line {second}\n").as_bytes()).unwrap();
            file.rotate(at(second)).unwrap();
        }
        tidy_up(&path, &ROTATION, at(4)).unwrap();
        assert_eq!(
            names(dir.path()),
            [
                "flows-1970-01-01T00-00-02.log.gz",
                "flows-1970-01-01T00-00-03.log.gz",
                "flows-2026-01-01-report-of-node-a.log",
                "flows-old.log",
                "flows.log",
                "flows.log.1",
                "other-2026-01-01T00-00-00.log"
            ]
        );
        let mut text = String::new();
        let packed = File::open(dir.path().join("flows-1970-01-01T00-00-03.log.gz")).unwrap();
        GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "line 3\n");
        assert!(file.is_empty());

        let aged = Rotation { backups: None, max_age: Some(Duration::from_secs(10)), ..ROTATION };
        tidy_up(&path, &aged, at(13)).unwrap();
        assert!(names(dir.path()).contains(&"flows-1970-01-01T00-00-03.log.gz".to_owned()));
        assert!(!names(dir.path()).contains(&"flows-1970-01-01T00-00-02.log.gz".to_owned()));
    }

    #[test]
    fn two_files_of_one_moment_both_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        let mut file = LogFile::open(&path).unwrap();
        for line in ["a\n", "b\n"] {
            file.append(line.as_bytes()).unwrap();
            file.rotate(at(1)).unwrap();
        }
        assert_eq!(names(dir.path()), ["flows", "flows-1970-01-01T00-00-01", "flows-1970-01-01T00-00-01.001"]);
    }

    #[test]
    fn half_a_line_of_a_killed_process_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        fs::write(&path, "whole\nhal").unwrap();
        LogFile::open(&path).unwrap().append(b"next\n").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "whole\nhal\nnext\n");
    }

    #[test]
    fn only_a_file_with_lines_is_due_for_its_age() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LogFile::open(&dir.path().join("flows")).unwrap();
        let rotation = Rotation { after: Some(Duration::from_secs(60)), ..ROTATION };
        assert_eq!(file.due(&rotation), None);
        file.append(b"x\n").unwrap();
        assert_eq!(file.due(&rotation), Some(file.begun + Duration::from_secs(60)));
        assert_eq!((file.due(&ROTATION), file.room(&ROTATION)), (None, Some(8)));
    }
}
