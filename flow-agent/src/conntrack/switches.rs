//! The kernel's switches that connection tracking's counters and times hang on. They are off by default, and off in
//! every new network namespace; a connection that began while one was off has no counters, or no start, for its life.

use std::io;
use std::path::{Path, PathBuf};

/// Where the switches are.
pub const FOLDER: &str = "/proc/sys/net/netfilter";

/// How a switch stands after an attempt to turn it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It was on.
    On,
    /// It was off and is on now: connections from now on have it.
    TurnedOn,
    /// It is off and stays so. A sentence with the remedy.
    Off(String),
}

impl Switch {
    /// Whether new connections have what it is for.
    pub fn is_on(&self) -> bool {
        !matches!(self, Switch::Off(_))
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Packets and bytes of each connection: what a restarted agent goes on from.
    pub accounting: Switch,
    /// Start and stop of each connection: what makes a flow's identity outlive the agent.
    pub timestamps: Switch,
}

/// Turns them on where they are not and that is permitted. `folder` is [`FOLDER`].
pub fn turn_on(folder: &Path) -> Switches {
    Switches {
        accounting: turn_on_one(&folder.join("nf_conntrack_acct")),
        timestamps: turn_on_one(&folder.join("nf_conntrack_timestamp")),
    }
}

/// Entries in the kernel's table and how many there may be, where it has one.
pub fn fill(folder: &Path) -> Option<(u64, u64)> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok();
    Some((read("nf_conntrack_count")?, read("nf_conntrack_max")?))
}

fn turn_on_one(path: &PathBuf) -> Switch {
    let read = || std::fs::read_to_string(path).map(|value| value.trim() != "0");
    match read() {
        Ok(true) => return Switch::On,
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Switch::Off(format!("{} is not there: load the module nf_conntrack", path.display()));
        }
        Err(error) => return Switch::Off(format!("{} cannot be read: {error}", path.display())),
    }
    match std::fs::write(path, "1").and_then(|()| read()) {
        Ok(true) => Switch::TurnedOn,
        Ok(false) => Switch::Off(format!("{} stays 0: set it to 1 on the Node with sysctl", path.display())),
        Err(error) => Switch::Off(format!(
            "{} is 0 and may not be written ({error}): set it to 1 on the Node with sysctl",
            path.display()
        )),
    }
}
