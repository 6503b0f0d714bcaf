//! The aggregator's program: see [`flow_aggregator::cli`].

fn main() -> std::process::ExitCode {
    flow_aggregator::cli::main()
}
