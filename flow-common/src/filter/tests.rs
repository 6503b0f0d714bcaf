//! The language on records, its laws, and what it tells of mistakes.

use proptest::prelude::*;

use super::*;
use crate::record::{EndReason, FlowRecord, FlowType, ForwardingStatus, TcpState};

/// From Pod prod/web-1 on node-1 to a Service, answered by Pod db/postgres-0 on node-2.
fn to_service() -> FlowRecord {
    let mut record = FlowRecord::default();
    let (head, tail) = (&mut record.head, &mut record.tail);
    head.start_seconds = 1_800_000_000;
    head.end_seconds = 1_800_000_010;
    head.end_reason = EndReason::Active;
    (head.src_addr, head.dst_addr) = ([10, 244, 1, 7].into(), [10, 244, 2, 9].into());
    (head.src_port, head.dst_port, head.protocol) = (45678, 5432, 6);
    head.set_totals([100, 2_000_000, 80, 11_000_000]);
    (tail.src_pod, tail.src_namespace, tail.src_node) = ("web-1".into(), "prod".into(), "node-1".into());
    (tail.dst_pod, tail.dst_namespace, tail.dst_node) = ("postgres-0".into(), "db".into(), "node-2".into());
    (tail.service, tail.service_port) = ("db/postgres:sql".into(), 5432);
    (tail.tcp_state, tail.flow_type) = (TcpState::Established, FlowType::InterNode);
    (record.extended.tcp_flags, record.extended.reverse_tcp_flags) = (0x1a, 0x12);
    record.extended.forwarding_status = ForwardingStatus::Forwarded;
    record
}

/// A ping from Pod prod/web-1 to an address outside, unanswered.
fn ping() -> FlowRecord {
    let mut record = FlowRecord::default();
    let (head, tail) = (&mut record.head, &mut record.tail);
    (head.src_addr, head.dst_addr) = ("2001:db8:1::7".parse().unwrap(), "2001:db8:f::1".parse().unwrap());
    (head.src_port, head.dst_port, head.protocol) = (77, 128 * 256, 58);
    head.set_totals([1, 104, 0, 0]);
    (tail.src_pod, tail.src_namespace, tail.src_node) = ("web-1".into(), "prod".into(), "node-1".into());
    tail.flow_type = FlowType::ToExternal;
    record
}

#[track_caller]
fn matches(text: &str, record: &FlowRecord) -> bool {
    match Filter::parse(text) {
        Ok(filter) => filter.matches(&FlowView::from(record)),
        Err(error) => panic!("{text}: {error}"),
    }
}

#[test]
fn what_holds_for_a_flow_to_a_service() {
    let record = to_service();
    for text in [
        "",
        "src.ns = prod and not src.ns in (db, ingress)",
        "dst.ns = db :5432",
        "src = prod/web-* dst = 10.0.0.0/8 state != TIME-WAIT",
        "ip = 10.244.2.9 dst = 10.244.2.*",
        "src = web-1 dst = db/postgres-0",
        "pod = db/postgres-* dst.pod ~ \"^postgres-[0-9]+$\"",
        "service = postgres service = db/postgres service = postgres:sql service = db/*:sql dst.service ~ post",
        "proto = tcp PROTO = 6 port in (80, 5432) port > 5000 src.port >= 45678",
        "bytes = 13MB src.bytes = 2MB dst.bytes > 10.9MB packets = 180",
        "rate = 10.4Mbit/s src.rate <= 1600 kbit/s",
        "duration >= 10s duration < 1m",
        "state = established state = EST* type = INTER verdict = allowed reason = active",
        "flags = SYN+ACK src.flags = PSH+SYN dst.flags != PSH has flags",
        "kind = pod src.kind != external has service has dst.pod has verdict",
        "postgres web-1 10.244.1 prod/web node-2 postg*",
        "not kind = external and !has external and not has icmp",
        "node = node-1 or node = node-9",
        "( node = node-9 or dst.node ~ ^node ) and dst.ip !~ ^192",
        "service != other",
    ] {
        assert!(matches(text, &record), "{text}");
        assert!(!matches(&format!("not ({text} 10.244)"), &record), "{text}");
    }
}

#[test]
fn what_holds_for_a_ping_to_the_outside() {
    let record = ping();
    for text in [
        "icmp = 128 icmp = 128/0 icmp not in (8, 128/1) proto = icmpv6 has icmp",
        "type = to-external external = 2001:db8::/32 dst.external = 2001:db8:f::1 src.kind = pod dst.kind = external",
        "not port = 32768 not has port not has service not has state not has verdict",
        "rate = 0 duration = 0 bytes < 1kB packets <= 1 dst.packets = 0",
        "dst = 2001:db8:f::* 2001:db8:f::1 2001:db8::/32",
        "dst.pod = \"\" not dst.pod = *",
        "external ~ ^2001 not src.external = *",
    ] {
        assert!(matches(text, &record), "{text}");
    }
}

#[test]
fn a_negation_without_a_side_means_neither_side() {
    let record = to_service();
    assert!(!matches("ns != prod", &record), "one end is there");
    assert!(matches("src.ns != db and dst.ns != prod", &record));
    assert!(matches("ns != kube-system", &record));
    assert!(!matches("ns not in (kube-system, db)", &record));
    assert!(!matches("pod !~ post", &record));
}

#[test]
fn quotes_switch_globs_off() {
    let record = to_service();
    assert!(matches("pod = web-*", &record) && !matches("pod = \"web-*\"", &record));
    assert!(matches("web*", &record) && !matches("\"web*\"", &record));
    assert!(!matches("WEB-1", &record), "values are not words of the language");
}

#[test]
fn canonical_forms() {
    let forms: Vec<String> = [
        "NOT ns = a  SRC.Pod NOT IN ( a , b ) or has dst.pod",
        "a b or (c or d) and (e and f)",
        "not (not a) not (a b) ! c",
        "not ns != b not a-field",
        ":443 10.1.2.3/8 10.0.0.1/32 ::ffff:1.2.3.4 \"and\" \":443\" \"ns\" \"ns:prod\" \"\"",
        "bytes > 1536KiB bytes = 1.5MB bytes = 1000 bytes < 1023 bytes = 0",
        "rate > 0.5 Gbit/s duration <= 90s duration != 1500 ms",
        "proto = TCP proto = 250 flags = ack+syn state = established state = fin*",
        "pod ~ \"a b\" pod ~ a.*b pod !~ \"a\\\"b\\\\d\\d\" pod = \"a\\b\"",
        "ns in (a) dst.service = x dst = \"in\"",
    ]
    .map(|text| Filter::parse(text).map_or_else(|error| format!("{text}: {error}"), |filter| filter.to_string()))
    .to_vec();
    insta::assert_snapshot!(forms.join("\n"));
}

#[test]
fn errors_say_where_what_and_how_to_put_it_right() {
    let long = format!("pod in ({})", vec!["a"; 257].join(","));
    let cases = [
        "verdct = denied",
        "port = http",
        "ns",
        "type or ns = a",
        "ns prod",
        "ns:prod",
        "namespace = prod",
        "sport = 80",
        "src.byts > 10",
        "foo = 1",
        "colour in (red)",
        "policy = deny-all",
        "dst.label.app = db",
        "http.status >= 500",
        "verdict = isolated",
        "verdict = drop",
        "type = intra-node",
        "src.verdict = denied",
        "src.service = web",
        "has bytes",
        "has colour",
        "ns < a",
        "bytes ~ 10",
        "kind ~ pod",
        "bytes > 10mb",
        "bytes > 10 mb",
        "bytes > 10parsecs",
        "bytes > many",
        "bytes = 0.3B",
        "packets > 10k",
        "rate > 5MB",
        "duration > 5",
        "duration > 5y",
        "port = 65536",
        "port = -1",
        ":http",
        "ip = web",
        "ip = 10.0.0.0/33",
        "10.0.0.0/x",
        "icmp = echo",
        "flags = SYN+FOO",
        "proto = tcpp",
        "state = OPEN",
        "pod ~ \"(\"",
        "pod ~ \"(a{1000}){1000}\"",
        "pod = \"web",
        "pod = and ns = a",
        "pod == a",
        "a && b",
        "a and",
        "and a",
        "(a or b",
        "a or b)",
        "()",
        "ns in a",
        "ns in (a, )",
        "ns in (a b)",
        "ns in (a",
        "ns not = a",
        "not not a",
        "= a",
        "type = böse",
        "😀 verdct = denied",
        &format!("{}a", "(".repeat(33)),
        &long,
        &"a".repeat(4097),
        &":1 ".repeat(500),
    ];
    let said = cases.map(|text| {
        let error = Filter::parse(text).unwrap_err();
        let start: String = text.chars().take(60).collect();
        format!("{start}\n    {error}\n    {} {:?} {}", error.code.name(), error.span, error.expected.join(" "))
    });
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn completions() {
    let offers = [
        "|",
        "s|",
        "src.|",
        "src.n|",
        "ns |",
        "ns = |",
        "ns = p|",
        "ns = prod |",
        "type = |",
        "type = to|",
        "state in (F|",
        "state in (FIN-WAIT-1|)",
        "state in (CLOSED |",
        "not |",
        "has |",
        "bytes > |",
        "bytes > 10 |",
        "bytes > 10|",
        "port = |",
        "(a |",
        "verdct = |",
        "pod = \"a|",
        "ns = a and k|ind = b",
        "😀 dst.p|",
        "proto = u|",
    ]
    .map(|text| {
        let cursor = text.split('|').next().map_or(0, error::utf16);
        let Completion { replace, candidates, values_of } = complete(&text.replace('|', ""), cursor);
        format!(
            "{text}\n    {replace:?} {}{}",
            candidates.join(" "),
            values_of.map_or(String::new(), |of| format!(" + values of {of:?}"))
        )
    });
    insta::assert_snapshot!(offers.join("\n"));
}

/// Text of the language's own pieces, well put together or not.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "and",
        "or",
        "not",
        "!",
        "(",
        ")",
        "has",
        "in",
        ",",
        "=",
        "!=",
        "~",
        "!~",
        "<",
        ">=",
        "ns",
        "src",
        "dst.pod",
        "src.ip",
        "port",
        "bytes",
        "rate",
        "duration",
        "type",
        "state",
        "flags",
        "icmp",
        "verdict",
        "web-*",
        "\"a b\"",
        "\"*\"",
        "10.0.0.0/8",
        ":80",
        "2001:db8::1",
        "10MB",
        "10",
        "5s",
        "Mbit/s",
        "intra",
        "CLOSED",
        "SYN+ACK",
        "8/0",
        "denied",
        "prod/web",
        "proto",
        "tcp",
        "service",
        "kind",
        "external",
        "pod",
        "*",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.join(" "))
}

/// A well-formed filter.
fn filter() -> impl Strategy<Value = String> {
    let name =
        "[a-z*./:\"\\\\ -]{0,6}".prop_map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
    let word = "[a-z][a-z*/-]{0,6}"
        .prop_filter("a word of the language", |word| !parser::is_keyword(word) && field::named(word).is_none());
    let text = prop_oneof![name, word];
    let side = prop::sample::select(vec!["", "src.", "dst."]);
    let named =
        (side, prop::sample::select(vec!["pod", "ns", "node"]), prop::sample::select(vec!["=", "!="]), text.clone());
    let number = (
        prop::sample::select(vec!["bytes", "src.bytes", "packets"]),
        prop::sample::select(vec!["=", "<", ">="]),
        any::<u64>(),
    );
    let test = prop_oneof![
        named.prop_map(|(side, field, sign, value)| format!("{side}{field} {sign} {value}")),
        number.prop_map(|(field, sign, number)| format!("{field} {sign} {number}")),
        text.clone(),
        prop::collection::vec(text.clone(), 1..4).prop_map(|values| format!("service in ({})", values.join(", "))),
        (0..u64::MAX).prop_map(|nanos| format!("duration > {nanos}ns")),
        any::<IpAddr>().prop_map(|addr| format!("src = {addr}")),
        (any::<IpAddr>(), 0..33u8).prop_map(|(addr, prefix)| format!("{addr}/{prefix}")),
        prop::sample::select(vec![
            "has service",
            "dst.flags = SYN+ACK",
            "icmp = 8/0",
            "type = intra",
            ":53",
            "state = *WAIT*"
        ])
        .prop_map(str::to_owned),
    ];
    test.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" and "))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join(" or "))),
            inner.prop_map(|part| format!("not ({part})")),
        ]
    })
}

proptest! {
    /// The canonical form is the same filter, and its own canonical form.
    #[test]
    fn parse_of_print_is_the_same(text in prop_oneof![filter(), pieces()]) {
        if let Ok(filter) = Filter::parse(&text) {
            let printed = filter.to_string();
            let again = Filter::parse(&printed);
            prop_assert_eq!(again.as_ref(), Ok(&filter), "{} printed as {}", text, printed);
            prop_assert_eq!(again.map(|again| again.to_string()), Ok(printed));
        }
    }

    #[test]
    fn what_is_generated_is_well_formed(text in filter()) {
        prop_assume!(text.len() < 1024);
        prop_assert!(Filter::parse(&text).is_ok(), "{}: {:?}", text, Filter::parse(&text));
    }

    /// `f != v` is `not f = v`, and a negation is true exactly where what it negates is not.
    #[test]
    fn negation(field in prop::sample::select(vec!["ns", "src.ns", "pod", "dst.node", "service", "ip", "src"]), value in "(prod|db|web-[*]|[*]|10[.]244[.]1[.]7|x)") {
        let operand = if field == "ip" { "10.244.1.7" } else { &value };
        let unequal = Filter::parse(&format!("{field} != {operand}")).unwrap();
        prop_assert_eq!(&unequal, &Filter::parse(&format!("not {field} = {operand}")).unwrap());
        for record in [to_service(), ping()] {
            prop_assert_eq!(unequal.matches(&FlowView::from(&record)), !matches(&format!("{field} = {operand}"), &record));
        }
    }

    /// Where it stands is within the text, and nothing makes parser or completion panic.
    #[test]
    fn any_text(text in prop_oneof![any::<String>(), pieces(), "[a-z =!~<>()\",.:/*0-9]{0,40}"], cursor in 0..60usize) {
        if let Err(error) = Filter::parse(&text) {
            prop_assert!(error.span.start <= error.span.end && error.span.end <= text.encode_utf16().count());
            prop_assert!(error.columns.0 <= error.columns.1 && error.columns.0 >= 1);
            prop_assert!(!error.to_string().is_empty());
        } else {
            matches(&text, &ping());
        }
        let completion = complete(&text, cursor);
        prop_assert!(completion.replace.start <= completion.replace.end && completion.replace.end <= cursor);
    }

    /// Whatever is offered, what stands there with it is no mistake up to its end.
    #[test]
    fn what_is_offered_fits(text in pieces()) {
        let settled = format!("{text} ");
        for candidate in complete(&settled, settled.len()).candidates {
            let with = format!("{settled}{candidate}");
            if let Err(error) = Filter::parse(&with) {
                let at_end = error.span.end >= with.len();
                prop_assert!(at_end, "{}: {}", with, error);
            }
        }
    }

    /// A glob is what a regular expression with `.*` for each star is.
    #[test]
    fn globs(glob in "[ab*]{0,8}", text in "[ab]{0,10}") {
        let regex = regex::Regex::new(&format!("^{}$", glob.replace('*', ".*"))).unwrap();
        prop_assert_eq!(evaluate::glob_is(&glob, &text), regex.is_match(&text));
    }
}

/// The blocks of one language in docs/filters.md.
fn examples(language: &str) -> Vec<&'static str> {
    let blocks = include_str!("../../../docs/filters.md").split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

#[test]
fn the_examples_of_the_documentation_are_filters() {
    let filters: Vec<&str> = examples("filter").into_iter().flat_map(str::lines).collect();
    assert!(filters.len() > 20, "{filters:?}");
    for text in filters {
        assert!(Filter::parse(text).is_ok(), "{text}: {:?}", Filter::parse(text).map_err(|error| error.to_string()));
    }
    assert_eq!(Filter::parse("NS=a :443").unwrap().to_string(), "ns = a and port = 443");
}

#[test]
fn the_mistakes_of_the_documentation_are_told_so() {
    let mistakes: Vec<&str> = examples("mistake").into_iter().flat_map(|block| block.split("\n\n")).collect();
    assert_eq!(mistakes.len(), 4);
    for mistake in mistakes {
        let (text, told) = mistake.split_once('\n').unwrap();
        assert_eq!(Filter::parse(text).unwrap_err().to_string(), told);
    }
}

#[test]
fn the_documentation_names_every_field_and_value() {
    let text = include_str!("../../../docs/filters.md");
    let values = |field: &str| complete(&format!("{field} = "), 99).candidates;
    let values = ["verdict", "type", "kind", "reason", "proto"].into_iter().flat_map(values);
    for word in field::names().map(str::to_owned).chain(values) {
        assert!(text.contains(&format!("`{word}`")), "{word}");
    }
}
