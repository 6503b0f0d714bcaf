//! docs/fields.md is what the record table says. `UPDATE_DOCS=1 cargo test -p flow-common --test fields_doc` writes it.

use std::fmt::Write;
use std::path::Path;

use flow_common::ipfix::accounting::Kind;
use flow_common::record::{
    Extended, Family, Field, Head, InterfaceCount, Labels, Metering, NodeAddr, NotSent, Origin, PerNode, Tail, VARIABLE,
};

const INTRODUCTION: &str = "# Fields of a flow record

Made from the table in `flow-common/src/record.rs`; a test keeps it true.

Records are IPFIX (RFC 7011). Template 256 is for IPv4, 257 for IPv6; where a field differs, the table has both. Enterprise
0 is IANA's registry, 29305 its elements in the responder's direction (RFC 5103), 56506 Antrea's. A length of \"any\" is
a string with its length in front. What is not known is 0, 0.0.0.0, :: or the empty string.

An agent sends the head, the names, and, unless `extendedRecords` is off, the extended elements. The aggregator sends the
head, the names, the numbers of both Nodes, the labels, and, unless it is off, the extended elements; in proxy mode the
origin stands in place of both Nodes' numbers. The order is that of the tables.
";

fn row(out: &mut String, field: &Field) {
    let both = |of: &dyn Fn(Family) -> String| {
        let [v4, v6] = Family::ALL.map(of);
        if v4 == v6 { v4 } else { format!("{v4}, {v6}") }
    };
    let name = both(&|family| format!("`{}`", field.name(family)));
    let id = both(&|family| field.id(family).to_string());
    let data_type = both(&|family| field.data_type.name(family).to_owned());
    let length = both(&|family| match field.width(family) {
        VARIABLE => "any".to_owned(),
        width => width.to_string(),
    });
    let doc = field.doc.trim();
    writeln!(out, "| {name} | {} | {id} | {data_type} | {length} | {doc} |", field.enterprise).expect("a string");
}

fn table(out: &mut String, title: &str, text: &str, fields: &[Field]) {
    writeln!(out, "\n## {title}\n\n{text}\n").expect("a string");
    out.push_str("| Element | Enterprise | Id | Type | Length | Meaning |\n|---|---|---|---|---|---|\n");
    for field in fields {
        row(out, field);
    }
}

fn document() -> String {
    let mut out = INTRODUCTION.to_owned();
    table(&mut out, "Head", "Numbers and the two ends.", Head::FIELDS);
    table(&mut out, "Names", "Pods, Service and policies.", Tail::FIELDS);
    table(&mut out, "Numbers of both Nodes", "From the aggregator.", PerNode::FIELDS);
    table(&mut out, "Labels", "From the aggregator; empty unless `podLabels` is on.", Labels::FIELDS);
    table(&mut out, "Origin", "From the aggregator in proxy mode.", Origin::FIELDS);
    table(&mut out, "Extended elements", "They stand last.", Extended::FIELDS);
    let options = |kind: Kind| {
        let scope =
            if kind.scope() == 1 { "The first element is the scope" } else { "The first two elements are the scope" };
        format!("Options template {}. {scope}.", kind.template())
    };
    table(&mut out, "Accounting: sent", &options(Kind::Metering), Metering::FIELDS);
    table(&mut out, "Accounting: not sent", &options(Kind::NotSent), NotSent::FIELDS);
    table(&mut out, "Accounting: interfaces", &options(Kind::Interface), InterfaceCount::FIELDS);
    let addrs = format!("{} For IPv6 it is {}.", options(Kind::Addr4), Kind::Addr6.template());
    table(&mut out, "Accounting: addresses of the Node", &addrs, NodeAddr::FIELDS);
    out
}

#[test]
fn the_document_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fields.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, document()).expect("docs/ can be written");
    }
    let written = std::fs::read_to_string(&path).expect("docs/fields.md is there");
    assert!(written == document(), "docs/fields.md is old: UPDATE_DOCS=1 cargo test -p flow-common --test fields_doc");
}
