//! What the table says of a field beyond its Rust type. No values here.

use std::net::IpAddr;

/// Length of a variable-length element in a template (RFC 7011, section 7).
pub const VARIABLE: u16 = 65535;

/// Address family of a record, and so of its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 addresses, 4 bytes.
    V4,
    /// IPv6 addresses, 16 bytes.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The address that stands for none.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        }
    }

    #[inline]
    pub(crate) const fn index(self) -> usize {
        match self {
            Family::V4 => 0,
            Family::V6 => 1,
        }
    }
}

/// Abstract data types (RFC 7012, section 3.1), those in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// One byte.
    Unsigned8,
    /// Two bytes.
    Unsigned16,
    /// Four bytes.
    Unsigned32,
    /// Eight bytes.
    Unsigned64,
    /// UTF-8.
    String,
    /// A string that holds a JSON object.
    Json,
    /// Seconds since 1970.
    DateTimeSeconds,
    /// Milliseconds since 1970.
    DateTimeMilliseconds,
    /// Four bytes.
    Ipv4Address,
    /// Sixteen bytes.
    Ipv6Address,
    /// An address of the record's family.
    Address,
}

impl Type {
    /// The name in the registry.
    pub fn name(self, family: Family) -> &'static str {
        match self {
            Type::Unsigned8 => "unsigned8",
            Type::Unsigned16 => "unsigned16",
            Type::Unsigned32 => "unsigned32",
            Type::Unsigned64 => "unsigned64",
            Type::String | Type::Json => "string",
            Type::DateTimeSeconds => "dateTimeSeconds",
            Type::DateTimeMilliseconds => "dateTimeMilliseconds",
            Type::Ipv4Address => "ipv4Address",
            Type::Ipv6Address => "ipv6Address",
            Type::Address if family == Family::V4 => "ipv4Address",
            Type::Address => "ipv6Address",
        }
    }

    /// Length in a template, [`VARIABLE`] for strings.
    pub const fn width(self, family: Family) -> u16 {
        match (self, family) {
            (Type::Unsigned8, _) => 1,
            (Type::Unsigned16, _) => 2,
            (Type::Unsigned32 | Type::DateTimeSeconds | Type::Ipv4Address, _) | (Type::Address, Family::V4) => 4,
            (Type::Unsigned64 | Type::DateTimeMilliseconds, _) => 8,
            (Type::Ipv6Address, _) | (Type::Address, Family::V6) => 16,
            (Type::String | Type::Json, _) => VARIABLE,
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// What it means.
    pub doc: &'static str,
    /// Its name in Rust.
    pub rust_name: &'static str,
    names: [&'static str; 2],
    /// The enterprise whose element it is, 0 for IANA.
    pub enterprise: u32,
    ids: [u16; 2],
    /// How it is encoded.
    pub data_type: Type,
}

impl Field {
    pub(super) const fn new(
        [doc, rust_name]: [&'static str; 2],
        names: [&'static str; 2],
        enterprise: u32,
        ids: [u16; 2],
        data_type: Type,
    ) -> Field {
        Field { doc, rust_name, names, enterprise, ids, data_type }
    }

    /// Name of the Information Element.
    pub fn name(&self, family: Family) -> &'static str {
        match family {
            Family::V4 => self.names[0],
            Family::V6 => self.names[1],
        }
    }

    /// Id of the Information Element, without the enterprise bit.
    pub const fn id(&self, family: Family) -> u16 {
        match family {
            Family::V4 => self.ids[0],
            Family::V6 => self.ids[1],
        }
    }

    /// Length in a template.
    pub const fn width(&self, family: Family) -> u16 {
        self.data_type.width(family)
    }

    /// Whether it goes by this name in either family.
    pub fn is_named(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}
