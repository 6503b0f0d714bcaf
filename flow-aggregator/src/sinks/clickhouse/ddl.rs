//! What the tables and views are made with, as statements.
//!
//! Takes what the server can and what the configuration wants; gives texts. It asks no server.

use super::columns::{COLUMNS, Column, INSERTED, Stored, name_of};
use std::{fmt::Write, time::Duration};

/// The version of tables and views that these statements make.
pub(super) const VERSION: u64 = 1;
/// Where it is written.
pub(super) const VERSIONS: &str = "flows_schema";
/// What wrote it.
const PRODUCT: &str = "flow-aggregator";
/// Commits that a table remembers, to tell a repeated one.
const WINDOW: u32 = 1_000;
/// Up to this age a partition is an hour, beyond it a day: whole ones are dropped, and there should not be many.
const HOURLY: Duration = Duration::from_secs(3 * 86_400);
/// Merges that drop what is too old come at least so often.
const LONGEST_MERGE_WAIT: Duration = Duration::from_secs(4 * 3_600);

/// What a server can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Types of 2018: no compression by column, no age limit, repeated commits are not told.
    Plain,
    /// From 22.3 on.
    Modern,
}

/// How tables are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// For this server.
    pub(super) dialect: Dialect,
    /// In this database.
    pub(super) database: String,
    /// On every server of this cluster; `None` on the one server.
    pub(super) cluster: Option<String>,
    /// How long rows are kept; `None` for ever.
    pub(super) ttl: Option<Duration>,
}

/// One of the views that add rows up.
#[derive(Debug)]
pub(super) struct View {
    /// As queries know it.
    pub(super) name: &'static str,
    /// Where its rows are.
    pub(super) table: &'static str,
    keys: &'static [&'static str],
    sums: &'static [&'static str],
}

/// Rust names of the fields, but for times, which all of them have first, and the cluster, which they have last.
pub(super) const VIEWS: [View; 3] = [
    View {
        name: "flows_pod_view",
        table: "pod_view_table",
        keys: &[
            "src_pod",
            "dst_pod",
            "dst_addr",
            "src_port",
            "dst_port",
            "service_port",
            "service",
            "flow_type",
            "src_namespace",
            "dst_namespace",
        ],
        sums: &[
            "octet_delta",
            "reverse_octet_delta",
            "throughput",
            "reverse_throughput",
            "throughput_from_src",
            "throughput_from_dst",
        ],
    },
    View {
        name: "flows_node_view",
        table: "node_view_table",
        keys: &["src_node", "dst_node", "src_namespace", "dst_namespace", "flow_type"],
        sums: NODE_SUMS,
    },
    View {
        name: "flows_policy_view",
        table: "policy_view_table",
        keys: &[
            "egress_policy",
            "egress_policy_namespace",
            "egress_action",
            "ingress_policy",
            "ingress_policy_namespace",
            "ingress_action",
            "src_pod",
            "src_port",
            "src_namespace",
            "dst_pod",
            "dst_port",
            "dst_namespace",
            "service_port",
            "service",
            "dst_addr",
        ],
        sums: NODE_SUMS,
    },
];

const NODE_SUMS: &[&str] = &[
    "octet_delta",
    "reverse_octet_delta",
    "throughput",
    "reverse_throughput",
    "throughput_from_src",
    "throughput_from_dst",
    "reverse_throughput_from_src",
    "reverse_throughput_from_dst",
];

const TIMES: [&str; 3] = ["end_seconds", "end_seconds_from_src", "end_seconds_from_dst"];

impl Dialect {
    /// Of a server that says it is of this version.
    pub(super) fn of(version: &str) -> Dialect {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if version >= (22, 3) { Dialect::Modern } else { Dialect::Plain }
    }

    /// The type of milliseconds.
    pub(super) fn milliseconds(self) -> &'static str {
        match self {
            Dialect::Modern => "DateTime64(3)",
            Dialect::Plain => "UInt64",
        }
    }
}

impl Layout {
    /// The table that rows are inserted into.
    pub(super) fn inserted(&self) -> String {
        self.local("flows")
    }

    /// The table of flows, and in a cluster what spans all of them.
    pub(super) fn flows(&self) -> Vec<String> {
        let columns: Vec<String> = COLUMNS.iter().map(|column| self.column(column)).collect();
        let order = format!("({INSERTED}, {})", name_of("end_seconds"));
        let mut statements = vec![self.table("flows", &columns, "MergeTree", "", &order)];
        statements.extend(self.spanning("flows", "flows"));
        statements
    }

    /// A view and its table, and in a cluster what spans all of them.
    pub(super) fn view(&self, view: &View) -> Vec<String> {
        let (keys, sums) = (view.keys(), view.sums());
        let stored = |name: &&str| COLUMNS.iter().find(|column| column.name == *name).map(|column| self.column(column));
        let columns: Vec<String> = keys.iter().chain(&sums).filter_map(stored).collect();
        let key = keys.join(", ");
        let (table, on, to) = (self.local(view.table), self.on(), self.local("flows"));
        let summed: Vec<String> = sums.iter().map(|name| format!("sum({name}) AS {name}")).collect();
        let mut statements = vec![
            self.table(
                view.table,
                &columns,
                "SummingMergeTree",
                &format!("({})", sums.join(", ")),
                &format!("({key})"),
            ),
            format!(
                "CREATE MATERIALIZED VIEW IF NOT EXISTS {name}{on} TO {table} AS SELECT {key}, {sums} FROM {to} GROUP BY {key}",
                name = self.local(view.name),
                sums = summed.join(", "),
            ),
        ];
        statements.extend(self.spanning(view.name, view.table));
        statements
    }

    /// The table that knows the version.
    pub(super) fn versions(&self) -> String {
        // In a cluster one table for all shards.
        let engine = match &self.cluster {
            None => "ReplacingMergeTree(version)".to_owned(),
            Some(_) => format!(
                "ReplicatedReplacingMergeTree('/clickhouse/tables/{}/{VERSIONS}', '{{shard}}-{{replica}}', version)",
                quoted(&self.database)
            ),
        };
        format!(
            "CREATE TABLE IF NOT EXISTS {VERSIONS}{} (version UInt32, product String) ENGINE = {engine} ORDER BY product",
            self.on()
        )
    }

    /// That the tables are of our version.
    pub(super) fn stamp(&self) -> String {
        format!("INSERT INTO {VERSIONS} (version, product) SELECT toUInt32({VERSION}), '{PRODUCT}'")
    }

    /// A column that a table of an earlier version lacks.
    pub(super) fn add(&self, column: &Column) -> Vec<String> {
        let mut tables = vec![self.local("flows")];
        tables.extend(self.cluster.as_ref().map(|_| "flows".to_owned()));
        let statement = |table| format!("ALTER TABLE {table}{} ADD COLUMN {}", self.on(), self.column(column));
        tables.into_iter().map(statement).collect()
    }

    /// The limit of age as a table's own statement has it.
    pub(super) fn ttl_clause(&self) -> Option<String> {
        self.ttl.map(|ttl| format!("TTL {INSERTED} + toIntervalSecond({})", ttl.as_secs()))
    }

    /// What a table that is there, made with the statement `made`, must be told so that its rows live as long as
    /// configured and repeated commits are told.
    pub(super) fn keep(&self, table: &str, made: &str) -> Vec<String> {
        let limited = made.contains("TTL ");
        let age = match self.ttl_clause() {
            Some(clause) if made.contains(&clause) => None,
            Some(clause) => Some(format!("MODIFY {clause} SETTINGS materialize_ttl_after_modify = 0")),
            None => limited.then(|| "REMOVE TTL".to_owned()),
        };
        let known = made.contains("deduplication_window");
        let parted = made.contains("PARTITION BY");
        let settings =
            (age.is_some() || !known).then(|| format!("MODIFY SETTING {}", self.settings(parted).join(", ")));
        let on = self.on();
        settings.into_iter().chain(age).map(|change| format!("ALTER TABLE {table}{on} {change}")).collect()
    }

    /// Every table with rows, as it is called on each server.
    pub(super) fn tables(&self) -> Vec<String> {
        ["flows"].into_iter().chain(VIEWS.iter().map(|view| view.table)).map(|name| self.local(name)).collect()
    }

    /// Removes a partition from a table.
    pub(super) fn drop_partition(&self, table: &str, id: &str) -> String {
        format!("ALTER TABLE {table}{} DROP PARTITION ID '{}'", self.on(), quoted(id))
    }

    /// What a name of ours is called on each server of a cluster.
    pub(super) fn local(&self, name: &str) -> String {
        if self.cluster.is_some() { format!("{name}_local") } else { name.to_owned() }
    }

    fn table(&self, name: &str, columns: &[String], engine: &str, argument: &str, order: &str) -> String {
        let mut statement = format!("CREATE TABLE IF NOT EXISTS {}{} (", self.local(name), self.on());
        for (at, column) in columns.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(statement, "{comma}\n    {column}").expect("a string takes every text");
        }
        let engine = match (&self.cluster, argument) {
            (None, "") => engine.to_owned(),
            (None, argument) => format!("{engine}({argument})"),
            (Some(_), argument) => {
                let comma = if argument.is_empty() { "" } else { ", " };
                format!(
                    "Replicated{engine}('/clickhouse/tables/{{shard}}/{}/{}', '{{replica}}'{comma}{argument})",
                    quoted(&self.database),
                    self.local(name)
                )
            }
        };
        let partition = self.partition();
        write!(statement, "\n) ENGINE = {engine}\nPARTITION BY {partition}\nORDER BY {order}").expect("as above");
        if self.dialect == Dialect::Modern {
            if let Some(clause) = self.ttl_clause() {
                write!(statement, "\n{clause}").expect("as above");
            }
            write!(statement, "\nSETTINGS {}", self.settings(true).join(", ")).expect("as above");
        }
        statement
    }

    /// In a cluster, all servers' rows of a table under one name.
    fn spanning(&self, name: &str, table: &str) -> Option<String> {
        let cluster = self.cluster.as_ref()?;
        let (on, local) = (self.on(), self.local(table));
        let (cluster, database) = (quoted(cluster), quoted(&self.database));
        Some(format!(
            "CREATE TABLE IF NOT EXISTS {name}{on} AS {local} ENGINE = Distributed('{cluster}', '{database}', '{local}', rand())"
        ))
    }

    fn on(&self) -> String {
        let cluster = self.cluster.as_deref().map(|cluster| cluster.replace('\\', "\\\\").replace('`', "\\`"));
        cluster.map(|cluster| format!(" ON CLUSTER `{cluster}`")).unwrap_or_default()
    }

    /// One commit's rows are all in one partition: repeats of a commit are told within one alone.
    fn partition(&self) -> String {
        let hourly = self.ttl.is_some_and(|ttl| ttl <= HOURLY);
        let function = if hourly { "toStartOfHour" } else { "toDate" };
        format!("{function}({INSERTED})")
    }

    /// Of a table in partitions by time, where whole parts grow too old together, or of one that somebody else made without.
    fn settings(&self, parted: bool) -> Vec<String> {
        let window = if self.cluster.is_some() { "replicated" } else { "non_replicated" };
        let wait = self.ttl.map_or(LONGEST_MERGE_WAIT, |ttl| ttl.min(LONGEST_MERGE_WAIT)).as_secs();
        vec![
            format!("merge_with_ttl_timeout = {wait}"),
            format!("ttl_only_drop_parts = {}", u8::from(parted)),
            format!("{window}_deduplication_window = {WINDOW}"),
        ]
    }

    fn column(&self, column: &Column) -> String {
        let modern = self.dialect == Dialect::Modern;
        let kind = match column.stored {
            Stored::Name if modern => "LowCardinality(String)",
            stored => stored.kind(self.dialect.milliseconds()),
        };
        let codec = match column.stored {
            _ if !modern => "",
            Stored::Number8 => "",
            Stored::Seconds | Stored::Milliseconds => " CODEC(Delta, ZSTD(1))",
            Stored::Number16 | Stored::Number64 | Stored::Name | Stored::Text => " CODEC(ZSTD(1))",
        };
        let default = match column.stored {
            _ if column.name == INSERTED => " DEFAULT now()",
            Stored::Name | Stored::Text => " DEFAULT ''",
            _ => " DEFAULT 0",
        };
        format!("{} {kind}{default}{codec}", column.name)
    }
}

impl View {
    /// Columns that tell its rows apart.
    pub(super) fn keys(&self) -> Vec<&'static str> {
        let fields = TIMES.iter().chain(self.keys).map(|field| name_of(field));
        [INSERTED].into_iter().chain(fields).chain([super::columns::CLUSTER]).collect()
    }

    /// Columns that are added up.
    pub(super) fn sums(&self) -> Vec<&'static str> {
        self.sums.iter().map(|field| name_of(field)).collect()
    }
}

/// The inside of a string in a statement.
pub(super) fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn layout(dialect: Dialect, cluster: Option<&str>, hours: Option<u64>) -> Layout {
        Layout {
            dialect,
            database: "default".into(),
            cluster: cluster.map(str::to_owned),
            ttl: hours.map(|hours| Duration::from_secs(hours * 3_600)),
        }
    }

    fn all(layout: &Layout) -> String {
        let mut statements = layout.flows();
        statements.extend(VIEWS.iter().flat_map(|view| layout.view(view)));
        statements.extend([layout.versions(), layout.stamp()]);
        statements.join(";\n\n")
    }

    #[test]
    fn statements_for_a_modern_server() {
        assert_snapshot!(all(&layout(Dialect::Modern, None, Some(12))));
    }

    #[test]
    fn statements_for_an_old_server() {
        assert_snapshot!(all(&layout(Dialect::Plain, None, Some(720))));
    }

    #[test]
    fn statements_for_a_cluster() {
        assert_snapshot!(all(&layout(Dialect::Modern, Some("flows"), Some(12))));
    }

    #[test]
    fn statements_that_change_what_is_there() {
        let cluster = layout(Dialect::Modern, Some("flows"), Some(1));
        let mut statements = cluster.add(&COLUMNS[COLUMNS.len() - 1]);
        statements.extend(cluster.keep(
            "flows_local",
            "PARTITION BY toStartOfHour(timeInserted) TTL timeInserted + toIntervalSecond(43200)",
        ));
        let made = "TTL timeInserted + toIntervalSecond(43200) SETTINGS non_replicated_deduplication_window = 1000";
        statements.extend(layout(Dialect::Modern, None, None).keep("flows", made));
        assert_eq!(layout(Dialect::Modern, None, Some(12)).keep("flows", made), [] as [String; 0]);
        statements.push(cluster.drop_partition("flows_local", "1732716000"));
        assert_snapshot!(statements.join(";\n"));
    }

    #[test]
    fn servers_are_told_apart_by_version() {
        for (version, dialect) in [
            ("18.16.1", Dialect::Plain),
            ("22.2.9", Dialect::Plain),
            ("22.3.1.1", Dialect::Modern),
            ("26.7.2.1", Dialect::Modern),
            ("x", Dialect::Plain),
        ] {
            assert_eq!(Dialect::of(version), dialect, "{version}");
        }
    }
}
