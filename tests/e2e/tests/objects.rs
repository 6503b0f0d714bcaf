//! Interfaces and manifests that come, change and go while the agents run. One lab for all tests.

use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Lab;
use lab::joined::{Record, listed};
use lab::product::{Product, Settings};
use lab::topology::{Family, Host, Node, Pod, Protocol, TALK};
use lab::traffic::{Kind, Report};
use lab::wait::eventually;

static LAB: LazyLock<Lab> = LazyLock::new(|| Lab::new().unwrap_or_else(|error| panic!("no lab: {error:#}")));
static PRODUCT: LazyLock<Product<'static>> =
    LazyLock::new(|| Product::start(&LAB, Settings::default()).unwrap_or_else(|error| panic!("{error:#}")));

/// Both tests write manifests.
static TURN: Mutex<()> = Mutex::new(());

const EXPORTED: Duration = Duration::from_secs(30);
/// An interface is attached within a second; the agent publishes what it knows once a second.
const ATTACHED: Duration = Duration::from_millis(2_500);

/// A Pod of node-a asks one of node-b.
fn talk(server: &Pod) -> Result<Report> {
    let client = Host::Pod(Pod::client(Node::A));
    let from = LAB.client(&client, Family::V4, Node::B);
    let to = SocketAddr::new(server.addr(Family::V4), TALK.target);
    LAB.ask(&client, Kind::Echo { protocol: Protocol::Tcp, exchanges: 3, bytes: 30 }, from, to)
}

fn joined(report: &Report, wanted: impl Fn(&Record) -> bool) -> Result<()> {
    eventually(EXPORTED, || {
        let records = PRODUCT.joined().of_client(report.protocol, report.from)?;
        ensure!(records.last().is_some_and(&wanted), "not as wanted: {}", listed(&records));
        Ok(())
    })
    .map_err(|error| PRODUCT.with_logs(error))
}

#[test]
fn a_pod_s_interface_is_attached_within_a_second_and_its_flows_are_named() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&PRODUCT);
    let pod = Pod::late(Node::B, 20);
    LAB.add_pod(&pod)?;
    let plugged = Instant::now();
    eventually(ATTACHED, || {
        let interfaces = PRODUCT.facts(Node::B)?.interfaces;
        let attached = interfaces.iter().any(|it| it.name == pod.veth() && it.attached.is_some());
        ensure!(attached, "{} is not attached after {:?}: {interfaces:?}", pod.veth(), plugged.elapsed());
        Ok(())
    })
    .map_err(|error| PRODUCT.with_logs(error))?;
    for node in Node::ALL {
        eventually(EXPORTED, || {
            let pods = PRODUCT.facts(node)?.objects.pods;
            ensure!(pods == 7, "{} knows {pods} Pods", node.name());
            Ok(())
        })?;
    }
    let report = talk(&pod)?;
    // A last acknowledgement may be counted a moment later.
    let counted = || LAB.truth()?.both_ways(&Host::Pod(Pod::client(Node::A)), report.direction());
    joined(&report, |record| {
        record.destination_pod_name == pod.name && counted().is_ok_and(|counted| record.totals() == counted)
    })?;
    LAB.remove_pod(&pod)?;
    eventually(EXPORTED, || {
        let interfaces = PRODUCT.facts(Node::B)?.interfaces;
        // What it counted stays in the sums.
        let attached = interfaces.iter().any(|it| it.name == pod.veth() && it.attached.is_some());
        ensure!(!attached, "{} is gone, but attached", pod.veth());
        Ok(())
    })
}

#[test]
fn a_changed_manifest_names_anew_and_a_bad_one_is_refused() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&PRODUCT);
    let pod = Pod::third(Node::B);
    LAB.write_manifest("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [broken\n")?;
    eventually(EXPORTED, || {
        let refused = PRODUCT.facts(Node::B)?.objects.refused;
        let named = refused.iter().any(|reason| reason.contains("bad.yaml:"));
        ensure!(named, "the bad file is not named with its line: {refused:?}");
        Ok(())
    })
    .map_err(|error| PRODUCT.with_logs(error))?;
    // The other files' objects are still there.
    joined(&talk(&pod)?, |record| record.destination_pod_name == pod.name)?;

    let pods = std::fs::read_to_string(LAB.objects().join("pods.yaml"))?;
    LAB.write_manifest("pods.yaml", &pods.replace("ip: \"10.244.2.12\"", "ip: \"10.244.2.999\""))?;
    eventually(EXPORTED, || {
        let refused = PRODUCT.facts(Node::B)?.objects.refused;
        ensure!(refused.iter().any(|reason| reason.contains("pods.yaml:")), "{refused:?}");
        Ok(())
    })?;
    // What the bad version replaces stays as it was.
    joined(&talk(&pod)?, |record| record.destination_pod_name == pod.name)?;

    LAB.write_manifest("pods.yaml", &pods.replace("name: third-b", "name: renamed-b"))?;
    eventually(EXPORTED, || {
        let objects = PRODUCT.facts(Node::B)?.objects;
        ensure!(!objects.refused.iter().any(|reason| reason.contains("pods.yaml")), "{objects:?}");
        Ok(())
    })?;
    joined(&talk(&pod)?, |record| record.destination_pod_name == "renamed-b")
}
