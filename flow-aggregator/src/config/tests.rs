//! The file as a whole: what is taken, what is refused, and that documentation and printing are true.

use super::{value::fnv1, *};
use insta::assert_snapshot;

const TLS: &str = "tls: {ca: ca.crt, cert: server.crt, key: server.key}\n";

fn said(text: &str) -> String {
    read("flow-aggregator.conf", text).unwrap_err().to_string()
}

#[test]
fn the_documentation_is_that_of_the_declaration() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/aggregator-config.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, documentation()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, documentation(), "run `UPDATE_DOCS=1 cargo test -p flow-aggregator documentation`");
}

#[test]
fn printed_settings_read_back() {
    let text = format!(
        "{TLS}clusterUUID: 3f1c9e52-7a01-4b7e-9d57-0123456789ab\nflowCollector:\n  enable: true\n  address: \"[::1]:2055:udp\"\n  observationDomainID: 7\n  recordFormat: json\n"
    );
    let config = read("flow-aggregator.conf", &text).unwrap().settings;
    let printed = config::print(&config);
    assert_snapshot!(printed);
    assert_eq!(read("flow-aggregator.conf", &printed).unwrap().settings, config);
}

#[test]
fn keys_of_older_versions_are_taken() {
    let text =
        format!("{TLS}externalFlowCollectorAddr: 192.0.2.7:4739:udp\nflowExportInterval: 30s\nrecordFormat: JSON\n");
    let loaded = read("flow-aggregator.conf", &text).unwrap();
    assert_eq!(loaded.settings.active_timeout, Duration::from_secs(30));
    assert_eq!(loaded.settings.record_format, RecordFormat::Json);
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_snapshot!(warnings.join("\n"));
}

#[test]
fn faults_name_key_and_remedy() {
    assert_snapshot!(said(concat!(
        "activeFlowRecordTimeout: 10ms\ncorrelationTimeout: 2m\naggregatorTransportProtocol: sctp\nflowColector:\n  enable: true\n",
        "flowCollector:\n  enable: true\n  adress: x\n  recordFormat: CSV\nmaxFlows: 3\nsessionIdleTimeout: 1ms\nsinkQueue: 0\nclusterUUID: 12-34\n",
    )));
    assert_snapshot!(said(&format!("{TLS}flowCollector: {{enable: true, address: \"192.0.2.7:4739:tls\"}}\n")));
    assert_snapshot!(said(&format!("{TLS}flowCollector: {{enable: true, address: \"a/b:4739\"}}\n")));
    assert_snapshot!(said("aggregatorTransportProtocol: tls\n"));
}

#[test]
fn the_domain_is_configured_or_made_of_the_cluster() {
    let domain = |text: &str| read("flow-aggregator.conf", &format!("{TLS}{text}")).unwrap().settings.domain();
    assert_eq!(domain(""), None);
    // Published values of FNV-1.
    assert_eq!(fnv1(&[]), 0x811c_9dc5);
    assert_eq!(fnv1(b"a"), 0x050c_5d7e);
    let uuid = "clusterUUID: 00000000-0000-0000-0000-000000000000\n";
    assert_eq!(domain(uuid), Some(fnv1(&[0; 16])));
    assert_eq!(domain(&format!("{uuid}flowCollector: {{observationDomainID: 42}}\n")), Some(42));
}

fn warned(text: &str) -> String {
    let warnings = read("flow-aggregator.conf", text).unwrap().warnings;
    warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What Antrea's aggregator has by default, less its ClickHouse section.
const EXAMPLE: &str = "activeFlowRecordTimeout: 60s
inactiveFlowRecordTimeout: 90s
aggregatorTransportProtocol: \"tls\"
flowAggregatorAddress: \"\"
recordContents:
  podLabels: false
apiServer:
  apiPort: 10348
  tlsCipherSuites: \"\"
  tlsMinVersion: \"\"
flowCollector:
  enable: false
  address: \"\"
  #observationDomainID:
  recordFormat: \"IPFIX\"
";

#[test]
fn a_file_of_another_aggregators_defaults_is_the_defaults() {
    let mut loaded = read("flow-aggregator.conf", &format!("{TLS}{EXAMPLE}")).unwrap();
    assert_eq!(loaded.warnings, []);
    (loaded.settings.tls_ca, loaded.settings.tls_cert, loaded.settings.tls_key) = (None, None, None);
    assert_eq!(loaded.settings, Config::default());
}

#[test]
fn an_old_file_without_a_switch_sends_to_its_collector() {
    let sends = |text: &str| {
        let config = read("flow-aggregator.conf", &format!("{TLS}{text}")).unwrap().settings;
        config.collector_address().is_some()
    };
    assert!(sends("externalFlowCollectorAddr: 192.0.2.7:4739:udp\n"));
    assert!(!sends("externalFlowCollectorAddr: 192.0.2.7:4739:udp\nflowCollector: {enable: false}\n"));
    assert!(!sends("flowCollector: {address: \"192.0.2.7:4739\"}\n"));
}

#[test]
fn keys_that_belong_together_are_checked() {
    let collector = "flowCollector: {enable: true, address: \"192.0.2.7:4739:udp\", tls: {enable: true, cert: a}}\n";
    let further = concat!(
        "apiServer: {tlsKey: b, tlsMinVersion: VersionTLS14, tlsCipherSuites: TLS_RSA_WITH_RC4_128_SHA}\n",
        "mode: Both\nflowLogger:\n  enable: true\n  maxSize: 0\n  recordFormat: XML\n  filters:\n",
        "    - ingressNetworkPolicyRuleActions: [Drop, Deny]\n",
        "s3Uploader: {enable: true, bucketName: flows}\n",
    );
    assert_snapshot!(said(&format!("{TLS}{collector}{further}")));
    let secrets = "flowCollector: {tls: {caSecretName: flows-ca}, maxIPFIXMsgSize: 100, templateRefreshTimeout: 0s}\n";
    assert_snapshot!(said(&format!("{TLS}{secrets}")));
}

#[test]
fn what_has_no_effect_is_said() {
    let text = concat!(
        "flowCollector: {tls: {ca: ca.crt}}\napiServer: {tlsMinVersion: VersionTLS10}\n",
        "flowLogger: {enable: true, maxSize: 5, prettyPrint: true}\ns3Uploader: {enable: false, bucketName: \"\"}\n"
    );
    assert_snapshot!(warned(&format!("{TLS}{text}")));
}

/// A file in which no key has its default.
const OTHER: &str = concat!(
    "aggregatorTransportProtocol: tls\nlistenAddr: \"127.0.0.1:1\"\nadminAddr: \"\"\nactiveFlowRecordTimeout: 61s\n",
    "inactiveFlowRecordTimeout: 91s\ncorrelationTimeout: 16s\nkubernetes: {objects: /objects}\n",
    "recordContents: {podLabels: true}\nclusterUUID: 3f1c9e52-7a01-4b7e-9d57-0123456789ab\nextendedRecords: false\n",
    "maxFlows: 2048\nmaxTombstones: 1\nmaxSessions: 1\nmaxSessionsPerAddress: 1\nsessionIdleTimeout: 0s\nsinkQueue: 1\nlogLevel: warn\n",
    "clickHouse: {database: flows, databaseURL: \"tls://db\", compress: false, commitInterval: 9s, queue: 1, ttl: 0s, ",
    "cluster: c, debug: true, retention: {maxBytes: 1Gi, maxFraction: 0.5}, tls: {insecureSkipVerify: true, caCert: true, ",
    "caFile: ca.crt}, enable: false}\n",
    "mode: proxy\nflowAggregatorAddress: flows.example\n",
    "apiServer: {apiPort: \"\", bindAddress: \"::1\", tlsCipherSuites: TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, ",
    "tlsMinVersion: VersionTLS13, tlsCert: a.crt, tlsKey: a.key, tokenFile: token, folder: /tmp/x}\n",
    "flowCollector:\n  enable: true\n  address: \"[::1]:2055\"\n  observationDomainID: 7\n  recordFormat: JSON\n  templateRefreshTimeout: 1m\n  maxIPFIXMsgSize: 1400\n",
    "  tls: {enable: true, ca: ca.crt, cert: c.crt, key: c.key, serverName: flows.example, minVersion: VersionTLS13}\n",
    "flowLogger:\n  enable: true\n  path: /var/log/flows\n  maxSize: 1\n  rotateAfter: 1h\n  maxBackups: 0\n  maxAge: 7\n",
    "  compress: false\n  recordFormat: csv\n  prettyPrint: false\n  filters:\n",
    "    - {ingressNetworkPolicyRuleActions: [Reject, Drop]}\n    - {egressNetworkPolicyRuleActions: [none]}\n",
);

#[test]
fn every_value_of_every_key_prints_and_reads_back() {
    let loaded = read("flow-aggregator.conf", &format!("{TLS}{OTHER}")).unwrap();
    assert_eq!(loaded.warnings, []);
    let printed = config::print(&loaded.settings);
    assert_snapshot!(printed);
    assert_eq!(read("flow-aggregator.conf", &printed).unwrap().settings, loaded.settings);
    let address = loaded.settings.collector_address().unwrap();
    assert_eq!(address.to_string(), "[::1]:2055:tls");
}

#[test]
fn what_waits_for_a_restart_is_what_the_documentation_says() {
    // One key cannot differ where certificates must be given, and those of no effect have one value alone.
    let unlike = Config { transport: Transport(Protocol::Udp), ..Config::default() };
    let other = read("flow-aggregator.conf", &format!("{TLS}{OTHER}")).unwrap().settings;
    let mut kept = other.clone();
    kept.keep_bound(&unlike);
    let keys = |same: &Config, with: &Config| -> Vec<&'static str> {
        let pairs = same.values().into_iter().zip(with.values());
        pairs.filter(|(one, other)| one == other).map(|((key, _), _)| key).collect()
    };
    // ClickHouse is not for mode Proxy, which the other keys show.
    let one_value =
        ["flowCollector.tls.caSecretName", "flowCollector.tls.clientSecretName", "s3Uploader", "clickHouse.enable"];
    assert_eq!(keys(&other, &unlike), one_value, "OTHER must differ in every key");
    let waiting: Vec<&str> = keys(&kept, &unlike).into_iter().filter(|key| !one_value.contains(key)).collect();
    let mut bound = BOUND.to_vec();
    bound.sort_by_key(|key| Config::keys().iter().position(|known| known.path == *key));
    assert_eq!(waiting, bound);
}

#[test]
fn conditions_hold_together_and_filters_are_alternatives() {
    use flow_common::record::RuleAction::{Allow, Drop, None, Reject};
    let text = concat!(
        "flowLogger:\n  filters:\n    - ingressNetworkPolicyRuleActions: [Drop, Reject]\n",
        "      egressNetworkPolicyRuleActions: [Allow]\n    - egressNetworkPolicyRuleActions: [Drop]\n",
    );
    let filters = read("flow-aggregator.conf", &format!("{TLS}{text}")).unwrap().settings.logger_filters;
    assert!(filters.accept(Drop, Allow) && filters.accept(Reject, Allow) && filters.accept(None, Drop));
    assert!(!filters.accept(Allow, Allow) && !filters.accept(Drop, None));
    assert!(ActionFilters::default().accept(None, None), "no filter is every flow");
}

fn actions() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let names = proptest::collection::vec(prop::sample::select(vec!["None", "Allow", "Drop", "reject"]), 0..4);
    (prop::sample::select(vec!["ingress", "egress"]), names)
        .prop_map(|(direction, names)| format!("{direction}NetworkPolicyRuleActions: [{}]", names.join(", ")))
}

proptest::proptest! {
    #[test]
    fn filters_print_and_read_back(filters in proptest::collection::vec(actions(), 0..5)) {
        let list: String = filters.iter().map(|filter| format!("    - {{{filter}}}\n")).collect();
        let text = format!("{TLS}flowLogger:\n  filters:\n{list}");
        let settings = read("flow-aggregator.conf", &text).unwrap().settings;
        proptest::prop_assert_eq!(read("flow-aggregator.conf", &config::print(&settings)).unwrap().settings, settings);
    }

    #[test]
    fn no_text_panics(
        key in "(mode|s3Uploader|logLevel|apiServer|flowCollector|flowLogger)(\\.[a-zA-Z]{1,12})?",
        value in "[^\r\n]{0,40}",
    ) {
        let _ = read("flow-aggregator.conf", &format!("{TLS}{key}: {value}\n"));
    }
}
