//! The only build tool: one module a subcommand. `cargo xtask help` lists them.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command's output is its purpose")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod artifacts;
mod bench;
mod build_ebpf;
mod count;
mod demo;
mod setup;
mod shell;
mod test;
mod tidy;
mod vm_test;

/// Builds, shows, tests and measures the flow observer.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need; prints the commands instead where rights are missing.
    Setup(setup::Options),
    /// Build the kernel programs.
    BuildEbpf(build_ebpf::Options),
    /// Build everything in release mode.
    Build(build_ebpf::Options),
    /// Start the lab, show its flows live and end with the accounting report.
    Demo(demo::Options),
    /// Run every check there is and end with a summary.
    Test(test::Options),
    /// Run kernel and lab tests on Debian's kernels, in virtual machines.
    VmTest(vm_test::Options),
    /// Measure speed and memory, as ratios of one run.
    Bench(bench::Options),
    /// Check the architecture's invariants.
    Tidy,
}

/// Prints an error as one sentence: a backtrace says nothing to whoever lacks a package.
fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup(options) => setup::run(&options),
        Command::BuildEbpf(options) => build_ebpf::run(&options),
        Command::Build(options) => build_ebpf::build(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::VmTest(options) => vm_test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Tidy => tidy::run(),
    }
}
