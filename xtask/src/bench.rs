//! `cargo xtask bench NAME`: the benchmarks of the crates, built as they ship. Figures are ratios within one run: the machine may be noisy.

use crate::setup::{self, Need};
use crate::vm_test::{self, Wanted};
use crate::{build_ebpf, shell};
use anyhow::{Result, ensure};

/// What `bench` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// Of `conntrack`: on a Debian kernel of this series such as 6.12, or on the `newest`, in a virtual machine whose clock counts
    /// instructions.
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<Wanted>,
    /// Passed on to the benchmark.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Kernel programs: nanoseconds a packet beside a textbook counter's. Needs root.
    Packet,
    /// IPFIX: records encoded and decoded a second beside a field-by-field codec's.
    Codec,
    /// The aggregator as shipped, over sockets, and its table in memory: CPU a record, memory a flow.
    Aggregate,
    /// Connections a second with and without the agent hearing of them. Needs root.
    Conntrack,
    /// The aggregator as shipped before a modern ClickHouse: CPU a row, from IPFIX to the server.
    Clickhouse,
    /// The agent as shipped: CPU a record from map to socket, memory, new flows. Needs root.
    Agent,
}

impl What {
    /// The crate and its benchmark.
    fn target(self) -> (&'static str, &'static str) {
        match self {
            What::Packet => ("flow-agent", "packet"),
            What::Codec => ("flow-common", "codec"),
            What::Aggregate => ("flow-aggregator", "aggregate"),
            What::Conntrack => ("flow-agent", "conntrack"),
            What::Clickhouse => ("interop", "clickhouse"),
            What::Agent => ("flow-agent", "agent"),
        }
    }
}

/// Builds and runs one benchmark.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (package, bench) = options.what.target();
    if package == "flow-agent" {
        build_ebpf::run(&build_ebpf::Options {})?;
    }
    if let Some(kernel) = options.kernel {
        ensure!(matches!(options.what, What::Conntrack), "only `bench conntrack` runs on other kernels");
        return vm_test::bench::run(bench, kernel);
    }
    if matches!(options.what, What::Clickhouse) {
        setup::ensure(&[Need::Build, Need::ClickHouse])?;
        // It runs both as processes of their own.
        shell::run(shell::cargo().args([
            "build",
            "--release",
            "--quiet",
            "--package",
            "flow-aggregator",
            "--package",
            "interop",
        ]))?;
    }
    let mut cargo = shell::cargo();
    cargo.args(["bench", "--quiet", "--package", package, "--bench", bench, "--"]).args(&options.arguments);
    shell::run(&mut cargo)
}
