//! Which groups make up a record on the wire, and so its template.

use super::{Extended, Family, Field, Head, Labels, Origin, PerNode, Tail, VARIABLE};

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// What one agent saw.
    Agent,
    /// Both halves, joined by the aggregator.
    Joined,
    /// What one agent saw, handed on by the aggregator.
    Proxied,
}

/// The order of a record's fields on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Family of its addresses.
    pub family: Family,
    /// What it tells.
    pub content: Content,
    /// Whether the extended elements stand last.
    pub extended: bool,
}

impl Layout {
    /// An agent's.
    pub const fn agent(family: Family, extended: bool) -> Layout {
        Layout { family, content: Content::Agent, extended }
    }

    /// Every layout there is.
    pub fn all() -> impl Iterator<Item = Layout> {
        [Content::Agent, Content::Joined, Content::Proxied].into_iter().flat_map(|content| {
            Family::ALL.into_iter().flat_map(move |family| {
                [false, true].into_iter().map(move |extended| Layout { family, content, extended })
            })
        })
    }

    /// The fields, in the order of the wire.
    pub fn fields(self) -> impl Iterator<Item = &'static Field> {
        let numbers = match self.content {
            Content::Agent => &[],
            Content::Joined => PerNode::FIELDS,
            Content::Proxied => Origin::FIELDS,
        };
        let labels = if self.content == Content::Agent { &[] } else { Labels::FIELDS };
        let extended = if self.extended { Extended::FIELDS } else { &[] };
        [Head::FIELDS, Tail::FIELDS, numbers, labels, extended].into_iter().flatten()
    }

    /// Bytes of a record whose strings are all empty.
    pub fn least_len(self) -> usize {
        let width = |field: &Field| match field.width(self.family) {
            VARIABLE => 1,
            width => usize::from(width),
        };
        self.fields().map(width).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_record_has_41_elements_and_constant_parts() {
        let agent = Layout::agent(Family::V4, false);
        assert_eq!(agent.fields().count(), 41);
        assert_eq!(Head::len(Family::V4), 86);
        assert_eq!(Head::len(Family::V6), 110);
        assert_eq!(Extended::len(Family::V4), 45);
        assert_eq!(agent.least_len(), 86 + 29);
        assert_eq!(Layout { extended: true, ..agent }.fields().count(), 51);
        assert_eq!(Layout { content: Content::Joined, ..agent }.fields().count(), 67);
        assert_eq!(Layout { content: Content::Proxied, ..agent }.fields().count(), 47);
    }

    #[test]
    fn no_two_fields_share_an_element() {
        for layout in Layout::all() {
            let mut seen = std::collections::HashSet::new();
            for field in layout.fields() {
                assert!(seen.insert((field.enterprise, field.id(layout.family))), "{}", field.name(layout.family));
            }
        }
    }
}
