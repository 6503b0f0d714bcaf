//! What hearing of every connection costs who makes them: connections a second over loopback, connected and closed, with nobody listening to
//! connection tracking, and in every way of listening that this kernel has: with the agent's part attached that does, and with that part
//! reading as well; by turns in one run.
//!
//! `cargo xtask bench conntrack` runs it as root. Where there is one processor the last is the sum of both sides' work. Exit status 1 if
//! the target, which is of programs that are attached, is missed by any of their ways.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use flow_agent::conntrack::Zones;
use flow_agent::kernel::{HooksConfig, Rung};
use flow_agent::sources::Tracking;
use flow_agent::table::{Table, TableConfig};
use rustix::net::sockopt::set_socket_linger;

/// Connections of a round, and rounds of each kind.
const CONNECTIONS: u32 = 1_000;
const ROUNDS: usize = 11;
/// As much longer as they may take.
const TARGET: f64 = 1.05;
const RING_BYTES: u32 = 2_097_152;
const TICK: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    namespace()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    thread::spawn(move || listener.incoming().for_each(drop));
    // The module is loaded and all memory is there.
    connections(to, CONNECTIONS)?;

    let mut measured: Vec<Measured> = Vec::new();
    // Over netlink, as the agent chooses, and by each kind of program alone.
    let programs = [None].into_iter().chain(Rung::ALL.map(Some));
    for way in [None].into_iter().chain(programs.map(|only| Some(hooks(only)))) {
        let by = Listening::begin(to, way, true)?.end()?.by;
        let stands = way.is_none() || !by.contains("netlink");
        if stands && measured.iter().all(|other| other.by != by) {
            measured.push(Measured { way, by, seconds: [const { Vec::new() }; 2] });
        }
    }
    let mut without = Vec::new();
    for _ in 0..ROUNDS {
        without.push(connections(to, CONNECTIONS)?);
        for Measured { way, seconds, .. } in &mut measured {
            for (seconds, reads) in seconds.iter_mut().zip([false, true]) {
                let listening = Listening::begin(to, *way, reads)?;
                seconds.push(connections(to, CONNECTIONS)?);
                let heard = listening.end()?;
                ensure!(heard.events >= u64::from(CONNECTIONS), "only {} events were told", heard.events);
            }
        }
    }
    let without = median(without);
    println!("nobody listens: {:.0} connections a second", f64::from(CONNECTIONS) / without);
    let mut worst: f64 = 0.0;
    for Measured { way, by, seconds } in measured {
        let [attached, reading] = seconds.map(|seconds| median(seconds) / without);
        println!("{attached:.3} of the time attached, {reading:.3} attached and read: {by}");
        if way.is_some() {
            worst = worst.max(attached);
        }
    }
    println!("target {TARGET:.2} of the time where programs are attached");
    ensure!(worst <= TARGET, "missed: a connection takes {worst:.3} of the time");
    Ok(())
}

/// One way of listening: by programs, or without them over netlink.
struct Measured {
    way: Option<HooksConfig>,
    by: String,
    /// Attached, and attached and read.
    seconds: [Vec<f64>; 2],
}

/// A network namespace of our own, in which connections are tracked.
fn namespace() -> Result<()> {
    // SAFETY: gives this thread, and those it starts, another network, and takes no memory from anyone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .context("it makes a network namespace, which needs root: `sudo cargo xtask bench conntrack`")?;
    let rules = "table inet bench { chain input { type filter hook input priority 0; ct state new accept; }; }";
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip failed");
    ensure!(Command::new("nft").arg(rules).status()?.success(), "nft failed");
    // As many end in a round as begin, some rounds later.
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", "1")?;
    Ok(())
}

/// Programs of this rung only, or of whichever stands.
fn hooks(only: Option<Rung>) -> HooksConfig {
    HooksConfig { new_ring_bytes: RING_BYTES, end_ring_bytes: RING_BYTES * 4, only }
}

/// Seconds that so many take.
fn connections(to: SocketAddr, count: u32) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..count {
        let connection = TcpStream::connect(to)?;
        // Closed by RST: no port stays taken.
        set_socket_linger(&connection, Some(Duration::ZERO))?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// How the agent's part heard of connections, and of how many events in a round.
struct Heard {
    by: String,
    events: u64,
}

/// The agent's part that hears of connections, on a thread of its own as in the agent.
struct Listening {
    goes_on: Arc<AtomicBool>,
    thread: thread::JoinHandle<Heard>,
}

impl Listening {
    /// Returns when it stands on the way that it stays on, which it learns from a few connections, and has read the table.
    fn begin(to: SocketAddr, way: Option<HooksConfig>, reads: bool) -> Result<Self> {
        const SETTLING: u32 = 5;
        let goes_on = Arc::new(AtomicBool::new(true));
        let (ready, is_ready) = mpsc::channel();
        let flag = Arc::clone(&goes_on);
        let thread = thread::spawn(move || {
            let mut part = Part::open(way);
            for _ in 0..SETTLING {
                connections(to, 2).expect("as before");
                part.read();
            }
            let before = part.events();
            let _ = ready.send(());
            while flag.load(Ordering::Relaxed) {
                thread::sleep(TICK);
                if reads {
                    part.read();
                }
            }
            part.read();
            let by = part.tracking.features().map(|feature| format!("{} by {}", feature.name, feature.rung));
            Heard { by: by.join(", "), events: part.events() - before }
        });
        is_ready.recv().context("the listening thread panicked")?;
        Ok(Self { goes_on, thread })
    }

    fn end(self) -> Result<Heard> {
        self.goes_on.store(false, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the listening thread panicked"))
    }
}

/// What of the agent hears of connections.
struct Part {
    tracking: Tracking,
    table: Table,
}

impl Part {
    fn open(way: Option<HooksConfig>) -> Self {
        let tracking = Tracking::open(way, Zones::default());
        Self { tracking, table: Table::new(TableConfig::default(), SystemTime::now().into()) }
    }

    fn read(&mut self) {
        self.tracking.read(&mut self.table, SystemTime::now().into(), &mut Vec::new());
    }

    fn events(&mut self) -> u64 {
        self.tracking.statistics().events + self.tracking.hook_statistics().told.iter().sum::<u64>()
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
