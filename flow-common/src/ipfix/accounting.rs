//! Accounting as options data (RFC 7011, section 4): what an agent measured, sent, lost, and where.

use crate::record::{Cut, Family, Field, InterfaceCount, Metering, NodeAddr, NotSent};

use super::message::Element;
use super::wire::Reader;

/// One record of options data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accounting {
    /// What was sent so far.
    Metering(Metering),
    /// What could not be sent so far.
    NotSent(NotSent),
    /// Packets and bytes of an interface, under one heading.
    Interface(InterfaceCount),
    /// An address of the Node.
    Addr(NodeAddr),
}

/// The shapes of options data, one template each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of [`Accounting::Metering`].
    Metering,
    /// Of [`Accounting::NotSent`].
    NotSent,
    /// Of [`Accounting::Interface`].
    Interface,
    /// Of [`Accounting::Addr`], IPv4.
    Addr4,
    /// Of [`Accounting::Addr`], IPv6.
    Addr6,
}

/// Id of the first options template; the others follow in the order of [`Kind::ALL`].
const FIRST_OPTIONS: u16 = 258;

impl Kind {
    /// All of them, in the order of their template ids.
    pub const ALL: [Kind; 5] = [Kind::Metering, Kind::NotSent, Kind::Interface, Kind::Addr4, Kind::Addr6];

    /// Id of the template.
    pub const fn template(self) -> u16 {
        FIRST_OPTIONS
            + match self {
                Kind::Metering => 0,
                Kind::NotSent => 1,
                Kind::Interface => 2,
                Kind::Addr4 => 3,
                Kind::Addr6 => 4,
            }
    }

    /// How many of the elements say what the others are about.
    pub const fn scope(self) -> u16 {
        match self {
            Kind::Metering | Kind::NotSent => 1,
            Kind::Interface | Kind::Addr4 | Kind::Addr6 => 2,
        }
    }

    /// The template's elements.
    pub fn elements(self) -> impl Iterator<Item = Element> + Clone {
        let (fields, family): (&[Field], Family) = match self {
            Kind::Metering => (Metering::FIELDS, Family::V4),
            Kind::NotSent => (NotSent::FIELDS, Family::V4),
            Kind::Interface => (InterfaceCount::FIELDS, Family::V4),
            Kind::Addr4 => (NodeAddr::FIELDS, Family::V4),
            Kind::Addr6 => (NodeAddr::FIELDS, Family::V6),
        };
        fields.iter().map(move |field| Element::of(field, family))
    }

    /// The kind that a foreign template of these elements is.
    pub(super) fn of(scope: u16, elements: &[Element]) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.scope() == scope && kind.elements().eq(elements.iter().copied()))
    }

    pub(super) fn read(self, from: &mut Reader<'_>) -> Option<Accounting> {
        Some(match self {
            Kind::Metering => Accounting::Metering(Metering::read(Family::V4, from)?),
            Kind::NotSent => Accounting::NotSent(NotSent::read(Family::V4, from)?),
            Kind::Interface => Accounting::Interface(InterfaceCount::read(Family::V4, from)?),
            Kind::Addr4 => Accounting::Addr(NodeAddr::read(Family::V4, from)?),
            Kind::Addr6 => Accounting::Addr(NodeAddr::read(Family::V6, from)?),
        })
    }
}

impl Accounting {
    /// The shape of the record.
    pub fn kind(&self) -> Kind {
        match self {
            Accounting::Metering(_) => Kind::Metering,
            Accounting::NotSent(_) => Kind::NotSent,
            Accounting::Interface(_) => Kind::Interface,
            Accounting::Addr(addr) if addr.addr.is_ipv4() => Kind::Addr4,
            Accounting::Addr(_) => Kind::Addr6,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>, cut: &mut Cut) {
        match self {
            Accounting::Metering(metering) => metering.encode(Family::V4, out),
            Accounting::NotSent(not_sent) => not_sent.encode(Family::V4, out),
            Accounting::Interface(count) => count.encode(Family::V4, out, cut),
            Accounting::Addr(addr) => addr.encode(Family::of(addr.addr), out, cut),
        }
    }
}
