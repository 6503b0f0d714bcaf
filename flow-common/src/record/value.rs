//! How each Rust type of the table stands on the wire, and a value whatever its type.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BufMut;

use super::limit::{JSON_LIMIT, cut_text};
use super::{
    Cut, EndReason, Family, Field, FlowType, ForwardingStatus, PolicyType, RuleAction, TcpState, Type, VARIABLE,
};
use crate::ipfix::wire::Reader;

/// A field's value, whatever its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, code or time.
    Number(u64),
    /// An address.
    Addr(IpAddr),
    /// A string.
    Text(&'a str),
}

impl Value<'_> {
    /// Whether it stands for "not known": zero, the unspecified address, the empty string.
    pub fn is_absent(&self) -> bool {
        match self {
            Value::Number(number) => *number == 0,
            Value::Addr(addr) => addr.is_unspecified(),
            Value::Text(text) => text.is_empty(),
        }
    }
}

/// A Rust type that a row of the table may have.
pub(crate) trait Element: Sized {
    const TYPE: Type;
    const ABSENT: Self;
    fn write(&self, family: Family, out: &mut impl BufMut);
    fn read(family: Family, from: &mut Reader<'_>) -> Option<Self>;
    fn value(&self) -> Value<'_>;
}

/// The rows of one struct, one after the other.
pub(super) trait Group: Sized {
    fn encode_limited(&self, family: Family, out: &mut Vec<u8>, cut: &mut Cut);
    fn take(family: Family, from: &mut Reader<'_>) -> Option<Self>;
}

/// Appends one value as its row says; what is too long is cut and counted.
pub(super) fn put(row: &Field, value: Value<'_>, family: Family, out: &mut Vec<u8>, cut: &mut Cut) {
    match value {
        Value::Text(text) if row.data_type == Type::Json => put_text(&cut.json(text), out),
        Value::Text(text) => put_text(cut.text(text), out),
        Value::Addr(addr) => addr.write(family, out),
        Value::Number(number) => {
            let width = usize::from(row.width(family)).min(8);
            out.extend_from_slice(number.to_be_bytes().get(8 - width..).unwrap_or_default());
        }
    }
}

/// Bytes of a group of fixed length, in each family.
pub(super) const fn lengths(mut fields: &[Field]) -> [usize; 2] {
    let mut sums = [0, 0];
    while let [field, rest @ ..] = fields {
        let widths = [field.width(Family::V4), field.width(Family::V6)];
        assert!(widths[0] != VARIABLE && widths[1] != VARIABLE, "a string in a group of fixed length");
        sums[0] += widths[0] as usize;
        sums[1] += widths[1] as usize;
        fields = rest;
    }
    sums
}

macro_rules! numbers {
    ($($rust:ty, $data_type:ident, $put:ident, $take:ident;)+) => { $(
        impl Element for $rust {
            const TYPE: Type = Type::$data_type;
            const ABSENT: Self = 0;
            #[inline(always)]
            fn write(&self, _: Family, out: &mut impl BufMut) {
                out.$put(*self);
            }
            #[inline(always)]
            fn read(_: Family, from: &mut Reader<'_>) -> Option<Self> {
                from.$take()
            }
            fn value(&self) -> Value<'_> {
                Value::Number(u64::from(*self))
            }
        }
    )+ };
}

numbers! {
    u8, Unsigned8, put_u8, u8;
    u16, Unsigned16, put_u16, u16;
    u32, Unsigned32, put_u32, u32;
    u64, Unsigned64, put_u64, u64;
}

macro_rules! codes {
    ($($code:ident),+) => { $(
        impl Element for $code {
            const TYPE: Type = Type::Unsigned8;
            const ABSENT: Self = $code::ABSENT;
            #[inline(always)]
            fn write(&self, _: Family, out: &mut impl BufMut) {
                out.put_u8(self.code());
            }
            #[inline(always)]
            fn read(_: Family, from: &mut Reader<'_>) -> Option<Self> {
                from.u8().map($code::from)
            }
            fn value(&self) -> Value<'_> {
                Value::Number(u64::from(self.code()))
            }
        }
    )+ };
}

codes!(EndReason, FlowType, ForwardingStatus, PolicyType, RuleAction);

impl Element for Ipv4Addr {
    const TYPE: Type = Type::Ipv4Address;
    const ABSENT: Self = Ipv4Addr::UNSPECIFIED;
    #[inline(always)]
    fn write(&self, _: Family, out: &mut impl BufMut) {
        out.put_slice(&self.octets());
    }
    #[inline(always)]
    fn read(_: Family, from: &mut Reader<'_>) -> Option<Self> {
        from.array::<4>().map(Ipv4Addr::from)
    }
    fn value(&self) -> Value<'_> {
        Value::Addr(IpAddr::V4(*self))
    }
}

impl Element for Ipv6Addr {
    const TYPE: Type = Type::Ipv6Address;
    const ABSENT: Self = Ipv6Addr::UNSPECIFIED;
    #[inline(always)]
    fn write(&self, _: Family, out: &mut impl BufMut) {
        out.put_slice(&self.octets());
    }
    #[inline(always)]
    fn read(_: Family, from: &mut Reader<'_>) -> Option<Self> {
        from.array::<16>().map(Ipv6Addr::from)
    }
    fn value(&self) -> Value<'_> {
        Value::Addr(IpAddr::V6(*self))
    }
}

impl Element for IpAddr {
    const TYPE: Type = Type::Address;
    const ABSENT: Self = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    #[inline(always)]
    fn write(&self, family: Family, out: &mut impl BufMut) {
        match family {
            Family::V4 => out.put_slice(&as_v4(*self).octets()),
            Family::V6 => out.put_slice(&as_v6(*self).octets()),
        }
    }
    #[inline(always)]
    fn read(family: Family, from: &mut Reader<'_>) -> Option<Self> {
        match family {
            Family::V4 => from.array::<4>().map(IpAddr::from),
            Family::V6 => from.array::<16>().map(IpAddr::from),
        }
    }
    fn value(&self) -> Value<'_> {
        Value::Addr(*self)
    }
}

/// In a record of IPv4 an IPv6 address has no place, unless it stands for an IPv4 one.
#[inline(always)]
fn as_v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => addr.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

/// In a record of IPv6 an IPv4 address is a mapped one, and none stays none.
#[inline(always)]
fn as_v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    }
}

impl Element for String {
    const TYPE: Type = Type::String;
    const ABSENT: Self = String::new();
    fn write(&self, _: Family, out: &mut impl BufMut) {
        put_text(self, out);
    }
    fn read(_: Family, from: &mut Reader<'_>) -> Option<Self> {
        from.variable().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Element for TcpState {
    const TYPE: Type = Type::String;
    const ABSENT: Self = TcpState::None;
    fn write(&self, _: Family, out: &mut impl BufMut) {
        put_text(self.name(), out);
    }
    fn read(_: Family, from: &mut Reader<'_>) -> Option<Self> {
        from.variable().map(|bytes| TcpState::from(&*String::from_utf8_lossy(bytes)))
    }
    fn value(&self) -> Value<'_> {
        Value::Text(self.name())
    }
}

/// A string with its length in front (RFC 7011, section 7). Both limits lie below what two bytes can say.
pub(super) fn put_text(text: &str, out: &mut impl BufMut) {
    let text = cut_text(text, JSON_LIMIT);
    match u8::try_from(text.len()) {
        Ok(length) if length < 255 => out.put_u8(length),
        _ => {
            out.put_u8(255);
            out.put_u16(u16::try_from(text.len()).unwrap_or(0));
        }
    }
    out.put_slice(text.as_bytes());
}

/// The bytes of a string behind the length in front of it.
pub(super) fn text_of(field: &[u8]) -> &[u8] {
    Reader::new(field).variable().unwrap_or_default()
}
