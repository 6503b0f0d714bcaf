//! One virtual machine from its start to its end: QEMU without any help of the processor, a serial console that is read as it speaks, and a
//! disk on which the results come back as a tar archive.

use super::kernels::Kernel;
use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// For what a Node's programs, two labs and the file system need.
const MEMORY: &str = "2048";
/// Room for the results.
const DISK_BYTES: u64 = 256 << 20;
/// Until its first process runs.
const BOOT: Duration = Duration::from_secs(180);
/// What begins a line for us.
const MARK: &str = "vm: ";
/// What a kernel says that ran into the trap by which it patches its own code, as emulated processors let it now and then.
const STUMBLE: &str = "Oops: int3: 0000";

/// What a machine's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// Two processors, and the time of day.
    Real,
    /// One processor that takes 2 ns for each instruction, whatever else this machine does: what costs more instructions takes longer,
    /// and nothing else does. Caches and the price of each instruction are not in it.
    Instructions,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All runs were made.
    Done,
    /// By itself, before its first process ran.
    NeverUp,
    /// By the emulation's fault and not its own.
    Stumbled,
    /// By itself, in the middle.
    Halted,
    /// By us, at the time limit.
    OutOfTime,
}

impl End {
    /// Whether another attempt may end otherwise although nothing is right or wrong with the kernel.
    pub(super) fn is_chance(self) -> bool {
        matches!(self, End::NeverUp | End::Stumbled)
    }
}

/// Takes the results to `folder/results` where all runs were made; else says what happened.
pub(super) fn results(kernel: &Kernel, folder: &Path, limit: Duration, end: End) -> Result<()> {
    let console = folder.join("console.log");
    match end {
        End::Done => unpack(folder),
        End::NeverUp => bail!("{kernel} did not come up; see {}", console.display()),
        End::Stumbled => bail!("{kernel} was halted by the emulation; see {}", console.display()),
        End::Halted => bail!("{kernel} halted; see {}", console.display()),
        End::OutOfTime => bail!("{kernel} was not done within {limit:?}; see {}", console.display()),
    }
}

/// Boots a kernel with the image at `folder/image.cpio` and gives every line of its console to `line`.
pub(super) fn boot(
    kernel: &Kernel,
    folder: &Path,
    clock: Clock,
    limit: Duration,
    line: &mut dyn FnMut(&str),
) -> Result<End> {
    File::create(folder.join("disk"))?.set_len(DISK_BYTES)?;
    let mut console = File::create(folder.join("console.log"))?;
    let mut machine = start(kernel, folder, clock)?;
    let lines = lines(&mut machine)?;
    let begun = Instant::now();
    let (mut up, mut done, mut stumbled) = (false, false, false);
    let end = loop {
        let limit = if up { limit } else { BOOT };
        match lines.recv_timeout(limit.saturating_sub(begun.elapsed())) {
            Ok(text) => {
                writeln!(console, "{:8.3} {text}", begun.elapsed().as_secs_f64())?;
                up |= text.starts_with(&format!("{MARK}up"));
                done |= text.starts_with(&format!("{MARK}done"));
                stumbled |= text.contains(STUMBLE);
                line(&text);
            }
            Err(RecvTimeoutError::Disconnected) if done => break End::Done,
            Err(_) if stumbled => break End::Stumbled,
            Err(RecvTimeoutError::Disconnected) if up => break End::Halted,
            Err(RecvTimeoutError::Disconnected) => break End::NeverUp,
            Err(RecvTimeoutError::Timeout) if up => break End::OutOfTime,
            Err(RecvTimeoutError::Timeout) => break End::NeverUp,
        }
    };
    // Fails only for one that has ended already.
    let _ = machine.kill();
    machine.wait()?;
    Ok(end)
}

fn start(kernel: &Kernel, folder: &Path, clock: Clock) -> Result<Child> {
    let mut qemu = Command::new("qemu-system-x86_64");
    match clock {
        Clock::Real => qemu.args(["-accel", "tcg", "-smp", "2"]),
        Clock::Instructions => qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=1,sleep=off"]),
    };
    qemu.args(["-cpu", "max", "-m", MEMORY, "-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.arg("-kernel").arg(kernel.folder.join("vmlinuz"));
    qemu.arg("-initrd").arg(folder.join("image.cpio"));
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init"]);
    qemu.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
    qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio", folder.join("disk").display()));
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    qemu.spawn().context("cannot start qemu-system-x86_64")
}

/// The console's lines, as they come.
fn lines(machine: &mut Child) -> Result<Receiver<String>> {
    let mut console = BufReader::new(machine.stdout.take().context("the machine's console")?);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if tell.send(text).is_err() {
                break;
            }
        }
    });
    Ok(told)
}

fn unpack(folder: &Path) -> Result<()> {
    let results = folder.join("results");
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    fs::create_dir_all(&results)?;
    shell::run(Command::new("tar").arg("-xf").arg(folder.join("disk")).arg("-C").arg(&results))?;
    fs::remove_file(folder.join("disk"))?;
    fs::remove_file(folder.join("image.cpio")).context("cannot remove the machine's image")
}
