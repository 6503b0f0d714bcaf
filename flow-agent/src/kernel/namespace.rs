//! Which network namespace this thread is in.

use std::io;
use std::os::unix::fs::MetadataExt as _;

/// Its number, as the kernel's `net.ns.inum` has it.
pub(super) fn number() -> io::Result<u32> {
    let file = std::fs::metadata("/proc/thread-self/ns/net")?;
    u32::try_from(file.ino()).map_err(io::Error::other)
}
