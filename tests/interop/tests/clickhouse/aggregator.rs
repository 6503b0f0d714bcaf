//! The aggregator in this process, agents that send to it, and what they send.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use flow_aggregator::config;
use flow_aggregator::pipeline::Pipeline;
use flow_common::daemon::{LogLevel, Shutdown, ShutdownTrigger};
use flow_common::ipfix::exporter::{Session, Settings};
use flow_common::net::{Address, Connection, Protocol, connect};
use flow_common::record::{Content, EndReason, Extended, FlowRecord, FlowType, ForwardingStatus, Head, Tail, TcpState};
use interop::wait::eventually;
use interop::{ClickHouse, PATIENCE, clickhouse_metric, configuration};
use tokio::task::JoinHandle;

/// 2024-01-01T00:00:00Z.
const NOW: u32 = 1_704_067_200;

/// An aggregator of this process.
pub(crate) struct Aggregator {
    addr: SocketAddr,
    admin: SocketAddr,
    trigger: ShutdownTrigger,
    task: JoinHandle<Result<()>>,
}

impl Aggregator {
    /// With these settings of `clickHouse`, and further ones.
    pub(crate) async fn start(clickhouse: &str, further: &str) -> Result<Aggregator> {
        let text =
            configuration(&format!("{further}\nclickHouse: {{enable: true, commitInterval: 1s, {clickhouse}}}\n"));
        let config = config::read("test.conf", &text)?.settings;
        let pipeline = Pipeline::bind(config, LogLevel::unused("info")).await?;
        let (addr, admin) = (pipeline.listens()?, pipeline.admin().context("no admin port")?);
        let (trigger, shutdown) = Shutdown::new();
        Ok(Aggregator { addr, admin, trigger, task: tokio::spawn(pipeline.run(shutdown)) })
    }

    pub(crate) async fn agent(&self) -> Result<Agent> {
        Agent::connect(self.addr).await
    }

    /// A metric of the sink.
    pub(crate) fn sink(&self, metric: &str) -> Result<u64> {
        clickhouse_metric(self.admin, metric)
    }

    /// Waits until a metric of the sink is at least so much.
    pub(crate) fn until(&self, metric: &str, value: u64) -> Result<()> {
        eventually(PATIENCE, || {
            let at = self.sink(metric)?;
            ensure!(at >= value, "{metric} is {at} and not {value}");
            Ok(())
        })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.trigger.request();
        tokio::time::timeout(PATIENCE, self.task).await???;
        Ok(())
    }
}

/// Waits until so many flows have a row.
pub(crate) fn until_stored(server: &mut ClickHouse, table: &str, flows: u64) -> Result<()> {
    let stored = format!("SELECT toString(uniqExact(flowId)) FROM {table}");
    eventually(PATIENCE, || {
        server.revive()?;
        let rows = server.number(&stored)?;
        ensure!(rows >= flows, "{rows} of {flows} flows have a row");
        Ok(())
    })
}

pub(crate) struct Agent {
    connection: Connection,
    session: Session,
}

impl Agent {
    pub(crate) async fn connect(aggregator: SocketAddr) -> Result<Agent> {
        let connection = connect(&Address::parse(&format!("{aggregator}:tcp"), Protocol::Tcp)?, None).await?;
        let mut session = Session::new(Settings {
            domain: 7,
            content: Content::Agent,
            extended: true,
            accounting: false,
            message_limit: connection.message_limit(),
            template_resend: None,
        });
        session.begin(NOW);
        Ok(Agent { connection, session })
    }

    pub(crate) async fn send(&mut self, records: impl IntoIterator<Item = FlowRecord>) -> Result<()> {
        for record in records {
            self.session.push_record(&record)?;
        }
        self.session.finish();
        self.connection.send(self.session.bytes()).await?;
        self.connection.flush().await?;
        self.session.clear();
        Ok(())
    }
}

/// A connection to outside that is over, different in every field from those of other numbers.
pub(crate) fn record(number: u32) -> FlowRecord {
    let mut head = Head {
        start_seconds: NOW + number % 1_000,
        end_seconds: NOW + number % 1_000 + 5,
        end_reason: EndReason::End,
        src_port: (number % 60_000) as u16 + 1,
        dst_port: 443,
        protocol: 6,
        src_addr: [10, 10, (number >> 8) as u8, number as u8].into(),
        dst_addr: [203, 0, (number / 60_000) as u8, 7].into(),
        ..Head::default()
    };
    if number % 3 == 2 {
        head.src_addr = [0xfd00, 0x10, 0, 0, 0, 0, (number >> 16) as u16, number as u16].into();
        head.dst_addr = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into();
    }
    let number64 = u64::from(number);
    head.set_totals([number64 + 1, (number64 + 1) * 100, number64 + 2, (number64 + 2) * 1_000]);
    head.set_deltas(head.totals());
    let tail = Tail {
        src_pod: format!("client-{}", number % 50),
        src_namespace: "shop".into(),
        src_node: format!("node-{}", number % 2),
        service: if number.is_multiple_of(5) { "shop/ä \"quoted\" \\ 'web':http".into() } else { String::new() },
        service_port: 80,
        egress_policy: "default-\tdeny\n".into(),
        egress_action: 1.into(),
        egress_policy_type: 1.into(),
        tcp_state: TcpState::Closed,
        flow_type: FlowType::ToExternal,
        service_addr: head.dst_addr,
        http: if number.is_multiple_of(7) {
            format!(r#"{{"0":{{"hostname":"h{number}","status":200}}}}"#)
        } else {
            String::new()
        },
        ..Tail::default()
    };
    let extended = Extended {
        start_milliseconds: u64::from(head.start_seconds) * 1_000 + number64 % 1_000,
        end_milliseconds: u64::from(head.end_seconds) * 1_000 + number64 % 1_000,
        tcp_flags: 0x1b,
        reverse_tcp_flags: 0x13,
        flow_id: (number64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        dropped_packets: number64 % 4,
        forwarding_status: ForwardingStatus::Forwarded,
        nat_src_addr: head.family().unspecified(),
        ..Extended::default()
    };
    FlowRecord { head, tail, extended }
}
