//! Sets of data: each record by its template's plan into the batch.

use super::batch::{Batch, Record, Span};
use super::foreign::{Context, Unusable};
use super::template::{Plan, Template};
use super::{Counters, Domain, Limits, TailHash};
use crate::ipfix::element::{Number, Target};
use crate::ipfix::message::{Header, MessageError};
use crate::ipfix::wire::Reader;
use crate::record::{Extended, Family, Head, Layout, tail};

/// A set of data and what it stands in.
pub(super) struct Set<'a> {
    pub(super) id: u16,
    pub(super) body: &'a [u8],
    /// Where in the buffer the body begins.
    pub(super) at: usize,
    pub(super) header: &'a Header,
    pub(super) hash: &'a TailHash,
}

impl Set<'_> {
    /// Reads every record of the set.
    pub(super) fn read(
        &self,
        domain: &mut Domain,
        now: u32,
        limits: &Limits,
        batch: &mut Batch,
        counters: &mut Counters,
    ) -> Result<(), MessageError> {
        let Some(template) = domain.templates.find(self.id, now, limits) else {
            counters.missing_templates += 1;
            return Ok(());
        };
        match &template.plan {
            Plan::Agent(Layout { family: Family::V4, extended: false, .. }) => {
                self.agent::<false, false>(template, batch, counters)
            }
            Plan::Agent(Layout { family: Family::V4, extended: true, .. }) => {
                self.agent::<false, true>(template, batch, counters)
            }
            Plan::Agent(Layout { family: Family::V6, extended: false, .. }) => {
                self.agent::<true, false>(template, batch, counters)
            }
            Plan::Agent(Layout { family: Family::V6, extended: true, .. }) => {
                self.agent::<true, true>(template, batch, counters)
            }
            Plan::Foreign(rewrite) => {
                let context = Context { header: self.header, system_init: domain.system_init, hash: self.hash };
                self.each(template, |from| {
                    match rewrite.read(from, &context, &mut batch.scratch)? {
                        Some(record) => {
                            batch.records.push(record);
                            counters.records += 1;
                            counters.foreign += 1;
                        }
                        None => counters.keyless += 1,
                    }
                    Some(())
                })
            }
            Plan::Accounting(kind) => self.each(template, |from| {
                batch.accounting.push((self.header.domain, kind.read(from)?));
                counters.accounting += 1;
                Some(())
            }),
            Plan::Options => {
                let mut init = None;
                let result = self.each(template, |from| {
                    counters.options += 1;
                    init = system_init(template, from)?.or(init);
                    Some(())
                });
                domain.system_init = init.unwrap_or(domain.system_init);
                result
            }
            Plan::Unusable(reason) => self.each(template, |from| {
                *(match reason {
                    Unusable::Sample => &mut counters.sampled,
                    Unusable::NoKey => &mut counters.keyless,
                }) += 1;
                template.values(from).try_for_each(|(_, value)| value.map(|_| ()))
            }),
        }
    }

    /// What is shorter than any record is padding.
    fn each(
        &self,
        template: &Template,
        mut read: impl FnMut(&mut Reader<'_>) -> Option<()>,
    ) -> Result<(), MessageError> {
        let mut from = Reader::new(self.body);
        while from.len() >= template.least {
            read(&mut from).ok_or(MessageError::RecordCut(self.id))?;
        }
        Ok(())
    }

    /// An agent's own records: head and extended elements at constant offsets, the tail only walked over and hashed.
    fn agent<const V6: bool, const EXTENDED: bool>(
        &self,
        template: &Template,
        batch: &mut Batch,
        counters: &mut Counters,
    ) -> Result<(), MessageError> {
        let family = if V6 { Family::V6 } else { Family::V4 };
        let mut rest = self.body;
        while rest.len() >= template.least {
            let at = self.at + (self.body.len() - rest.len()) + Head::len(family);
            let read = || {
                let head = Head::decode(family, rest)?;
                let bytes = rest.get(Head::len(family)..)?;
                let bounds = tail::bounds(family, bytes)?;
                let (tail, bytes) = bytes.split_at_checked(bounds.end)?;
                let extended = if EXTENDED { Extended::decode(family, bytes)? } else { Extended::absent(family) };
                Some((head, tail, bounds, extended, bytes.get(if EXTENDED { Extended::len(family) } else { 0 }..)?))
            };
            let Some((head, tail, bounds, extended, behind)) = read() else {
                return Err(MessageError::RecordCut(self.id));
            };
            let (tail, http, tail_hash) = if bounds.http + 1 == bounds.addr {
                (Span::buffer(at, tail.len()), Span::default(), self.hash.of(tail))
            } else {
                self.without_http(tail, bounds, at, batch)
            };
            let Header { domain, export_time, .. } = *self.header;
            let (has_total, is_agents) = ([true; 4], true);
            let record = Record { head, extended, tail_hash, domain, export_time, has_total, is_agents, tail, http };
            batch.records.push(record);
            counters.records += 1;
            rest = behind;
        }
        Ok(())
    }

    /// HTTP transactions differ by record: the tail without them is put together in the scratch.
    #[cold]
    fn without_http(&self, tail: &[u8], bounds: tail::Bounds, at: usize, batch: &mut Batch) -> (Span, Span, u64) {
        let start = batch.scratch.len();
        batch.scratch.extend_from_slice(tail.get(..bounds.http).unwrap_or_default());
        batch.scratch.push(0);
        batch.scratch.extend_from_slice(tail.get(bounds.addr..).unwrap_or_default());
        let hash = self.hash.of(batch.scratch.get(start..).unwrap_or_default());
        let span = Span::scratch(start, &batch.scratch);
        // The length in front takes one byte or three.
        let mut value = Reader::new(tail.get(bounds.http..bounds.addr).unwrap_or_default());
        let length = value.variable().map_or(0, <[u8]>::len);
        (span, Span::buffer(at + bounds.addr - length, length), hash)
    }
}

/// When the sender's uptime began, where this record of options data says so.
fn system_init(template: &Template, from: &mut Reader<'_>) -> Option<Option<u64>> {
    let mut found = None;
    for (element, value) in template.values(from) {
        let value = value?;
        if Target::of(element.enterprise, element.id) == Target::Number(Number::SystemInit) {
            found = super::foreign::number(value);
        }
    }
    Some(found)
}
