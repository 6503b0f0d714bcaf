//! The demo: the product in the lab, real traffic, the joined flows live, and the accounting report at the end.
//! `cargo xtask demo` builds and starts it. Exit status 0 only if every figure is right.
//!
//! It sets up nothing that outlives it: see cage.rs for what ends with it, however it ends.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use lab::Lab;
use lab::cases::{Case, Done, Item};
use lab::product::{Product, Settings};
use lab::report::Report;
use lab::stored::Stored;
use rustix::process::{Signal, set_parent_process_death_signal};

mod live;

/// Shows flows of real packets, joined over two Nodes, and proves their numbers.
#[derive(Parser)]
#[command(name = "demo")]
struct Options {
    /// How long traffic goes on.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Print one JSON document at the end instead.
    #[arg(long)]
    json: bool,
    /// Deliver into a ClickHouse as well, and compare its rows.
    #[arg(long)]
    clickhouse: bool,
}

/// After the last packet: the agents' idle time-out, the wait for a half that does not come, exports.
const SETTLING: Duration = Duration::from_secs(30);
/// How often the table is drawn.
const FRAME: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nothing is left to do where even this cannot be written.
            let _ = writeln!(stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    // Whoever started us is gone: so is the reason to go on.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    say("demo: building two Nodes, six Pods, a router and an external host in network namespaces")?;
    let lab = Lab::new()?;
    say("demo: starting flow-agent on both Nodes, and flow-aggregator")?;
    let stored = if options.clickhouse { Some(Stored::start(&lab)?) } else { None };
    let aggregator = stored.as_ref().map(Stored::settings).unwrap_or_default();
    let product = Product::start(&lab, Settings { aggregator, ..Settings::default() })?;
    let outcome = show(options, &lab, &product, stored.as_ref());
    outcome.map_err(|error| product.with_logs(error))
}

fn show(options: &Options, lab: &Lab, product: &Product<'_>, stored: Option<&Stored<'_>>) -> Result<bool> {
    let (possible, impossible): (Vec<Item>, Vec<Item>) =
        Item::ALL.into_iter().partition(|item| item.skipped_because().is_none());
    let skipped: Vec<String> =
        impossible.iter().filter_map(|item| Some(format!("{item:?}: {}", item.skipped_because()?))).collect();
    let cases: Vec<Case> = possible.into_iter().flat_map(Case::of).collect();
    say(&format!("demo: sending {} pieces of traffic within {} s", cases.len(), options.seconds))?;
    let (sent, end) = (Mutex::new(Vec::new()), End::default());
    thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| send(lab, &cases, Duration::from_secs(options.seconds), &sent, &end));
        let watched = watch(product, &sender, live::Screen::new(stdout().is_terminal() && !options.json));
        end.call();
        watched?;
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
    say("demo: traffic is over; waiting for its last records")?;
    let report = settled(|| Report::new(lab, product, stored, &sent, &skipped))?;
    if options.json {
        serde_json::to_writer_pretty(stdout(), &report)?;
        writeln!(stdout())?;
    } else {
        write!(stdout(), "\n{}", report.text())?;
    }
    Ok(report.right)
}

/// Draws what has come until all is sent. Fails if a part of the product ends.
fn watch(product: &Product<'_>, sender: &ScopedJoinHandle<'_, Result<()>>, mut screen: live::Screen) -> Result<()> {
    while !sender.is_finished() {
        product.all_run()?;
        screen.draw(&product.joined().records()?)?;
        thread::sleep(FRAME);
    }
    screen.draw(&product.joined().records()?)
}

/// Called where there is no reason to go on.
#[derive(Default)]
struct End {
    is_called: Mutex<bool>,
    change: Condvar,
}

impl End {
    fn call(&self) {
        *self.is_called.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.change.notify_all();
    }

    /// Waits until then; true if it was called before.
    fn is_before(&self, due: Instant) -> bool {
        let is_called = self.is_called.lock().unwrap_or_else(PoisonError::into_inner);
        let left = due.saturating_duration_since(Instant::now());
        *self.change.wait_timeout_while(is_called, left, |called| !*called).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Every case once, spread over the time there is, until the end is called.
fn send(lab: &Lab, cases: &[Case], time: Duration, sent: &Mutex<Vec<Done>>, end: &End) -> Result<()> {
    const AT_ONCE: usize = 4;
    let pace = time / u32::try_from(cases.len())?;
    let begun = Instant::now();
    let work = |first: usize| -> Result<()> {
        for (index, case) in cases.iter().enumerate().skip(first).step_by(AT_ONCE) {
            if end.is_before(begun + pace * u32::try_from(index)?) {
                break;
            }
            let done = case.run(lab)?;
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|first| scope.spawn(move || work(first))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    end.is_before(begun + time);
    Ok(())
}

/// The first report in which every figure is right, or the last one before patience ends.
fn settled(mut report: impl FnMut() -> Result<Report>) -> Result<Report> {
    let end = Instant::now() + SETTLING;
    loop {
        let report = report()?;
        if report.right || Instant::now() >= end {
            return Ok(report);
        }
        thread::sleep(FRAME);
    }
}

/// Progress goes to standard error: standard output is the table's, or the JSON document's.
fn say(line: &str) -> Result<()> {
    Ok(writeln!(stderr(), "{line}")?)
}
