//! What hearing of every connection costs who makes them: connections a second over loopback, connected and closed, with nobody listening to
//! connection tracking and with the agent's part that does, by turns in one run.
//!
//! `cargo xtask bench conntrack` runs it as root. Here the agent listens in the way that this kernel lets it, which is printed. Exit
//! status 1 if the target is missed.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use flow_agent::conntrack::Zones;
use flow_agent::kernel::HooksConfig;
use flow_agent::sources::Tracking;
use flow_agent::table::{Table, TableConfig};
use rustix::net::sockopt::set_socket_linger;

/// Connections of a round, and rounds of each kind.
const CONNECTIONS: u32 = 1_000;
const ROUNDS: usize = 21;
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
    connections(to)?;

    let mut seconds = [const { Vec::new() }; 2];
    let (mut ways, mut told) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        seconds[0].push(connections(to)?);
        let listening = Listening::begin();
        seconds[1].push(connections(to)?);
        (ways, told) = listening.end()?;
    }
    let [without, with] = seconds.map(median);
    let rate = |seconds: f64| f64::from(CONNECTIONS) / seconds;
    let ratio = with / without;
    println!("{:<34}{:>10.0} connections a second", "nobody listens", rate(without));
    println!("{:<34}{:>10.0} connections a second", ways.join(", "), rate(with));
    println!(
        "ratio of the time {ratio:.3}, target {TARGET:.2}; {told} events told of {CONNECTIONS} connections in the last round"
    );
    ensure!(ratio <= TARGET, "missed: a connection takes {ratio:.3} of the time");
    Ok(())
}

/// A network namespace of our own, in which connections are tracked.
fn namespace() -> Result<()> {
    // SAFETY: gives this thread, and those it starts, another network, and takes no memory from anyone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .context("it makes a network namespace, which needs root: `sudo cargo xtask bench conntrack`")?;
    let rules = "table inet bench { chain input { type filter hook input priority 0; ct state new accept; }; }";
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip failed");
    ensure!(Command::new("nft").arg(rules).status()?.success(), "nft failed");
    Ok(())
}

/// Seconds that a round takes.
fn connections(to: SocketAddr) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let connection = TcpStream::connect(to)?;
        // Closed by RST: no port stays taken.
        set_socket_linger(&connection, Some(Duration::ZERO))?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// The agent's part that hears of connections, on a thread of its own as in the agent.
struct Listening {
    goes_on: std::sync::Arc<AtomicBool>,
    thread: thread::JoinHandle<(Vec<String>, u64)>,
}

impl Listening {
    fn begin() -> Self {
        let goes_on = std::sync::Arc::new(AtomicBool::new(true));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let flag = std::sync::Arc::clone(&goes_on);
        let thread = thread::spawn(move || {
            let hooks = HooksConfig { new_ring_bytes: RING_BYTES, end_ring_bytes: RING_BYTES * 4, only: None };
            let mut tracking = Tracking::open(Some(hooks), Zones::default());
            let mut table = Table::new(TableConfig::default(), SystemTime::now().into());
            let mut faults = Vec::new();
            tracking.read(&mut table, SystemTime::now().into(), &mut faults);
            let _ = ready.send(());
            while flag.load(Ordering::Relaxed) {
                thread::sleep(TICK);
                tracking.read(&mut table, SystemTime::now().into(), &mut faults);
            }
            let ways = tracking.features().map(|feature| format!("{} by {}", feature.name, feature.rung));
            let told = tracking.statistics().events + tracking.hook_statistics().told.iter().sum::<u64>();
            (ways.to_vec(), told)
        });
        let _ = is_ready.recv();
        Self { goes_on, thread }
    }

    fn end(self) -> Result<(Vec<String>, u64)> {
        self.goes_on.store(false, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the listening thread panicked"))
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
