//! Tables: what cannot be used is named, what is there is brought forward, what is old makes room, and what is there twice is
//! removed as documented.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flow_aggregator::sinks::clickhouse::{Endpoint, Login, Room, Server, Settings};
use flow_aggregator::sinks::{ClickHouseSink, Sink};
use flow_common::net::Trust;
use flow_common::record::FlowRecord;
use interop::wait::eventually;
use interop::{Age, Certificates, ClickHouse, PATIENCE, Relay};

use crate::aggregator::{Agent, Aggregator, record, until_stored};

/// A sink of its own.
fn sink(url: &str, user: &str, password: &str, database: &str, ttl: u64) -> Result<ClickHouseSink> {
    let login = Login { database: database.into(), user: user.into(), password: password.into() };
    Ok(settings(Server { endpoint: Endpoint::parse(url)?, login, trust: Trust::System, debug: false }, ttl))
}

fn settings(server: Server, ttl: u64) -> ClickHouseSink {
    ClickHouseSink::new(Settings {
        server,
        cluster: None,
        cluster_uuid: String::new(),
        compress: true,
        interval: Duration::from_secs(1),
        ttl: Some(Duration::from_secs(ttl)),
        room: Room::default(),
        extended: true,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_unless_told_otherwise() -> Result<()> {
    let [ours, others] = [Certificates::new()?, Certificates::new()?];
    let server = ClickHouse::start(Age::Modern, &ours)?;
    let relay = Relay::start(server.addr("http"), Some(&ours)).await?;
    for (trust, good) in [
        (Trust::Ca(ours.path("ca.crt")), true),
        (Trust::Ca(others.path("ca.crt")), false),
        (Trust::System, false),
        (Trust::Anyone, true),
    ] {
        let login = Login { database: "default".into(), user: "default".into(), password: String::new() };
        let endpoint = Endpoint::parse(&format!("https://{}", relay.addr))?;
        let server = Server { endpoint, login, trust: trust.clone(), debug: false };
        match settings(server, 3_600).open().await {
            Ok(()) => ensure!(good, "{trust:?} is enough"),
            Err(error) => {
                let said = error.to_string();
                ensure!(!good && said.contains("Its certificate is of another CA"), "{trust:?}: {said}");
            }
        }
    }
    let missing = Trust::Ca("/nowhere/ca.crt".into());
    let login = Login { database: "default".into(), user: "default".into(), password: String::new() };
    let endpoint = Endpoint::parse("tls://localhost")?;
    let said = settings(Server { endpoint, login, trust: missing, debug: false }, 1).open().await;
    let said = said.err().context("no CA")?.to_string();
    ensure!(said.contains("cannot read /nowhere/ca.crt"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_with_server_code_and_remedy() -> Result<()> {
    let certificates = Certificates::new()?;
    for age in [Age::Modern, Age::Old] {
        let mut server = ClickHouse::start(age, &certificates)?;
        let [tcp, http] = ["tcp", "http"].map(|scheme| format!("{scheme}://{}", server.addr(scheme)));
        let crossed = [format!("tcp://{}", server.addr("http")), format!("http://{}", server.addr("tcp"))];
        let (refused, unknown) = if age == Age::Modern { ("code 516", "code 516") } else { ("code 193", "code 192") };
        for (url, user, password, database, words) in [
            (&tcp, "flow", "wrong", "default", [refused, "CH_USERNAME and CH_PASSWORD"]),
            (&http, "flow", "wrong", "default", [refused, "CH_USERNAME and CH_PASSWORD"]),
            (&tcp, "nobody", "", "default", [unknown, "CH_USERNAME"]),
            (&tcp, "flow", "s3cret & more", "missing", ["code 81", "clickHouse.database"]),
            (&http, "flow", "s3cret & more", "missing", ["code 81", "clickHouse.database"]),
            (&crossed[0], "default", "", "default", ["9000", "9440"]),
            (&crossed[1], "default", "", "default", ["is for clickhouse-client", "for HTTP"]),
        ] {
            let error = sink(url, user, password, database, 3_600)?.open().await;
            let said =
                error.err().map(|error| error.to_string()).with_context(|| format!("{url} {user} {database}"))?;
            ensure!(
                said.starts_with(url.as_str()) && words.iter().all(|word| said.contains(word)),
                "{age:?} {user}@{database}: {said}"
            );
            // A login refused by the native protocol is one of the things that end libchdb's server: see `revive`.
            if age == Age::Modern && url == &tcp {
                server.kill();
                server.start_again()?;
            }
        }
        for url in [&tcp, &http] {
            sink(url, "flow", "s3cret & more", "default", 3_600)?.open().await?;
        }
        server.ask("INSERT INTO flows_schema (version, product) VALUES (7, 'later')")?;
        let said =
            sink(&tcp, "default", "", "default", 3_600)?.open().await.err().context("a later version")?.to_string();
        ensure!(said.contains("schema version 7") && said.contains("versions up to 1"), "{said}");
        server.ask("CREATE DATABASE other")?;
        let engine = "MergeTree ORDER BY timeInserted";
        server.ask(&format!("CREATE TABLE other.flows (timeInserted DateTime, sourceIP UInt32) ENGINE = {engine}"))?;
        let said =
            sink(&http, "default", "", "other", 3_600)?.open().await.err().context("a foreign table")?.to_string();
        ensure!(said.contains("table flows is of a foreign layout") && said.contains("RENAME TABLE"), "{said}");
        server.ask("CREATE DATABASE spanning")?;
        let engine = "Distributed('test', 'default', 'flows', rand())";
        server.ask(&format!("CREATE TABLE spanning.flows (timeInserted DateTime) ENGINE = {engine}"))?;
        let said =
            sink(&http, "default", "", "spanning", 3_600)?.open().await.err().context("a cluster's")?.to_string();
        ensure!(said.contains("clickHouse.cluster is not set"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_are_enough() -> Result<()> {
    let mut server = ClickHouse::start(Age::Modern, &Certificates::new()?)?;
    // Those of the server's users.xml, which knows the user by the name that the documentation gives it.
    let documented = include_str!("../../../../docs/clickhouse.md");
    let rights = include_str!("../../src/clickhouse/users.xml").split("<query>").skip(1);
    for right in rights.filter_map(|rest| rest.split("</query>").next()) {
        ensure!(documented.contains(&format!("{right} TO flow_aggregator;")), "{right} is not documented");
    }
    server.ask("CREATE DATABASE flow_visibility")?;
    for scheme in ["tcp", "http"] {
        let url = format!("{scheme}://{}", server.addr(scheme));
        let login = [("CH_USERNAME", "flow_aggregator"), ("CH_PASSWORD", "right")];
        let settings = format!(
            "clickHouse: {{enable: true, commitInterval: 1s, database: flow_visibility, databaseURL: \"{url}\", \
             retention: {{maxBytes: 1TiB}}}}\n"
        );
        let aggregator = interop::Aggregator::start(&settings, &login)?;
        let flows = if scheme == "tcp" { 10 } else { 20 };
        Agent::connect(aggregator.addr).await?.send((0..flows).map(record)).await?;
        until_stored(&mut server, "flow_visibility.flows", flows.into()).with_context(|| aggregator.log())?;
        // Room is looked at after a commit, and before the end.
        let log = aggregator.end()?;
        ensure!(!log.contains("cannot be dropped"), "{log}");
        // Another limit of age changes the tables.
        sink(&url, "flow_aggregator", "right", "flow_visibility", 7_200)?.open().await?;
    }
    Ok(())
}

/// Antrea's table, as version 1.6 makes it.
const OF_ANTREA: &str = "timeInserted DateTime DEFAULT now(), flowStartSeconds DateTime, flowEndSeconds DateTime, \
    flowEndSecondsFromSourceNode DateTime, flowEndSecondsFromDestinationNode DateTime, flowEndReason UInt8, sourceIP String, \
    destinationIP String, sourceTransportPort UInt16, destinationTransportPort UInt16, protocolIdentifier UInt8, \
    packetTotalCount UInt64, octetTotalCount UInt64, packetDeltaCount UInt64, octetDeltaCount UInt64, \
    reversePacketTotalCount UInt64, reverseOctetTotalCount UInt64, reversePacketDeltaCount UInt64, \
    reverseOctetDeltaCount UInt64, sourcePodName String, sourcePodNamespace String, sourceNodeName String, \
    destinationPodName String, destinationPodNamespace String, destinationNodeName String, destinationClusterIP String, \
    destinationServicePort UInt16, destinationServicePortName String, ingressNetworkPolicyName String, \
    ingressNetworkPolicyNamespace String, ingressNetworkPolicyRuleName String, ingressNetworkPolicyRuleAction UInt8, \
    ingressNetworkPolicyType UInt8, egressNetworkPolicyName String, egressNetworkPolicyNamespace String, \
    egressNetworkPolicyRuleName String, egressNetworkPolicyRuleAction UInt8, egressNetworkPolicyType UInt8, tcpState String, \
    flowType UInt8, sourcePodLabels String, destinationPodLabels String, throughput UInt64, reverseThroughput UInt64, \
    throughputFromSourceNode UInt64, throughputFromDestinationNode UInt64, reverseThroughputFromSourceNode UInt64, \
    reverseThroughputFromDestinationNode UInt64, trusted UInt8 DEFAULT 0";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_antreas_is_brought_forward() -> Result<()> {
    let certificates = Certificates::new()?;
    for age in [Age::Modern, Age::Old] {
        let server = ClickHouse::start(age, &certificates)?;
        server.ask(&format!(
            "CREATE TABLE flows ({OF_ANTREA}) ENGINE = MergeTree ORDER BY (timeInserted, flowEndSeconds)"
        ))?;
        let insert = "INSERT INTO flows (sourceIP, octetDeltaCount) VALUES ('192.0.2.1', 42)";
        server.ask(insert)?;
        let aggregator = Aggregator::start(&format!("databaseURL: \"tcp://{}\"", server.addr("tcp")), "").await?;
        aggregator.agent().await?.send((0..10).map(record)).await?;
        aggregator.until("delivered_total", 10)?;
        aggregator.stop().await?;
        // What wrote before writes on.
        server.ask(insert)?;
        ensure!(server.ask("SELECT count(), countIf(flowId = 0), sum(octetDeltaCount) FROM flows")? == "12\t2\t5584");
        ensure!(server.ask("SELECT sum(octetDeltaCount) FROM flows_node_view")? == "5542");
        ensure!(server.number("SELECT max(version) FROM flows_schema")? == 1);
        if age == Age::Modern {
            let made = server.ask("SELECT create_table_query FROM system.tables WHERE name = 'flows'")?;
            ensure!(made.contains("TTL timeInserted + toIntervalSecond(43200)"), "{made}");
            ensure!(made.contains("non_replicated_deduplication_window = 1000"), "{made}");
            // It has no partitions, so that no part of it would ever be too old as a whole.
            ensure!(made.contains("ttl_only_drop_parts = 0"), "{made}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_partitions_make_room_and_ages_follow_the_configuration() -> Result<()> {
    let certificates = Certificates::new()?;
    for age in [Age::Modern, Age::Old] {
        let server = ClickHouse::start(age, &certificates)?;
        let url = format!("tcp://{}", server.addr("tcp"));
        sink(&url, "default", "", "default", 12 * 3_600)?.open().await?;
        // Random names, which no compression makes small: some megabytes an hour. All by one clock, so that each hour has
        // a partition of its own however long this takes.
        let hour = server.number("SELECT toString(toUInt32(toStartOfHour(now())))")?;
        for hours in [1, 2, 8] {
            server.ask(&format!(
                "INSERT INTO flows (timeInserted, httpVals) SELECT toDateTime({hour} - {hours} * 3600), toString(sipHash64(number)) FROM numbers(200000)"
            ))?;
        }
        let bytes = server.number(
            "SELECT toString(sum(bytes_on_disk)) FROM system.parts WHERE active AND table = 'flows' AND rows > 0",
        )?;
        let settings = format!("databaseURL: \"{url}\", ttl: 24h, retention: {{maxBytes: {}}}", bytes / 2);
        let aggregator = Aggregator::start(&settings, "").await?;
        aggregator.agent().await?.send((0..10).map(record)).await?;
        aggregator.until("delivered_total", 10)?;
        aggregator.stop().await?;
        let left = server.ask(&format!(
            "SELECT intDiv({hour} - toUInt32(timeInserted), 3600) AS hours, count() FROM flows WHERE flowId = 0 GROUP BY hours ORDER BY hours"
        ))?;
        ensure!(left == "1\t200000", "rows of these hours are left: {left:?}");
        if age == Age::Modern {
            let made = server.ask("SELECT create_table_query FROM system.tables WHERE name = 'pod_view_table'")?;
            ensure!(made.contains("TTL timeInserted + toIntervalSecond(86400)"), "{made}");
            // No part of the disk is so small as this one.
            for (fraction, left) in [("1", 20), ("0.000000001", 0)] {
                let settings = format!("databaseURL: \"{url}\", ttl: 24h, retention: {{maxFraction: {fraction}}}");
                let aggregator = Aggregator::start(&settings, "").await?;
                aggregator.agent().await?.send((10..20).map(record)).await?;
                aggregator.until("delivered_total", 10)?;
                aggregator.stop().await?;
                let count = server.number("SELECT toString(countIf(httpVals = '' OR flowId != 0)) FROM flows")?;
                ensure!(count == left, "{count} rows with maxFraction {fraction}");
            }
        }
        // An old server knows no limit of age by itself.
        if age == Age::Old {
            server.ask("INSERT INTO flows (timeInserted) SELECT now() - 3 * 3600 FROM numbers(10)")?;
            let aggregator = Aggregator::start(&format!("databaseURL: \"{url}\", ttl: 2h"), "").await?;
            aggregator.agent().await?.send((10..20).map(record)).await?;
            aggregator.until("delivered_total", 10)?;
            aggregator.stop().await?;
            ensure!(server.number("SELECT count() FROM flows WHERE timeInserted < now() - 2 * 3600 - 3600")? == 0);
        }
    }
    Ok(())
}

/// The documentation's statements that find and remove rows that are there more than once.
pub(crate) fn documented() -> Result<[String; 2]> {
    let text = include_str!("../../../../docs/clickhouse.md");
    let statements = text.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).map(str::trim);
    let all: Vec<String> = statements.map(str::to_owned).collect();
    all.try_into().map_err(|all| anyhow::anyhow!("two statements are expected: {all:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_after_the_aggregator_was_killed_are_found_and_removed_as_documented() -> Result<()> {
    let certificates = Certificates::new()?;
    for age in [Age::Modern, Age::Old] {
        let server = ClickHouse::start(age, &certificates)?;
        let settings = format!("databaseURL: \"tcp://{}\"", server.addr("tcp"));
        // A second life knows nothing of the first's flows, and gets the ended ones of the agents' spools again.
        for (life, flows) in [(1, 0..100), (2, 60..140)] {
            let aggregator = Aggregator::start(&settings, "").await?;
            let count = flows.len() as u64;
            // What the first life told of already, the second one's report does not tell again.
            let told = |mut record: FlowRecord| {
                if life == 2 && record.head.packet_total <= 100 {
                    record.head.set_deltas([0; 4]);
                }
                record
            };
            aggregator.agent().await?.send(flows.map(record).map(told)).await?;
            aggregator.until("delivered_total", count)?;
            aggregator.stop().await?;
        }
        let [find, remove] = documented()?;
        ensure!(server.ask(&find)?.lines().count() == 40, "{}", server.ask(&find)?);
        server.ask(&remove)?;
        eventually(PATIENCE, || {
            let left = server.number("SELECT toString(count()) FROM system.mutations WHERE NOT is_done")?;
            ensure!(left == 0, "the mutation is not done");
            Ok(())
        })?;
        ensure!(server.ask(&find)?.is_empty(), "{}", server.ask(&find)?);
        let octets: u64 = (0..140).map(|flow| (flow + 1) * 100).sum();
        let left =
            server.ask("SELECT count(), uniqExact(flowId), sum(octetTotalCount), sum(octetDeltaCount) FROM flows")?;
        ensure!(left == format!("140\t140\t{octets}\t{octets}"), "{age:?}: {left}");
    }
    Ok(())
}
