//! Starts the agent or its command line.

fn main() -> std::process::ExitCode {
    flow_agent::cli::main()
}
