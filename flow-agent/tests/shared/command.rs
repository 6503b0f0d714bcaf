//! Programs that must succeed.

use std::process::{Command, Stdio};

pub(crate) fn run(program: &str, arguments: &str) {
    output(program, arguments);
}

/// The same; gives what it prints.
pub(crate) fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} is not installed: {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
