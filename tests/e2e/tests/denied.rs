//! Connections that do not come through: dropped by a rule of one Node or the other, rejected in both ways, refused by nobody
//! listening, unanswered. One joined record each with the packets of all attempts, and what became of them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::joined::listed;
use lab::product::{Product, Settings};
use lab::topology::{CLOSED, DROPPED_PORT, FAMILIES, Family, Host, Node, Pod, Protocol, cluster_ip};
use lab::traffic::{Kind, Outcome, Report, now_ms};
use lab::wait::eventually;

const EXPORTED: Duration = Duration::from_secs(40);

/// Ports that the rules below treat.
const RESET: u16 = 9_901;
const UNREACHABLE: u16 = 9_902;
const DROPPED_BEYOND: u16 = 9_903;
const DEAF: u16 = 9_904;
/// Of a Service, and of the Pod behind it.
const SERVED: u16 = 9_905;
const BEHIND: u16 = 9_906;

/// Two attempts: the second comes after a second.
const CONNECT: Kind = Kind::Connect { patience_ms: 1_500 };

/// What a record must say.
struct Claim {
    report: Report,
    what: &'static str,
    status: u8,
    /// Whether the Nodes drop every packet of the client.
    dropped: bool,
}

fn client() -> Host {
    Host::Pod(Pod::client(Node::A))
}

fn rules(lab: &Lab) -> Result<()> {
    let nft = |host: &Host, rules: &[String]| -> Result<()> {
        let namespace = lab.namespace(host)?;
        rules.iter().try_for_each(|rule| namespace.run("nft", &[rule]).map(drop))
    };
    let forward = |rule: &str| format!("add rule inet rules forward {rule}");
    nft(
        &Host::Node(Node::A),
        &[
            forward(&format!("tcp dport {RESET} reject with tcp reset")),
            forward(&format!("udp dport {UNREACHABLE} reject with icmpx type port-unreachable")),
            forward(&format!("tcp dport {BEHIND} drop")),
            "add table inet served".to_owned(),
            "add chain inet served prerouting { type nat hook prerouting priority -110; }".to_owned(),
            served(Family::V4),
            served(Family::V6),
        ],
    )?;
    nft(&Host::Node(Node::B), &[forward(&format!("tcp dport {DROPPED_BEYOND} drop"))])?;
    nft(
        &Host::External,
        &[
            "add table inet deaf".to_owned(),
            "add chain inet deaf input { type filter hook input priority 0; }".to_owned(),
            format!("add rule inet deaf input tcp dport {DEAF} drop"),
        ],
    )
}

fn served(family: Family) -> String {
    let (ip, behind) = (family.nft(), SocketAddr::new(Pod::server(Node::B).addr(family), BEHIND));
    let service = cluster_ip(family);
    format!("add rule inet served prerouting {ip} daddr {service} tcp dport {SERVED} dnat {ip} to {behind}")
}

fn connect(lab: &Lab, family: Family, to: SocketAddr, outcome: Outcome) -> Result<Report> {
    let report = lab.ask(&client(), CONNECT, lab.client(&client(), family, Node::B), to)?;
    ensure!(report.outcome == outcome, "{outcome:?} expected: {report:?}");
    Ok(report)
}

/// A datagram that is answered by an ICMP error: to its sender that is a failure.
fn datagram(lab: &Lab, family: Family, to: SocketAddr) -> Result<Report> {
    let from = lab.client(&client(), family, Node::B);
    let report = Report::new(Protocol::Udp, from, to);
    let kind = Kind::Echo { protocol: Protocol::Udp, exchanges: 1, bytes: 100 };
    ensure!(lab.ask(&client(), kind, from, to).is_err(), "{to} answers");
    Ok(Report { ended_ms: now_ms(), ..report })
}

fn claims(lab: &Lab, family: Family) -> Result<Vec<Claim>> {
    let at = |host: Host, port| SocketAddr::new(host.addr(family), port);
    let server = |port| at(Host::Pod(Pod::server(Node::B)), port);
    let claim = |what, report, status, dropped| Claim { report, what, status, dropped };
    Ok(vec![
        claim("dropped", connect(lab, family, server(DROPPED_PORT), Outcome::Unanswered)?, 130, true),
        claim("dropped beyond", connect(lab, family, server(DROPPED_BEYOND), Outcome::Unanswered)?, 130, true),
        claim(
            "dropped behind a Service",
            connect(lab, family, SocketAddr::new(cluster_ip(family), SERVED), Outcome::Unanswered)?,
            130,
            true,
        ),
        claim("reset", connect(lab, family, server(RESET), Outcome::Refused)?, 129, true),
        claim("unreachable", datagram(lab, family, server(UNREACHABLE))?, 129, true),
        claim("nobody listens", connect(lab, family, server(CLOSED.target), Outcome::Refused)?, 129, false),
        claim("unanswered", connect(lab, family, at(Host::External, DEAF), Outcome::Unanswered)?, 0, false),
    ])
}

fn holds(lab: &Lab, product: &Product<'_>, claim: &Claim) -> Result<()> {
    let report = &claim.report;
    let [sent, answered] = lab.truth()?.both_ways(&client(), report.direction())?;
    ensure!(sent.packets > 0, "nft counted nothing");
    let records = product.joined().of_client(report.protocol, report.from)?;
    let last = records.last().context("no joined flow")?;
    let all = || listed(&records);
    ensure!(last.totals() == [sent, answered], "nft counted {sent:?} {answered:?}: {}", all());
    ensure!(
        last.forwarding_status == claim.status,
        "verdict {}, not {}: {}",
        last.forwarding_status,
        claim.status,
        all()
    );
    let dropped = if claim.dropped { sent.packets } else { 0 };
    let counted = last.dropped_packet_total_count;
    let is_right = counted <= dropped && counted + product.missed_drops()? >= dropped;
    ensure!(is_right, "dropped {counted}: {last:#?}");
    // What the other Node dropped, this one's half sees as unanswered.
    if claim.status != 0 && claim.report.to.port() != DROPPED_BEYOND {
        ensure!((last.flow_end_reason, last.tcp_state.as_str()) == (3, ""), "{last:#?}");
    }
    ensure!(last.source_pod_name == Pod::client(Node::A).name, "{last:#?}");
    ensure!(records.iter().all(|record| record.flow_id == last.flow_id), "more than one flow: {}", all());
    Ok(())
}

#[test]
fn what_does_not_come_through_says_why() -> Result<()> {
    let lab = Lab::new()?;
    rules(&lab)?;
    let product = Product::start(&lab, Settings::default())?;
    let claims: Vec<Claim> = FAMILIES
        .into_iter()
        .map(|family| claims(&lab, family))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    eventually(EXPORTED, || {
        let failed = claims.iter().filter_map(|claim| {
            holds(&lab, &product, claim).err().map(|error| format!("{} {}: {error:#}", claim.what, claim.report.to))
        });
        let failed: Vec<String> = failed.collect();
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    })
    .map_err(|error| product.with_logs(error))?;
    let shown = product.agent_cli(Node::A, &["drops"])?;
    for word in ["NETFILTER_DROP", "rule", "dropped", "rejected"] {
        ensure!(shown.contains(word), "no {word}:\n{shown}");
    }
    Ok(())
}
