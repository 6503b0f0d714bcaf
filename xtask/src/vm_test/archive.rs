//! Writes a cpio archive in the form that the kernel unpacks as its first root file system: `newc`, without compression, because
//! decompressing costs more under emulation than reading.

use anyhow::{Context, Result};
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive that is being written. Folders must come before what is in them.
pub(super) struct Archive {
    file: BufWriter<fs::File>,
    number: u32,
}

impl Archive {
    /// A new file.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { file: BufWriter::new(file), number: 0 })
    }

    /// A folder.
    pub(super) fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, FOLDER, &[])
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, LINK, target.as_bytes())
    }

    /// A file that can be run.
    pub(super) fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, PROGRAM, content)
    }

    /// A file that cannot.
    pub(super) fn data(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, FILE, content)
    }

    /// A copy of a file of this machine.
    pub(super) fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let runs = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
        self.entry(name, if runs { PROGRAM } else { FILE }, &content)
    }

    /// The end of the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.file.flush()?)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.number += 1;
        let size = u32::try_from(content.len()).context("a file of more than 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // inode, mode, uid, gid, links, time, size, four device numbers, size of the name, checksum
        let fields = [self.number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = String::from("070701");
        for field in fields {
            head += &format!("{field:08x}");
        }
        self.file.write_all(head.as_bytes())?;
        self.file.write_all(name.as_bytes())?;
        self.file.write_all(&[0])?;
        self.pad(head.len() + name.len() + 1)?;
        self.file.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> Result<()> {
        Ok(self.file.write_all(&[0; 3][..written.next_multiple_of(4) - written])?)
    }
}
