//! Joined flows as columns of a block.
//!
//! Takes flows as they stand on the wire and appends each field to its column, without a value or string in between;
//! gives a block, compressed or not. Times and names of columns the caller passes in.

use super::{
    block::Block,
    columns::{self, CLUSTER, COLUMNS, Column, INSERTED, Stored},
    frame::Frames,
    wire::{put_number, put_text},
};
use crate::aggregate::Batch;
use flow_common::{
    ipfix::wire::Reader,
    record::{Family, Type, VARIABLE},
};
use std::{borrow::Cow, io::Write, sync::Arc};

/// Rows of a block: enough that a server does not drown in parts, few enough to wait in memory.
pub(super) const MOST_ROWS: usize = 65_536;
/// Bytes before compression beyond which a block is full as well.
const MOST_BYTES: usize = 64 << 20;

/// Rows that are gathered.
#[derive(Debug)]
pub(super) struct Rows {
    columns: Arc<[Column]>,
    plans: Arc<[Vec<Step>; 2]>,
    extended: bool,
    data: Vec<Vec<u8>>,
    rows: usize,
    bytes: usize,
}

/// Rows that no more are added to.
#[derive(Debug)]
pub(super) struct Full {
    columns: Arc<[Column]>,
    data: Vec<Vec<u8>>,
    /// How many.
    pub(super) rows: usize,
}

/// What every row of a block has.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// When it is inserted, in seconds since 1970.
    pub(super) inserted: u32,
    /// The cluster's UUID; "" if none is configured.
    pub(super) cluster: String,
    /// The type of milliseconds in this server's table.
    pub(super) milliseconds: &'static str,
}

/// What is done with a field; numbers among the columns.
#[derive(Clone, Copy, Debug)]
enum Step {
    Skip(usize),
    Byte(usize),
    Two(usize),
    Four(usize),
    Eight(usize),
    Text(usize),
    Addr4(usize),
    Addr16(usize),
}

impl Rows {
    /// None yet, with the extended elements or without.
    pub(super) fn new(extended: bool) -> Rows {
        let stored = |field: &str| COLUMNS.iter().find(|column| column.field == Some(field)).copied();
        let columns: Arc<[Column]> =
            columns::wire(Family::V4, extended).filter_map(|row| stored(row.rust_name)).collect();
        let plans = Arc::new(Family::ALL.map(|family| plan(family, extended, &columns)));
        let data = vec![Vec::new(); columns.len()];
        Rows { columns, plans, extended, data, rows: 0, bytes: 0 }
    }

    /// Appends flows of a batch from the `from`th on until no more fit. Gives where it ended, and how many of them
    /// could not be read.
    pub(super) fn take(&mut self, batch: &Batch, from: usize) -> (usize, u64) {
        let (mut through, mut refused) = (from, 0);
        for joined in batch.iter().skip(from) {
            if self.is_full() {
                break;
            }
            if self.push(joined.family, joined.bytes(self.extended)).is_none() {
                self.cut();
                refused += 1;
            }
            through += 1;
        }
        (through, refused)
    }

    /// Whether it is time to insert them.
    pub(super) fn is_full(&self) -> bool {
        self.rows >= MOST_ROWS || self.bytes >= MOST_BYTES
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Takes all rows out.
    pub(super) fn split(&mut self) -> Full {
        let data = self.data.iter_mut().map(std::mem::take).collect();
        self.bytes = 0;
        Full { columns: self.columns.clone(), data, rows: std::mem::take(&mut self.rows) }
    }

    /// Gets the room of rows back that are of no more use.
    pub(super) fn recycle(&mut self, full: Full) {
        for (own, mut old) in self.data.iter_mut().zip(full.data) {
            if own.capacity() < old.capacity() {
                old.clear();
                old.extend_from_slice(own);
                *own = old;
            }
        }
    }

    fn push(&mut self, family: Family, bytes: &[u8]) -> Option<()> {
        let mut from = Reader::new(bytes);
        let plan = match family {
            Family::V4 => &self.plans[0],
            Family::V6 => &self.plans[1],
        };
        for step in plan {
            match *step {
                Step::Skip(width) => drop(from.bytes(width)?),
                Step::Byte(column) => self.data[column].push(from.u8()?),
                Step::Two(column) => self.data[column].extend_from_slice(&from.u16()?.to_le_bytes()),
                Step::Four(column) => self.data[column].extend_from_slice(&from.u32()?.to_le_bytes()),
                Step::Eight(column) => self.data[column].extend_from_slice(&from.u64()?.to_le_bytes()),
                Step::Text(column) => put_text(from.variable()?, &mut self.data[column]),
                Step::Addr4(column) => put_addr4(from.array()?, &mut self.data[column]),
                Step::Addr16(column) => put_addr16(from.array()?, &mut self.data[column]),
            }
        }
        self.rows += 1;
        self.bytes += bytes.len();
        Some(())
    }

    /// Removes what a flow that could not be read to its end left in the columns.
    fn cut(&mut self) {
        for (column, data) in self.columns.iter().zip(&mut self.data) {
            let length = match column.stored {
                Stored::Number8 => self.rows,
                Stored::Number16 => self.rows * 2,
                Stored::Seconds => self.rows * 4,
                Stored::Number64 | Stored::Milliseconds => self.rows * 8,
                Stored::Name | Stored::Text => texts_len(data, self.rows),
            };
            data.truncate(length);
        }
    }
}

impl Full {
    /// The columns as a statement names them, and the block's bytes without what the protocols put around them.
    pub(super) fn seal(&self, common: &Common, compress: bool) -> (String, Block) {
        let columns = self.columns(common);
        let mut frames = Frames::new(compress);
        let mut head = Vec::new();
        put_number(columns.len() as u64, &mut head);
        put_number(self.rows as u64, &mut head);
        for (name, kind, data) in &columns {
            put_text(name.as_bytes(), &mut head);
            put_text(kind.as_bytes(), &mut head);
            frames.put(&head);
            frames.put(data);
            head.clear();
        }
        let names = columns.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
        (names, Block { body: frames.finish().into(), compressed: compress, rows: self.rows })
    }

    /// Name, type and values of each.
    fn columns(&self, common: &Common) -> Vec<(&'static str, &'static str, Cow<'_, [u8]>)> {
        let kind = |stored: Stored| stored.kind(common.milliseconds);
        let inserted = common.inserted.to_le_bytes().repeat(self.rows);
        let mut columns = vec![(INSERTED, kind(Stored::Seconds), Cow::Owned(inserted))];
        if !common.cluster.is_empty() {
            let mut text = Vec::new();
            put_text(common.cluster.as_bytes(), &mut text);
            columns.push((CLUSTER, kind(Stored::Name), Cow::Owned(text.repeat(self.rows))));
        }
        let fields = self.columns.iter().zip(&self.data);
        columns.extend(fields.map(|(column, data)| (column.name, kind(column.stored), Cow::Borrowed(&data[..]))));
        columns
    }
}

/// What to do with each field of a record in turn.
fn plan(family: Family, extended: bool, columns: &[Column]) -> Vec<Step> {
    let mut steps = Vec::new();
    for row in columns::wire(family, extended) {
        let width = row.width(family);
        let step = match columns.iter().position(|column| column.field == Some(row.rust_name)) {
            None => Step::Skip(usize::from(width)),
            Some(column) => match (row.data_type, width) {
                (_, VARIABLE) => Step::Text(column),
                (Type::Address, 4) => Step::Addr4(column),
                (Type::Address, _) => Step::Addr16(column),
                (_, 1) => Step::Byte(column),
                (_, 2) => Step::Two(column),
                (_, 4) => Step::Four(column),
                _ => Step::Eight(column),
            },
        };
        match (steps.last_mut(), step) {
            (Some(Step::Skip(before)), Step::Skip(width)) => *before += width,
            _ => steps.push(step),
        }
    }
    steps
}

/// An IPv4 address as text, which most rows have three times.
fn put_addr4(addr: [u8; 4], out: &mut Vec<u8>) {
    let mut text = [0; 15];
    let mut length = 0;
    let mut put = |byte| {
        text[length] = byte;
        length += 1;
    };
    for (at, part) in addr.into_iter().enumerate() {
        if at > 0 {
            put(b'.');
        }
        if part >= 100 {
            put(b'0' + part / 100);
        }
        if part >= 10 {
            put(b'0' + part / 10 % 10);
        }
        put(b'0' + part % 10);
    }
    put_text(&text[..length], out);
}

fn put_addr16(addr: [u8; 16], out: &mut Vec<u8>) {
    let begin = out.len();
    // No address is longer than 127 characters: one byte of length is enough.
    out.push(0);
    write!(out, "{}", std::net::Ipv6Addr::from(addr)).expect("a vector takes every byte");
    out[begin] = (out.len() - begin - 1) as u8;
}

/// Bytes of the first `rows` texts.
fn texts_len(data: &[u8], rows: usize) -> usize {
    let mut from = super::wire::Reader::new(data);
    for _ in 0..rows {
        let length = from.number().ok().and_then(|length| usize::try_from(length).ok());
        if length.is_none_or(|length| from.bytes(length).is_err()) {
            break;
        }
    }
    data.len() - from.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::testing::batch_of;
    use flow_common::record::Value;
    use proptest::prelude::*;

    fn common(cluster: &str) -> Common {
        Common { inserted: 1_704_067_200, cluster: cluster.to_owned(), milliseconds: "DateTime64(3)" }
    }

    /// The values of a block as texts, by column.
    fn read(block: &Block) -> Vec<(String, Vec<String>)> {
        let mut from = super::super::wire::Reader::new(&block.body);
        let (columns, rows) = (from.number().unwrap(), from.number().unwrap());
        let columns = (0..columns)
            .map(|_| {
                let (name, kind) = (from.text().unwrap(), from.text().unwrap());
                let value = |_| match kind.as_str() {
                    "String" => from.text().unwrap(),
                    "UInt8" => u8::from_le_bytes(from.array().unwrap()).to_string(),
                    "UInt16" => u16::from_le_bytes(from.array().unwrap()).to_string(),
                    "DateTime" => u32::from_le_bytes(from.array().unwrap()).to_string(),
                    _ => u64::from_le_bytes(from.array().unwrap()).to_string(),
                };
                (name, (0..rows).map(value).collect())
            })
            .collect();
        assert!(from.is_empty());
        columns
    }

    #[test]
    fn every_column_has_what_the_record_says() {
        for (extended, cluster) in [(true, "3f1c9e52"), (false, "")] {
            let mut rows = Rows::new(extended);
            let batch = batch_of(3);
            assert_eq!(rows.take(&batch, 1), (3, 0));
            let full = rows.split();
            let (names, block) = full.seal(&common(cluster), false);
            let columns = read(&block);
            assert_eq!(names, columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "));
            assert_eq!(columns[0].1, ["1704067200"; 2]);
            let flows: Vec<_> = batch.iter().skip(1).map(|joined| joined.decode().unwrap()).collect();
            let mut looked = 1 + usize::from(!cluster.is_empty());
            for column in COLUMNS.iter() {
                let Some(field) = column.field else { continue };
                let Some((_, values)) = columns.iter().find(|(name, _)| name == column.name) else { continue };
                for (flow, value) in flows.iter().zip(values) {
                    let mut shown = None;
                    flow.visit(|row, value| {
                        if row.rust_name == field {
                            shown = Some(match value {
                                Value::Number(number) => number.to_string(),
                                Value::Addr(addr) => addr.to_string(),
                                Value::Text(text) => text.to_owned(),
                            });
                        }
                    });
                    assert_eq!(shown.as_ref(), Some(value), "{}", column.name);
                }
                looked += 1;
            }
            assert_eq!(looked, columns.len(), "no column is of another origin");
        }
    }

    #[test]
    fn a_flow_that_cannot_be_read_leaves_nothing() {
        let mut rows = Rows::new(true);
        rows.take(&batch_of(2), 0);
        let before = rows.data.clone();
        let batch = batch_of(1);
        let whole = batch.iter().next().unwrap().bytes(true);
        for length in 0..whole.len() {
            // A record cut short: as a batch never holds, were the encoder right.
            assert_eq!(rows.push(Family::V4, &whole[..length]), None, "{length}");
            rows.cut();
            assert_eq!(rows.data, before);
        }
    }

    #[test]
    fn room_is_used_again() {
        let mut rows = Rows::new(true);
        rows.take(&batch_of(9), 0);
        let full = rows.split();
        assert_eq!((rows.len(), full.rows), (0, 9));
        rows.take(&batch_of(1), 0);
        let (_, block) = full.seal(&common(""), true);
        rows.recycle(full);
        assert!(block.compressed && rows.data.iter().all(|column| column.capacity() >= 9));
        assert_eq!(read(&rows.split().seal(&common(""), false).1)[0].1.len(), 1);
    }

    proptest! {
        #[test]
        fn addresses_are_written_as_everywhere(v4: [u8; 4], v6: [u8; 16]) {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            put_addr4(v4, &mut a);
            put_addr16(v6, &mut b);
            prop_assert_eq!(&a[1..], std::net::Ipv4Addr::from(v4).to_string().into_bytes());
            prop_assert_eq!(&b[1..], std::net::Ipv6Addr::from(v6).to_string().into_bytes());
            prop_assert_eq!((usize::from(a[0]), usize::from(b[0])), (a.len() - 1, b.len() - 1));
        }
    }
}
