use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

crate::settings! {
    /// A file with a key of every kind.
    struct Sample {
        /// Gates.
        "featureGates" => gates: BTreeMap<String, bool> = BTreeMap::new(),
        /// On or off.
        "exporter.enable" => enable: bool = true,
        /// How often; at least a second.
        ///
        /// A second paragraph.
        "exporter.pollInterval" | "pollInterval" | "poll.interval" => interval: Duration = Duration::from_secs(5),
        /// How many.
        "limits.flows.max" => max: u32 = 262_144,
        /// Which.
        "interfaces" => interfaces: Vec<String> = vec!["eth*".to_owned()],
        /// A file.
        "tls.ca" => ca: Option<PathBuf> = None,
        /// Where.
        "adminAddr" => admin: Option<SocketAddr> = None,
        /// A name.
        "nodeName" => node: String = String::new(),
    }
}

fn load(text: &str) -> Result<Loaded<Sample>, Problems> {
    read("sample.conf", text, |sample: &mut Sample, document| {
        if sample.interval < Duration::from_secs(1) {
            document.refuse("exporter.pollInterval", Unfit::new("at least 1s"));
        }
    })
}

fn said(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

#[test]
fn a_file_of_comments_has_the_defaults() {
    for text in ["", "# nothing\n\n  # at all\n", "exporter:\n"] {
        assert_eq!(load(text).unwrap().settings, Sample::default(), "{text:?}");
    }
}

#[test]
fn every_fault_is_named_at_once() {
    assert_snapshot!(said(
        "exporter:\n  enabel: true\n  enable: maybe\n  pollInterval: 5\nlimits:\n  flows:\n    max: -1\ntls: ca.crt\nadminAddr: localhost\nfeatureGates:\n  X: 1\ncolour: red\n"
    ));
}

#[test]
fn checks_across_keys_name_the_line() {
    assert_eq!(said("\nexporter:\n  pollInterval: 10ms\n"), "sample.conf:3: exporter.pollInterval: at least 1s");
}

#[test]
fn old_names_work_with_a_warning_and_not_beside_the_new() {
    let loaded = load("poll:\n  interval: 7s\n").unwrap();
    assert_eq!(loaded.settings.interval, Duration::from_secs(7));
    assert_snapshot!(loaded.warnings[0], @"sample.conf:2: poll.interval is now called exporter.pollInterval; please rename it");
    assert_snapshot!(said("pollInterval: 7s\nexporter:\n  pollInterval: 8s\n"),
        @"sample.conf:3: exporter.pollInterval: exporter.pollInterval is set twice; keep one of them");
}

#[test]
fn what_is_no_yaml_is_refused_by_line() {
    assert_snapshot!(said("exporter:\n  enable: true\n   pollInterval: [\n"));
    assert_snapshot!(said("nodeName: a\nnodeName: b\n"));
    assert_snapshot!(said("- a\n- b\n"));
}

#[test]
fn documentation_names_every_key() {
    assert_snapshot!(markdown("sample.conf", "A preface.", &Sample::keys()));
}

proptest! {
    #[test]
    fn printed_settings_read_back(
        gates in proptest::collection::btree_map("[A-Za-z]{1,8}", any::<bool>(), 0..3),
        enable in any::<bool>(),
        millis in 1_000u64..100_000_000,
        max in any::<u32>(),
        interfaces in proptest::collection::vec(".{0,12}", 0..4),
        ca in proptest::option::of("[a-z/. :#]{1,20}"),
        admin in any::<Option<SocketAddr>>(),
        node in ".{0,20}",
    ) {
        // A flow label or scope is not part of what is written.
        let admin = admin.map(|addr| SocketAddr::new(addr.ip(), addr.port()));
        let interval = Duration::from_millis(millis);
        let sample = Sample { gates, enable, interval, max, interfaces, ca: ca.map(PathBuf::from), admin, node };
        let loaded = load(&print(&sample)).map_err(|problems| TestCaseError::fail(problems.to_string()))?;
        prop_assert_eq!(loaded.settings, sample);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = load(&text);
    }
}
