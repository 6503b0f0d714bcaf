//! The tables and views of a server, made and brought forward.
//!
//! Takes a session; leaves a database in which rows can be inserted, or says why it cannot be one: tables of a later
//! version, or of somebody else's making. It drops nothing.

use super::{
    columns::{COLUMNS, Column, Stored},
    ddl::{Dialect, Layout, VERSION, VERSIONS, VIEWS, quoted},
    error::Error,
    session::Session,
};
use std::{collections::HashMap, time::Duration};

/// A database in which rows can be inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// How its tables are made.
    pub(super) layout: Layout,
    /// The type of milliseconds in its table of flows.
    pub(super) milliseconds: &'static str,
}

/// Makes what is missing.
pub(super) async fn ensure(
    session: &mut Session,
    database: &str,
    cluster: Option<&str>,
    ttl: Option<Duration>,
) -> Result<Ready, Error> {
    let version = one(session, "SELECT version()").await?.unwrap_or_default();
    let layout = Layout {
        dialect: Dialect::of(&version),
        database: database.to_owned(),
        cluster: cluster.map(str::to_owned),
        ttl,
    };
    let tables = tables(session).await?;
    if tables.contains_key(VERSIONS) {
        let found = one(session, &format!("SELECT toString(max(version)) FROM {VERSIONS}")).await?;
        let found = found.and_then(|text| text.parse().ok()).unwrap_or(0);
        if found > VERSION {
            return Err(Error::Newer { found, known: VERSION });
        }
    }
    if let Some(made) = tables.get("flows") {
        spans_as_configured(made, cluster.is_some())?;
    }
    let flows = layout.inserted();
    let lacking = match tables.contains_key(&flows) {
        true => lacking(session, &flows).await?,
        false => Vec::new(),
    };
    // Only what is missing: in a cluster each statement waits for every server, also for one that is down.
    let is_whole = |name: &str, table: &str| {
        [layout.local(name), name.to_owned(), layout.local(table)].iter().all(|part| tables.contains_key(part))
    };
    let mut statements = if is_whole("flows", "flows") { Vec::new() } else { layout.flows() };
    statements.extend(lacking.iter().flat_map(|column| layout.add(column)));
    for view in VIEWS.iter() {
        // A view of an earlier deployment's own making goes on as it is.
        let is_ours = !tables.contains_key(&layout.local(view.name)) || tables.contains_key(&layout.local(view.table));
        if is_ours && !is_whole(view.name, view.table) {
            statements.extend(layout.view(view));
        }
    }
    if !tables.contains_key(VERSIONS) {
        statements.push(layout.versions());
    }
    for statement in statements {
        session.ask(&statement).await?;
    }
    limit_age(session, &layout, &tables).await?;
    let stamped = one(session, &format!("SELECT toString(max(version)) FROM {VERSIONS}")).await?;
    if stamped.as_deref() != Some(&VERSION.to_string()) {
        session.ask(&layout.stamp()).await?;
        tracing::info!(
            "ClickHouse {version}: tables and views of schema version {VERSION} are there{}",
            if lacking.is_empty() {
                String::new()
            } else {
                format!(", {} columns were added to {flows}", lacking.len())
            }
        );
    }
    let types = types(session, &flows).await?;
    let of_milliseconds = COLUMNS.iter().find(|column| column.stored == Stored::Milliseconds);
    let kind = of_milliseconds.and_then(|column| types.get(column.name)).map_or("", String::as_str);
    let dialect = if kind.starts_with("DateTime64") { Dialect::Modern } else { Dialect::Plain };
    Ok(Ready { layout, milliseconds: dialect.milliseconds() })
}

/// The shard that a server of a cluster belongs to.
pub(super) async fn shard(session: &mut Session) -> Result<String, Error> {
    let shard = one(session, "SELECT substitution FROM system.macros WHERE macro = 'shard'").await?;
    Ok(shard.unwrap_or_default())
}

/// A table of one server is none of a cluster's, and the other way round.
fn spans_as_configured(made: &str, cluster: bool) -> Result<(), Error> {
    let why = match (made.contains("ENGINE = Distributed("), cluster) {
        (true, false) => "it spans a cluster, and clickHouse.cluster is not set",
        (false, true) => "it is of one server, and clickHouse.cluster is set",
        _ => return Ok(()),
    };
    Err(Error::Layout { table: "flows".to_owned(), why: why.to_owned() })
}

/// The columns that a table lacks; it must have those of Antrea's.
async fn lacking(session: &mut Session, table: &str) -> Result<Vec<&'static Column>, Error> {
    let types = types(session, table).await?;
    let foreign = |why: String| Error::Layout { table: table.to_owned(), why };
    let mut lacking = Vec::new();
    for column in COLUMNS.iter() {
        match types.get(column.name) {
            Some(kind) if !fits(column, kind) => {
                return Err(foreign(format!("column {} is of type {kind}", column.name)));
            }
            Some(_) => {}
            None if column.added => lacking.push(column),
            None => return Err(foreign(format!("it has no column {}", column.name))),
        }
    }
    Ok(lacking)
}

/// Whether values can be inserted into a column of this type.
fn fits(column: &Column, kind: &str) -> bool {
    let inner = kind.strip_prefix("LowCardinality(").and_then(|inner| inner.strip_suffix(')')).unwrap_or(kind);
    let ours = column.stored.kind("UInt64");
    match column.stored {
        Stored::Number8 | Stored::Number16 | Stored::Number64 => kind == ours,
        // A time zone changes how a time is shown, and not what is stored.
        Stored::Seconds => kind == ours || kind.starts_with("DateTime("),
        Stored::Milliseconds => kind == ours || kind.starts_with("DateTime64(3"),
        Stored::Name | Stored::Text => inner == ours,
    }
}

/// The limit of age of tables that were there before follows the configuration.
async fn limit_age(session: &mut Session, layout: &Layout, tables: &HashMap<String, String>) -> Result<(), Error> {
    if layout.dialect == Dialect::Plain {
        return Ok(());
    }
    for table in layout.tables() {
        let Some(made) = tables.get(&table) else { continue };
        let statements = layout.keep(&table, made);
        if !statements.is_empty() {
            tracing::info!("ClickHouse: table {table} follows clickHouse.ttl");
        }
        for statement in statements {
            session.ask(&statement).await?;
        }
    }
    Ok(())
}

/// What tables and views there are, and how each was made.
async fn tables(session: &mut Session) -> Result<HashMap<String, String>, Error> {
    let sql = "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()";
    Ok(pairs(session.ask(sql).await?.rows))
}

/// The types of a table's columns.
async fn types(session: &mut Session, table: &str) -> Result<HashMap<String, String>, Error> {
    let table = quoted(table);
    let sql = format!("SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = '{table}'");
    Ok(pairs(session.ask(&sql).await?.rows))
}

fn pairs(rows: Vec<Vec<String>>) -> HashMap<String, String> {
    rows.into_iter().filter_map(|row| row.try_into().ok()).map(|[name, value]: [String; 2]| (name, value)).collect()
}

/// The one value of a question that has one.
async fn one(session: &mut Session, sql: &str) -> Result<Option<String>, Error> {
    Ok(session.ask(sql).await?.rows.into_iter().flatten().next())
}
