//! Templates of one observation domain, and what each compiles to.

use hashbrown::HashMap;

use super::foreign::{Rewrite, Unusable};
use super::{Counters, Limits};
use crate::ipfix::accounting::Kind;
use crate::ipfix::message::{Element, FIRST_TEMPLATE, MessageError, OPTIONS_TEMPLATE_SET, TEMPLATE_SET};
use crate::ipfix::wire::Reader;
use crate::record::{Family, Layout, VARIABLE};

/// How to read the records of a template.
#[derive(Debug)]
pub(super) enum Plan {
    /// An agent's own: constant offsets.
    Agent(Layout),
    /// A flow record of any other shape.
    Foreign(Rewrite),
    /// Our own accounting.
    Accounting(Kind),
    /// Options data of others.
    Options,
    /// Data that is no flow.
    Unusable(Unusable),
}

/// One template.
#[derive(Debug)]
pub(super) struct Template {
    scope: u16,
    elements: Box<[Element]>,
    pub(super) plan: Plan,
    /// Bytes of its shortest record.
    pub(super) least: usize,
    heard: u32,
}

/// The templates of a domain.
#[derive(Debug, Default)]
pub(super) struct Templates {
    by_id: HashMap<u16, Template>,
}

/// What a set of templates may change: the session's sums, and what bounds them.
pub(super) struct Store<'a> {
    pub(super) now: u32,
    pub(super) limits: &'a Limits,
    pub(super) kept: &'a mut Kept,
    pub(super) counters: &'a mut Counters,
}

/// Templates of all domains of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    templates: usize,
    elements: usize,
}

impl Template {
    fn compile(scope: u16, elements: Vec<Element>, now: u32) -> Template {
        let plan = if scope != 0 {
            Kind::of(scope, &elements).map_or(Plan::Options, Plan::Accounting)
        } else if let Some(layout) = agent_layout(&elements) {
            Plan::Agent(layout)
        } else {
            Rewrite::compile(&elements).map_or_else(Plan::Unusable, Plan::Foreign)
        };
        let least =
            elements.iter().map(|element| if element.width == VARIABLE { 1 } else { element.width.into() }).sum();
        Template { scope, elements: elements.into_boxed_slice(), plan, least, heard: now }
    }

    fn is_alive(&self, now: u32, limits: &Limits) -> bool {
        limits.template_life.is_none_or(|life| now.saturating_sub(self.heard) <= life)
    }

    /// Each element's value in one record; `None` at the end or where the record is cut short.
    pub(super) fn values<'t, 'a>(
        &'t self,
        from: &'t mut Reader<'a>,
    ) -> impl Iterator<Item = (&'t Element, Option<&'a [u8]>)> + use<'t, 'a> {
        self.elements.iter().map(move |element| {
            let value = match element.width {
                VARIABLE => from.variable(),
                width => from.bytes(usize::from(width)),
            };
            (element, value)
        })
    }
}

/// The agent's layout that these elements are, if they are one.
fn agent_layout(elements: &[Element]) -> Option<Layout> {
    let layouts =
        Family::ALL.into_iter().flat_map(|family| [false, true].map(|extended| Layout::agent(family, extended)));
    layouts
        .into_iter()
        .find(|layout| layout.fields().map(|field| Element::of(field, layout.family)).eq(elements.iter().copied()))
}

impl Templates {
    /// The template of this id, unless its time is over.
    pub(super) fn find(&self, id: u16, now: u32, limits: &Limits) -> Option<&Template> {
        self.by_id.get(&id).filter(|template| template.is_alive(now, limits))
    }

    /// Reads a set of templates, or of options templates.
    pub(super) fn read_set(&mut self, options: bool, body: &[u8], store: &mut Store<'_>) -> Result<(), MessageError> {
        let mut from = Reader::new(body);
        // What is too short for a template's header is padding.
        while from.len() >= 4 {
            let (Some(id), Some(count)) = (from.u16(), from.u16()) else { break };
            if count == 0 {
                // Zeros are padding, if longer than RFC 7011 likes.
                if id != 0 {
                    self.withdraw(options, id, store)?;
                }
                continue;
            }
            if id < FIRST_TEMPLATE {
                return Err(MessageError::TemplateId(id));
            }
            let scope = if options { from.u16().ok_or(MessageError::TemplateCut(id))? } else { 0 };
            if options && (scope == 0 || scope > count) {
                return Err(MessageError::Scope { id, scope, elements: count });
            }
            let elements: Option<Vec<Element>> = (0..count).map(|_| Element::read(&mut from)).collect();
            let elements = elements.ok_or(MessageError::TemplateCut(id))?;
            store.counters.templates += 1;
            if !self.insert(id, scope, elements, store) {
                store.counters.templates_refused += 1;
            }
        }
        Ok(())
    }

    /// Takes a template in; `false` if it is refused.
    fn insert(&mut self, id: u16, scope: u16, elements: Vec<Element>, store: &mut Store<'_>) -> bool {
        if let Some(known) = self.by_id.get_mut(&id)
            && known.scope == scope
            && *known.elements == *elements
        {
            known.heard = store.now;
            return true;
        }
        self.remove(id, store);
        let dead = self.by_id.iter().filter(|(_, template)| !template.is_alive(store.now, store.limits));
        for id in dead.map(|(id, _)| *id).collect::<Vec<u16>>() {
            self.remove(id, store);
        }
        let room = store.kept.templates < store.limits.templates
            && store.kept.elements + elements.len() <= store.limits.elements;
        let template = Template::compile(scope, elements, store.now);
        if !room || template.least == 0 {
            return false;
        }
        store.kept.templates += 1;
        store.kept.elements += template.elements.len();
        self.by_id.insert(id, template);
        true
    }

    /// RFC 7011, section 8.1: the set's own id stands for all templates of its kind.
    fn withdraw(&mut self, options: bool, id: u16, store: &mut Store<'_>) -> Result<(), MessageError> {
        let all = if options { OPTIONS_TEMPLATE_SET } else { TEMPLATE_SET };
        if id < FIRST_TEMPLATE && id != all {
            return Err(MessageError::TemplateId(id));
        }
        let of_kind = |template: &Template| (template.scope != 0) == options;
        let ids: Vec<u16> = match id {
            // Section 8.4: none over datagrams.
            _ if store.limits.template_life.is_some() => Vec::new(),
            id if id == all => self.by_id.iter().filter(|(_, known)| of_kind(known)).map(|(id, _)| *id).collect(),
            id => self.by_id.get(&id).filter(|known| of_kind(known)).map(|_| id).into_iter().collect(),
        };
        store.counters.withdrawals_ignored += u64::from(ids.is_empty());
        for id in ids {
            self.remove(id, store);
            store.counters.withdrawals += 1;
        }
        Ok(())
    }

    fn remove(&mut self, id: u16, store: &mut Store<'_>) {
        if let Some(template) = self.by_id.remove(&id) {
            store.kept.templates -= 1;
            store.kept.elements -= template.elements.len();
        }
    }
}
