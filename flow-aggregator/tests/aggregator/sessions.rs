//! Bounds of sessions: how long one may be silent, how many one address may have, and how many files may be open.

use super::ends::{Agent, PATIENCE};
use super::hostile::{STRANGER, Served, flows, stranger};
use super::process::{Process, command, ports};
use flow_common::net::Protocol;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
    time::{interval, timeout},
};

const BY_ADDRESS: &str = "sessions_refused_total{reason=\"address\"}";
const IDLE: &str = "sessions_refused_total{reason=\"idle\"}";

/// Waits until the other end has closed it.
async fn closed(mut stream: TcpStream) {
    // By an end of the stream or a reset.
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.expect("it is closed");
    assert_eq!(read.unwrap_or(0), 0);
}

/// One that sends nothing beside one that sends all the time.
async fn silent_beside_busy(protocol: Protocol) {
    let served = Served::with(protocol, "sessionIdleTimeout: 8s\n");
    let mut busy = served.agent(0xa, protocol).await;
    let mut silent = served.agent(0xb, protocol).await;
    served.aggregator.until("sessions", 2);
    let name = silent.connection.local();
    let told = tokio::spawn(async move { silent.connection.closed().await });
    let (begun, mut pace, mut sent) = (Instant::now(), interval(Duration::from_millis(100)), 0);
    while !told.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "the silent one stays: {}", served.aggregator.log());
        pace.tick().await;
        sent += 1;
        busy.send(&flows(sent..sent + 1)).await;
    }
    served.aggregator.until("sessions", 1);
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", sent.into());
    assert_eq!((served.metric(IDLE), served.metric("sessions_accepted_total")), (1, 2));
    served.aggregator.logged(&format!("exporter {name} is disconnected: it sent nothing for 8s"));
    served.aggregator.logged("set sessionIdleTimeout higher");
    // Whoever comes again goes on.
    let mut again = served.agent(0xb, protocol).await;
    again.send(&flows(sent + 1..sent + 2)).await;
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", u64::from(sent) + 1);
    assert!(served.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_that_says_nothing_by_tcp_is_sent_away_and_told_of() {
    silent_beside_busy(Protocol::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_that_says_nothing_by_tls_is_sent_away_and_told_of() {
    silent_beside_busy(Protocol::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_share_of_sessions_and_no_more() {
    let served = Served::with(Protocol::Tcp, "maxSessionsPerAddress: 2\n");
    let addr = served.aggregator.addr;
    let mut kept = vec![stranger(addr).await.unwrap(), stranger(addr).await.unwrap()];
    served.aggregator.until("sessions", 2);
    closed(stranger(addr).await.unwrap()).await;
    served.aggregator.until(BY_ADDRESS, 1);
    served.aggregator.logged("2 are connected from its address; if all are yours, set maxSessionsPerAddress higher");
    let mut agent = served.agent(0xa, Protocol::Tcp).await;
    agent.send(&flows(1..11)).await;
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", 10);
    // A place that is free again is another's.
    drop(kept.pop());
    served.aggregator.until("sessions", 2);
    kept.push(stranger(addr).await.unwrap());
    served.aggregator.until("sessions", 3);
    assert_eq!(served.metric(BY_ADDRESS), 1);
    assert!(served.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_share_of_senders_of_datagrams_and_no_more() {
    const EMPTY: [u8; 16] = [0, 10, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let served = Served::with(Protocol::Udp, "maxSessionsPerAddress: 2\n");
    let mut sockets = Vec::new();
    for (known, turned_away) in [(1, 0), (2, 0), (2, 1), (2, 2)] {
        let socket = UdpSocket::bind((STRANGER, 0)).await.unwrap();
        socket.send_to(&EMPTY, served.aggregator.addr).await.unwrap();
        served.aggregator.until("sessions", known);
        served.aggregator.wait("it is turned away", || served.metric(BY_ADDRESS) == turned_away);
        sockets.push(socket);
    }
    let mut agent = served.agent(0xa, Protocol::Udp).await;
    agent.send(&flows(1..11)).await;
    served.aggregator.until("sink_delivered_total{sink=\"log\"}", 10);
    assert!(served.aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_hold_for_sessions_that_are_open_already() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |of_one: u32, idle: u32| format!("maxSessionsPerAddress: {of_one}\nsessionIdleTimeout: {idle}s\n");
    let aggregator = Process::start(&dir.path().join("flow-aggregator.conf"), &settings(1, 0));
    let mut first = Agent::connect(aggregator.addr, 0xa, Protocol::Tcp, None).await;
    aggregator.until("sessions", 1);
    closed(TcpStream::connect(aggregator.addr).await.unwrap()).await;
    aggregator.until(BY_ADDRESS, 1);
    aggregator.configure(&settings(2, 0));
    aggregator.until("config_reloads_total", 1);
    let second = TcpStream::connect(aggregator.addr).await.unwrap();
    aggregator.until("sessions", 2);
    // Neither says anything more, and nothing but the file changes.
    aggregator.configure(&settings(2, 1));
    closed(second).await;
    timeout(PATIENCE, first.connection.closed()).await.expect("it is sent away");
    aggregator.until(IDLE, 2);
    aggregator.until("sessions", 0);
    assert!(aggregator.stop().success());
}

/// Starts the aggregator under limits of open files.
fn limited(file: &Path, limits: &str, settings: &str) -> Process {
    fs::write(file, ports(settings)).unwrap();
    let own = command(&["run", "--config", file.to_str().unwrap()]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")]).arg(own.get_program()).args(own.get_args());
    shell.env_remove("RUST_LOG");
    Process::spawn(shell, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_files_are_opened_as_the_system_allows() {
    const SESSIONS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let aggregator = limited(&dir.path().join("flow-aggregator.conf"), "ulimit -S -n 64", "maxSessions: 1000\n");
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(TcpStream::connect(aggregator.addr).await.unwrap());
    }
    aggregator.until("sessions", SESSIONS);
    assert!(!aggregator.log().contains("files and sockets"), "{}", aggregator.log());
    assert!(aggregator.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_open_files_that_is_too_low_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flow-aggregator.conf");
    let aggregator = limited(&file, "ulimit -n 400", "maxSessions: 50\n");
    assert!(!aggregator.log().contains("files and sockets"), "{}", aggregator.log());
    aggregator.configure("maxSessions: 500\n");
    aggregator.until("config_reloads_total", 1);
    aggregator.logged(
        "this process may have 400 files and sockets open, and maxSessions (500) with ports and sinks may need 820: \
         raise the hard limit",
    );
    aggregator.logged("or set maxSessions lower");
    assert!(aggregator.stop().success());
    let aggregator = limited(&file, "ulimit -n 400", "");
    aggregator.logged("maxSessions (16384) with ports and sinks may need 16704");
    assert!(aggregator.stop().success());
}
