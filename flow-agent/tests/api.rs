//! The API over a real unix socket: what a client asks is what it gets, and bad requests are refused with a reason.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flow_agent::api::{self, Desk, Form, Question, Reply, Request, Row};
use flow_agent::doctor::Facts;
use flow_agent::enrich::Record;
use flow_agent::verify::{Count, Findings, Outcome, Reason, Report, Sums};
use flow_common::daemon::{Shutdown, ShutdownTrigger};
use flow_common::record::{Cut, Extended, Family, Head, Tail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

fn record(id: u64, namespace: &str, octets: u64) -> Record {
    let tail = Tail { src_pod: "web".into(), src_namespace: namespace.into(), ..Tail::default() };
    let head = Head {
        src_addr: [10, 0, 0, 1].into(),
        dst_addr: [10, 0, 0, 2].into(),
        src_port: 40_000,
        dst_port: 80,
        protocol: 6,
        octet_total: octets,
        octet_delta: octets,
        packet_delta: 1,
        ..Head::default()
    };
    let extended = Extended { flow_id: id, ..Extended::absent(Family::V4) };
    Record { head, tail: Arc::new(tail.to_encoded(Family::V4, &mut Cut::default())), extended }
}

/// An API with the test in the place of the flows task.
struct Stage {
    questions: mpsc::Receiver<Question>,
    _trigger: ShutdownTrigger,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = api::bind(&folder.path().join("api.sock")).await.unwrap();
        let (sender, questions) = mpsc::channel(4);
        let (trigger, shutdown) = Shutdown::new();
        let desk = Desk { questions: sender, window: Duration::from_secs(5), extended: true };
        tokio::spawn(api::run(listener, desk, shutdown));
        Self { questions, _trigger: trigger, folder }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("api.sock")
    }
}

struct Client {
    lines: Lines<BufReader<OwnedReadHalf>>,
    _writer: OwnedWriteHalf,
}

impl Client {
    async fn ask(path: &Path, line: &str) -> Self {
        let (reader, mut writer) = UnixStream::connect(path).await.unwrap().into_split();
        writer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        Self { lines: BufReader::new(reader).lines(), _writer: writer }
    }

    async fn request(path: &Path, request: &Request) -> Self {
        Self::ask(path, &serde_json::to_string(request).unwrap()).await
    }

    async fn reply(&mut self) -> Reply {
        serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
    }
}

fn flows(filter: &str, follow: bool, form: Form) -> Request {
    Request::Flows { filter: filter.to_owned(), follow, form }
}

#[tokio::test]
async fn live_flows_are_those_of_the_filter() {
    let mut stage = Stage::set().await;
    let mut client = Client::request(&stage.path(), &flows("ns = prod", false, Form::Row)).await;
    let Some(Question::Live(batches)) = stage.questions.recv().await else { panic!("live flows are asked for") };
    batches.send(vec![record(1, "prod", 10), record(2, "test", 20)]).await.unwrap();
    batches.send(vec![record(3, "prod", 30)]).await.unwrap();
    drop(batches);
    for id in [1, 3] {
        let expected = Row::of(&record(id, "prod", id * 10).owned());
        assert_eq!(client.reply().await, Reply::Row(Box::new(expected)));
    }
    assert_eq!(client.reply().await, Reply::End);
}

#[tokio::test]
async fn records_are_told_by_the_names_of_their_elements() {
    let mut stage = Stage::set().await;
    let mut client = Client::request(&stage.path(), &flows("", true, Form::Record)).await;
    let Some(Question::Follow(follower)) = stage.questions.recv().await else { panic!("records are asked for") };
    assert!(follower.offer(&Arc::new(vec![record(7, "prod", 10)])));
    let Reply::Record(told) = client.reply().await else { panic!("a record is told") };
    let own = record(7, "prod", 10).owned();
    let mut line = Vec::new();
    own.json(true, flow_common::time::Timestamp::ZERO, &mut line);
    assert_eq!(told, serde_json::from_slice::<serde_json::Value>(&line).unwrap());
}

#[tokio::test]
async fn a_client_that_hangs_up_is_forgotten() {
    let mut stage = Stage::set().await;
    let client = Client::request(&stage.path(), &flows("", true, Form::Row)).await;
    let Some(Question::Follow(follower)) = stage.questions.recv().await else { panic!("records are asked for") };
    drop(client);
    let batch = Arc::new(vec![record(1, "prod", 1)]);
    while follower.offer(&batch) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_client_is_told_what_it_missed() {
    let mut stage = Stage::set().await;
    let mut client = Client::request(&stage.path(), &flows("", true, Form::Row)).await;
    let Some(Question::Follow(follower)) = stage.questions.recv().await else { panic!("records are asked for") };
    // Nothing else runs between these offers, so the channel fills.
    let offered = 1_000u64;
    let batch = Arc::new(vec![record(1, "prod", 1)]);
    for _ in 0..offered {
        assert!(follower.offer(&batch));
    }
    let (mut told, mut skipped) = (0, 0);
    while told + skipped < offered {
        match client.reply().await {
            Reply::Row(_) => told += 1,
            Reply::Skipped(count) => skipped = count,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told + skipped, offered);
    assert!(skipped > 0);
}

#[tokio::test(start_paused = true)]
async fn top_ranks_by_traffic_and_forgets_what_is_quiet() {
    let mut stage = Stage::set().await;
    let mut client = Client::request(&stage.path(), &Request::Top { filter: String::new(), rows: 2 }).await;
    let Some(Question::Follow(follower)) = stage.questions.recv().await else { panic!("records are asked for") };
    follower.offer(&Arc::new(vec![record(1, "a", 1_000), record(2, "b", 50_000), record(3, "c", 2_000)]));
    let mut next = async || match client.reply().await {
        Reply::Top(top) => top,
        other => panic!("{other:?}"),
    };
    let full = loop {
        let top = next().await;
        if top.active > 0 {
            break top;
        }
    };
    assert_eq!((full.active, full.bits), (3, 1_600 + 80_000 + 3_200));
    assert_eq!(
        full.rows.iter().map(|ranked| (ranked.row.id, ranked.bits)).collect::<Vec<_>>(),
        [(2, 80_000), (3, 3_200)]
    );
    while next().await.active > 0 {}
}

#[tokio::test]
async fn the_facts_are_those_of_the_moment() {
    let mut stage = Stage::set().await;
    let facts = Facts { node: "node-a".into(), ..Facts::default() };
    let mut client = Client::request(&stage.path(), &Request::Doctor).await;
    let Some(Question::Facts(answer)) = stage.questions.recv().await else { panic!("the facts are asked for") };
    answer.send(Arc::new(facts.clone())).unwrap();
    assert_eq!(client.reply().await, Reply::Doctor(Box::new(facts)));
    assert_eq!(client.reply().await, Reply::End);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_with_a_reason() {
    let stage = Stage::set().await;
    let mut said = Vec::new();
    let long = format!("{{\"flows\":{{\"filter\":\"{}\"}}}}", "x".repeat(20_000));
    let bad = ["", "what?", "{\"flows\":{\"fitler\":\"\"}}", "{\"flows\":{\"filter\":\"verdct = denied\"}}", &long];
    for line in bad {
        match Client::ask(&stage.path(), line).await.reply().await {
            Reply::Error(reason) => said.push(reason),
            other => panic!("{line}: {other:?}"),
        }
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[tokio::test]
async fn only_root_may_open_the_socket_and_only_one_agent_serves_it() {
    let stage = Stage::set().await;
    let mode = std::fs::metadata(stage.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let taken = api::bind(&stage.path()).await.unwrap_err();
    assert!(taken.to_string().starts_with("another agent answers at "), "{taken}");
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_other_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    api::bind(&path).await.unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(api::bind(&file).await.unwrap_err().to_string().contains("set apiSocket to a path"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn a_comparison_is_told_as_it_was_made() {
    let mut stage = Stage::set().await;
    let mut client = Client::ask(&stage.path(), "\"verify\"").await;
    let Some(Question::Verify(answer)) = stage.questions.recv().await else { panic!("a comparison is asked for") };
    let count = Count { outcome: Outcome::Differs, reason: Some(Reason::Fragments), connections: 3 };
    let live = Findings { sums: Sums(vec![count]), ..Findings::default() };
    let report = Report { live, accounting: true, waiting: 2, ..Report::default() };
    answer.send(Box::new(report.clone())).unwrap();
    assert_eq!(client.reply().await, Reply::Verify(Box::new(report)));
    assert_eq!(client.reply().await, Reply::End);
}
