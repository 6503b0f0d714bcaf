//! Room: the oldest rows go when all rows take more than they may.
//!
//! Takes a session from time to time; drops whole partitions, the oldest first, of the table and its views alike. On
//! servers that know no limit of age it drops what is too old as well. Several aggregators may do so at once: what is
//! gone already is no fault.

use super::{
    ddl::{Dialect, Layout, quoted},
    error::Error,
    session::Session,
};
use std::{collections::BTreeMap, time::Duration};

/// How often room is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// How much room rows may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Room {
    /// Bytes on the disk, of the table and its views, on each server.
    pub max_bytes: Option<u64>,
    /// A part of the disk's size.
    pub max_fraction: Option<f64>,
}

/// A partition's number, which rises with time, and its bytes.
type Partitions = BTreeMap<u64, u64>;

/// Looks once, and drops what is too much.
pub(super) async fn look(session: &mut Session, layout: &Layout, room: &Room) -> Result<(), Error> {
    let by_age = if layout.dialect == Dialect::Plain { layout.ttl } else { None };
    let limit = limit(session, layout, room).await?;
    if by_age.is_none() && limit.is_none() {
        return Ok(());
    }
    let partitions = partitions(session, layout).await?;
    let oldest = match by_age {
        Some(ttl) => Some(oldest(session, ttl).await?),
        None => None,
    };
    let gone = surplus(&partitions, oldest, limit);
    let Some(last) = gone.last() else { return Ok(()) };
    let tables = there(session, layout).await?;
    for id in &gone {
        for table in &tables {
            session.ask(&layout.drop_partition(table, &id.to_string())).await?;
        }
    }
    tracing::info!("ClickHouse: {} partitions up to {last} were dropped to make room", gone.len());
    Ok(())
}

/// The partitions that must go, oldest first: those before `oldest`, and then as many as take more than `limit`
/// together. The newest, which rows are inserted into, goes only if it alone is too much.
fn surplus(partitions: &Partitions, oldest: Option<[u64; 2]>, limit: Option<u64>) -> Vec<u64> {
    let mut total: u64 = partitions.values().sum();
    let mut gone = Vec::new();
    for (id, bytes) in partitions {
        let too_old = oldest.is_some_and(|oldest| *id < oldest[usize::from(is_day(*id))]);
        let too_much = limit.is_some_and(|limit| total > limit);
        if !too_old && !too_much {
            break;
        }
        gone.push(*id);
        total -= bytes;
    }
    gone
}

/// The number of a partition of an hour or a day. Tables of somebody else's making may have partitions of another kind
/// (a month is 202611, none at all is "all"): those stay.
fn ours(id: &str) -> Option<u64> {
    id.parse().ok().filter(|id| *id >= 10_000_000)
}

/// Days are numbered as 20261127, hours as seconds since 1970.
fn is_day(id: u64) -> bool {
    id < 100_000_000
}

/// The partitions of an hour and of a day in which rows may be that are not too old yet.
async fn oldest(session: &mut Session, ttl: Duration) -> Result<[u64; 2], Error> {
    let moment = format!("now() - {}", ttl.as_secs());
    let sql = format!("SELECT toString(toUInt32(toStartOfHour({moment}))), toString(toYYYYMMDD({moment}))");
    let row = session.ask(&sql).await?.rows.into_iter().next().unwrap_or_default();
    let number = |at: usize| row.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok([number(0), number(1)])
}

/// The tables that there are: a view of an earlier deployment's own making has none of ours.
async fn there(session: &mut Session, layout: &Layout) -> Result<Vec<String>, Error> {
    let (database, tables) = (quoted(&layout.database), list(&layout.tables()));
    let sql = format!("SELECT name FROM system.tables WHERE database = '{database}' AND name IN ({tables})");
    Ok(session.ask(&sql).await?.rows.concat())
}

async fn partitions(session: &mut Session, layout: &Layout) -> Result<Partitions, Error> {
    // In a cluster the fullest shard counts: a partition goes on all of them.
    let (from, by) = match &layout.cluster {
        None => ("system.parts".to_owned(), "database"),
        Some(cluster) => (format!("cluster('{}', system.parts)", quoted(cluster)), "hostName()"),
    };
    let (database, tables) = (quoted(&layout.database), list(&layout.tables()));
    let sql = format!(
        "SELECT partition_id, toString(max(bytes)) FROM (SELECT {by} AS place, partition_id, sum(bytes_on_disk) AS bytes FROM {from} \
         WHERE active AND database = '{database}' AND table IN ({tables}) GROUP BY place, partition_id) GROUP BY partition_id"
    );
    let rows = session.ask(&sql).await?.rows;
    let number = |row: Vec<String>| Some((ours(row.first()?)?, row.get(1)?.parse().ok()?));
    Ok(rows.into_iter().filter_map(number).collect())
}

async fn limit(session: &mut Session, layout: &Layout, room: &Room) -> Result<Option<u64>, Error> {
    let Some(fraction) = room.max_fraction.filter(|_| layout.dialect == Dialect::Modern) else {
        return Ok(room.max_bytes);
    };
    let (database, tables) = (quoted(&layout.database), list(&layout.tables()));
    let sql = format!(
        "SELECT toString(sum(total_space)) FROM system.disks WHERE name IN (SELECT disk_name FROM system.parts WHERE active AND \
         database = '{database}' AND table IN ({tables}))"
    );
    let size = session.ask(&sql).await?.rows.into_iter().flatten().next().and_then(|text| text.parse::<u64>().ok());
    // No row is on any disk yet: nothing is too much.
    let part = size.filter(|size| *size > 0).map(|size| (size as f64 * fraction) as u64);
    Ok(match (room.max_bytes, part) {
        (Some(bytes), Some(part)) => Some(bytes.min(part)),
        (bytes, part) => bytes.or(part),
    })
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("'{}'", quoted(name))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_partitions_go_until_the_rest_fits() {
        let partitions = Partitions::from([(1_732_716_000, 50), (1_732_719_600, 30), (1_732_723_200, 20)]);
        let gone = |oldest, limit| surplus(&partitions, oldest, limit);
        assert_eq!(gone(None, None), [] as [u64; 0]);
        assert_eq!(gone(None, Some(100)), [] as [u64; 0]);
        assert_eq!(gone(None, Some(99)), [1_732_716_000]);
        assert_eq!(gone(None, Some(20)), [1_732_716_000, 1_732_719_600]);
        assert_eq!(gone(None, Some(19)).len(), 3);
        assert_eq!(gone(Some([1_732_719_600, 20_241_127]), None), [1_732_716_000]);
        let days = Partitions::from([(20_241_125, 1), (20_241_126, 1), (20_241_127, 1)]);
        let ids = ["1732716000", "20241127", "202411", "all", "20241127-7"];
        assert_eq!(ids.map(ours), [Some(1_732_716_000), Some(20_241_127), None, None, None]);
        assert_eq!(surplus(&days, Some([1_732_719_600, 20_241_127]), None), [20_241_125, 20_241_126]);
    }
}
