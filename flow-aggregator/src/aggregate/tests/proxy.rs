//! Records handed on one by one.

use crate::aggregate::{
    Aggregate, Settings,
    testing::{EPOCH, destination, settings, source},
};
use crate::input::SessionId;
use flow_common::{
    ipfix::exporter::{self, Session},
    k8s::{Change, Strings, manifest},
    record::{Content, FlowRecord, ProxiedFlow},
    time::Timestamp,
};

fn proxy() -> Aggregate {
    Aggregate::new(&Settings { proxy: true, ..settings() })
}

/// Feeds what an agent of this domain sends.
fn feed(table: &mut Aggregate, domain: u32, records: &[FlowRecord]) {
    let mut session = Session::new(exporter::Settings {
        domain,
        content: Content::Agent,
        extended: true,
        accounting: false,
        message_limit: 65_535,
        template_resend: None,
    });
    session.begin(EPOCH);
    for record in records {
        session.push_record(record).unwrap();
    }
    session.finish();
    let id = SessionId::next();
    table.open(id, [192, 0, 2, 7].into(), false);
    table.feed(id, session.bytes(), 0).unwrap();
}

fn proxied(table: &mut Aggregate) -> Vec<ProxiedFlow> {
    let batch = table.take_batch();
    assert_eq!(batch.content(), Content::Proxied);
    batch.iter().map(|one| ProxiedFlow::decode(one.family, true, one.bytes(true)).unwrap().0).collect()
}

#[test]
fn every_record_leaves_as_it_came_with_its_origin() {
    let mut table = proxy();
    let records = [source(5, 10), source(5, 10), destination(7, 20)];
    feed(&mut table, 0xa, &records);
    let sent = proxied(&mut table);
    assert_eq!(sent.len(), 3, "repeats too");
    for (sent, came) in sent.iter().zip(&records) {
        assert_eq!((sent.head, &sent.tail, sent.extended), (came.head, &came.tail, came.extended));
        assert_eq!((sent.origin.observation_domain, sent.origin.exporter_v4), (0xa, [192, 0, 2, 7].into()));
        assert!(sent.origin.exporter_v6.is_unspecified());
    }
    assert_eq!(sent.iter().map(|flow| flow.origin.direction).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!((table.counts().received, table.counts().exported, table.fill().flows), (3, 3, 0));
}

#[test]
fn the_index_names_both_ends() {
    let mut table = proxy();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: shop, labels: {app: web}}\n\
               spec: {nodeName: node-b}\nstatus: {phase: Running, podIPs: [{ip: 10.0.2.7}]}\n";
    let objects = manifest::parse(pod, manifest::Syntax::Yaml, &mut Strings::default()).unwrap().objects;
    for (object, _) in objects {
        table.change(Change::Apply(object), Timestamp::from_millis(0));
    }
    feed(&mut table, 0xa, &[source(5, 10)]);
    let flow = proxied(&mut table).remove(0);
    assert_eq!((flow.tail.dst_pod.as_str(), flow.tail.dst_node.as_str()), ("server", "node-b"));
    assert_eq!(flow.tail.src_pod, "client", "what the agent said stays");
    assert_eq!((flow.labels.src_labels.as_str(), flow.labels.dst_labels.as_str()), ("", r#"{"app":"web"}"#));
    assert_eq!(flow.origin.direction, 1, "whose half it is does not change with the names");
}

#[test]
fn a_change_of_the_mode_exports_what_was_kept() {
    let mut table = Aggregate::new(&settings());
    feed(&mut table, 0xa, &[source(5, 10)]);
    assert_eq!(table.batched(), 0, "it waits for the other half");
    table.configure(&Settings { proxy: true, ..settings() }, 1);
    let batch = table.take_batch();
    assert_eq!((batch.content(), batch.len(), table.fill().flows), (Content::Joined, 1, 0));
    feed(&mut table, 0xa, &[source(6, 11)]);
    assert_eq!(proxied(&mut table).len(), 1);
    table.configure(&settings(), 2);
    feed(&mut table, 0xa, &[source(7, 12)]);
    assert_eq!((table.batched(), table.fill().flows), (0, 1));
}
