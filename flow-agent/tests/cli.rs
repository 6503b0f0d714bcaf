//! The program as users call it: exit statuses, and what it says where something is wrong.

use std::path::Path;
use std::process::{Command, Output};

use insta::assert_snapshot;

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_flow-agent")
}

fn call(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).current_dir(folder).output().unwrap()
}

/// Exit status, standard output and standard error.
fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!("status {}\n{}{}", output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn folder(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("flow-agent.conf"), config).unwrap();
    folder
}

const CHECK: [&str; 4] = ["config", "check", "--config", "flow-agent.conf"];

#[test]
fn a_good_configuration_is_called_good() {
    let folder = folder("flowExporter: {flowCollectorAddr: \"localhost::tcp\"}\nflowPollInterval: 6s\n");
    assert_snapshot!(told(&call(folder.path(), &CHECK)));
}

#[test]
fn a_bad_configuration_is_refused_with_every_fault() {
    let folder = folder("flowExporter:\n  flowPolInterval: 5s\n  activeFlowExportTimeout: soon\n");
    assert_snapshot!(told(&call(folder.path(), &CHECK)));
    let running = call(folder.path(), &["run", "--config", "flow-agent.conf"]);
    assert_eq!(told(&running), told(&call(folder.path(), &CHECK)), "the agent does not start with it");
}

#[test]
fn missing_files_are_named() {
    let tls = "tls: {ca: ca.crt, cert: client.crt, key: client.key}\n";
    let folder = folder(tls);
    assert_snapshot!(told(&call(folder.path(), &CHECK)));
    assert_snapshot!(told(&call(folder.path(), &["config", "check", "--config", "other.conf"])));
}

#[test]
fn a_printed_configuration_is_a_good_one() {
    let source = folder("flowExporter: {flowCollectorAddr: \"[::1]:4740:udp\"}\nmaxFlows: 2048\n");
    let print = ["config", "print", "--config", "flow-agent.conf"];
    let printed = String::from_utf8(call(source.path(), &print).stdout).unwrap();
    assert!(printed.contains("maxFlows: 2048"), "{printed}");
    let copy = folder(&printed);
    assert_eq!(String::from_utf8(call(copy.path(), &print).stdout).unwrap(), printed);
}

#[test]
fn an_agent_that_is_turned_off_ends_with_success() {
    let folder = folder("flowExporter: {enable: false}\n");
    let output = call(folder.path(), &["run", "--config", "flow-agent.conf"]);
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn without_an_agent_clients_say_so() {
    let folder = folder("");
    for command in ["flows", "top"] {
        assert_snapshot!(told(&call(folder.path(), &[command, "--socket", "api.sock"])).replace(command, "COMMAND"));
    }
    let output = call(folder.path(), &["doctor", "--socket", "api.sock"]);
    assert_eq!(output.status.code(), Some(2));
    let said = told(&output);
    assert!(said.contains("warning: no agent answers at api.sock\n  remedy: start `flow-agent run`"), "{said}");
}

#[test]
fn what_a_running_agent_counts_is_not_detached() {
    let folder = folder("flowExporter: {flowCollectorAddr: \"localhost::tcp\"}\napiSocket: api.sock\n");
    let agent = std::os::unix::net::UnixListener::bind(folder.path().join("api.sock")).unwrap();
    std::thread::spawn(move || agent.incoming().for_each(drop));
    assert_snapshot!(told(&call(folder.path(), &["detach", "--config", "flow-agent.conf"])));
}

#[test]
fn without_rights_one_sentence_says_what_to_do() {
    let folder = folder("flowExporter: {flowCollectorAddr: \"localhost::tcp\"}\n");
    let bare = ["--inh-caps=-all", "--bounding-set=-all", program(), "run", "--config", "flow-agent.conf"];
    let output = Command::new("setpriv").args(bare).current_dir(folder.path()).output().unwrap();
    assert_snapshot!(told(&output));
}
