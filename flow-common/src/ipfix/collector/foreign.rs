//! Flow records of other senders, whatever their template, brought into the agent's shape: head, tail, extended.
//! A template is compiled once into steps; a record is walked by them, then its meaning is put together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::TailHash;
use super::batch::{Record, Span};
use crate::ipfix::element::{Addr, Number, Target};
use crate::ipfix::message::{Element, Header};
use crate::ipfix::wire::Reader;
use crate::record::{EndReason, Extended, Family, ForwardingStatus, Head, Tail, Type, VARIABLE, tail};

mod time;

/// Why a template's records are no flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// They hold pieces of sampled packets.
    Sample,
    /// They do not say between whom.
    NoKey,
}

/// What a record's meaning depends on beside the record.
pub(super) struct Context<'a> {
    pub(super) header: &'a Header,
    pub(super) system_init: u64,
    pub(super) hash: &'a TailHash,
}

/// One element, or several to be passed over.
#[derive(Clone, Copy, Debug)]
struct Step {
    target: Target,
    width: u16,
}

/// A compiled template.
#[derive(Debug)]
pub(super) struct Rewrite {
    steps: Box<[Step]>,
    has_names: bool,
    has_total: [bool; 4],
    /// Where a record's deltas stand.
    deltas: [[Number; 2]; 4],
    presence: u64,
}

/// A record's values, by what they say; of several elements with one meaning the first that is not zero.
struct Values<'a> {
    numbers: [u64; Number::COUNT],
    v4: [u32; Addr::COUNT],
    v6: [u128; Addr::COUNT],
    tail: [&'a [u8]; tail::FIELDS],
    presence: u64,
}

/// The ends of a flow and its Service.
struct Ends {
    family: Family,
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
    service: Option<(IpAddr, u16)>,
}

const _: () = assert!(Number::COUNT <= 64, "the presence of a number is one bit");

impl Rewrite {
    pub(super) fn compile(elements: &[Element]) -> Result<Rewrite, Unusable> {
        let steps: Vec<Step> = elements.iter().map(step).collect();
        let has = |wanted: &[Target]| steps.iter().any(|step| wanted.contains(&step.target));
        if has(&[Target::Sample]) {
            return Err(Unusable::Sample);
        }
        let both = |[src, dst]: [Target; 2]| has(&[src]) && has(&[dst]);
        if !both([Target::V4(Addr::Src), Target::V4(Addr::Dst)])
            && !both([Target::V6(Addr::Src), Target::V6(Addr::Dst)])
        {
            return Err(Unusable::NoKey);
        }
        let has_any = |slots: [Number; 2]| has(&slots.map(Target::Number));
        // A sender of totals alone tells of a flow once.
        let mut deltas = DELTAS;
        for (delta, total) in deltas.iter_mut().zip(TOTALS) {
            if has_any(total) && !has_any(*delta) {
                *delta = total;
            }
        }
        let presence = steps.iter().fold(0, |bits, step| match step.target {
            Target::Number(number) => bits | bit(number),
            _ => bits,
        });
        Ok(Rewrite {
            has_names: steps.iter().any(|step| matches!(step.target, Target::Tail(_))),
            has_total: TOTALS.map(has_any),
            deltas,
            presence,
            steps: steps.into_boxed_slice(),
        })
    }

    /// Reads one record: `None` if it is cut short, `Some(None)` if it does not say between whom.
    pub(super) fn read(
        &self,
        from: &mut Reader<'_>,
        context: &Context<'_>,
        scratch: &mut Vec<u8>,
    ) -> Option<Option<Record>> {
        let values = self.values(from)?;
        let Some(ends) = values.ends() else { return Some(None) };
        let (head, extended, has_total) = self.numbers(&values, &ends, context);
        let start = scratch.len();
        let http = values.http(scratch);
        let tail_start = scratch.len();
        if self.has_names || ends.service.is_some() {
            values.put_tail(&ends, scratch);
        } else {
            tail::absent(ends.family, scratch);
        }
        let tail_hash = context.hash.of(scratch.get(tail_start..).unwrap_or_default());
        let http = if http == 0 { Span::default() } else { Span::scratch(start, scratch.get(..tail_start)?) };
        Some(Some(Record {
            head,
            extended,
            tail_hash,
            domain: context.header.domain,
            export_time: context.header.export_time,
            has_total,
            is_agents: false,
            tail: Span::scratch(tail_start, scratch),
            http,
        }))
    }

    #[inline]
    fn values<'a>(&self, from: &mut Reader<'a>) -> Option<Values<'a>> {
        let mut values = Values {
            numbers: [0; Number::COUNT],
            v4: [0; Addr::COUNT],
            v6: [0; Addr::COUNT],
            tail: [&[]; tail::FIELDS],
            presence: self.presence,
        };
        for step in &self.steps {
            let value = match step.width {
                VARIABLE => from.variable()?,
                width => from.bytes(usize::from(width))?,
            };
            match step.target {
                Target::Skip | Target::Sample => {}
                Target::Number(slot) => keep(values.numbers.get_mut(slot as usize), number(value)),
                Target::V4(slot) => {
                    keep(values.v4.get_mut(slot as usize), value.try_into().ok().map(u32::from_be_bytes));
                }
                Target::V6(slot) => {
                    keep(values.v6.get_mut(slot as usize), value.try_into().ok().map(u128::from_be_bytes));
                }
                Target::Tail(field) => {
                    if let Some(slot) = values.tail.get_mut(field) {
                        *slot = value;
                    }
                }
            }
        }
        Some(values)
    }

    fn numbers(&self, values: &Values<'_>, ends: &Ends, context: &Context<'_>) -> (Head, Extended, [bool; 4]) {
        let times = time::times(values, context);
        let mut totals = TOTALS.map(|slots| values.first(slots));
        let mut deltas = self.deltas.map(|slots| values.first(slots));
        let mut has_total = self.has_total;
        let mut flags = [Number::TcpFlags, Number::ReverseTcpFlags].map(|slot| values.narrow(slot));
        if values.is_reversed() {
            totals.rotate_left(2);
            deltas.rotate_left(2);
            has_total.rotate_left(2);
            flags.reverse();
        }
        let protocol = values.narrow(Number::Protocol);
        let mut head = Head {
            start_seconds: seconds(times.start.milliseconds),
            end_seconds: seconds(times.end.milliseconds),
            end_reason: EndReason::from(values.narrow::<u8>(Number::EndReason)),
            src_port: ends.src.1,
            dst_port: ends.dst.1,
            protocol,
            src_addr: ends.src.0,
            dst_addr: ends.dst.0,
            ..Head::default()
        };
        head.set_totals(totals);
        head.set_deltas(deltas);
        let mut extended = Extended {
            start_milliseconds: times.start.exact(),
            end_milliseconds: times.end.exact(),
            tcp_flags: flags[0],
            reverse_tcp_flags: flags[1],
            flow_id: values.number(Number::FlowId),
            dropped_packets: values.number(Number::Dropped),
            forwarding_status: ForwardingStatus::from(values.narrow::<u8>(Number::ForwardingStatus)),
            ..Extended::absent(ends.family)
        };
        if matches!(protocol, 1 | 58) {
            if head.dst_port == 0 {
                head.dst_port = values.icmp();
            }
            extended.icmp_type_code = head.dst_port;
        }
        if let Some((addr, port)) = values.translated(ends) {
            (extended.nat_src_addr, extended.nat_src_port) = (addr, port);
        }
        (head, extended, has_total)
    }
}

/// Elements of the same counter, the best first: packets and bytes, then the responder's.
const TOTALS: [[Number; 2]; 4] = [
    [Number::PacketTotal, Number::OtherPacketTotal],
    [Number::OctetTotal, Number::OtherOctetTotal],
    [Number::ReversePacketTotal, Number::OtherReversePacketTotal],
    [Number::ReverseOctetTotal, Number::OtherReverseOctetTotal],
];
const DELTAS: [[Number; 2]; 4] = [
    [Number::PacketDelta, Number::OtherPacketDelta],
    [Number::OctetDelta, Number::OtherOctetDelta],
    [Number::ReversePacketDelta, Number::OtherReversePacketDelta],
    [Number::ReverseOctetDelta, Number::OtherReverseOctetDelta],
];

impl<'a> Values<'a> {
    fn number(&self, slot: Number) -> u64 {
        self.numbers.get(slot as usize).copied().unwrap_or(0)
    }

    fn has(&self, slot: Number) -> bool {
        self.presence & bit(slot) != 0
    }

    fn first(&self, slots: [Number; 2]) -> u64 {
        slots.into_iter().map(|slot| self.number(slot)).find(|number| *number != 0).unwrap_or(0)
    }

    /// The number in a smaller type, zero if it is too great.
    fn narrow<T: TryFrom<u64> + Default>(&self, slot: Number) -> T {
        T::try_from(self.number(slot)).unwrap_or_default()
    }

    /// RFC 5103, section 6.1: source and destination stand the other way round.
    fn is_reversed(&self) -> bool {
        self.number(Number::BiflowDirection) == 2
    }

    /// Type * 256 + code.
    fn icmp(&self) -> u16 {
        match self.narrow(Number::IcmpTypeCode) {
            0 => u16::from_be_bytes([self.narrow(Number::IcmpType), self.narrow(Number::IcmpCode)]),
            both => both,
        }
    }

    /// An address of the record's family, where there is one.
    fn addr(&self, family: Family, slot: Addr) -> Option<IpAddr> {
        let addr = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(self.v4.get(slot as usize).copied()?)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(self.v6.get(slot as usize).copied()?)),
        };
        (!addr.is_unspecified()).then_some(addr)
    }

    /// Between whom the flow is; `None` if no address says.
    fn ends(&self) -> Option<Ends> {
        let has = |family| self.addr(family, Addr::Src).is_some() || self.addr(family, Addr::Dst).is_some();
        let family = Family::ALL.into_iter().find(|family| has(*family))?;
        let end = |addr, port| (self.addr(family, addr).unwrap_or(family.unspecified()), self.narrow(port));
        let (mut src, mut dst) = (end(Addr::Src, Number::SrcPort), end(Addr::Dst, Number::DstPort));
        if self.is_reversed() {
            std::mem::swap(&mut src, &mut dst);
        }
        let mut service = self.addr(family, Addr::Service).map(|addr| (addr, 0));
        if let Some(behind) = self.addr(family, Addr::NatDst).filter(|addr| service.is_none() && *addr != dst.0) {
            service = Some(dst);
            let port = self.narrow(Number::NatDstPort);
            dst = (behind, if port == 0 { dst.1 } else { port });
        }
        Some(Ends { family, src, dst, service })
    }

    /// The originator's address and port after translation, if they are others.
    fn translated(&self, ends: &Ends) -> Option<(IpAddr, u16)> {
        let (addr, port) = (self.addr(ends.family, Addr::NatSrc)?, self.narrow(Number::NatSrcPort));
        let port = if port == 0 { ends.src.1 } else { port };
        ((addr, port) != ends.src).then_some((addr, port))
    }

    /// Appends the HTTP transactions and gives their length.
    fn http(&self, scratch: &mut Vec<u8>) -> usize {
        let http = self.tail.get(tail::HTTP).copied().unwrap_or_default();
        scratch.extend_from_slice(http);
        http.len()
    }

    /// Appends the tail without HTTP transactions.
    fn put_tail(&self, ends: &Ends, scratch: &mut Vec<u8>) {
        let (service, service_port) = ends.service.unwrap_or((ends.family.unspecified(), 0));
        for (at, (row, value)) in Tail::FIELDS.iter().zip(self.tail).enumerate() {
            match row.data_type {
                _ if at == tail::HTTP => scratch.push(0),
                Type::String | Type::Json => put_text(value, scratch),
                Type::Address => match service {
                    IpAddr::V4(addr) => scratch.extend_from_slice(&addr.octets()),
                    IpAddr::V6(addr) => scratch.extend_from_slice(&addr.octets()),
                },
                Type::Unsigned16 => {
                    let port = number(value).and_then(|port| u16::try_from(port).ok()).unwrap_or(service_port);
                    scratch.extend_from_slice(&port.to_be_bytes());
                }
                _ => scratch.push(number(value).and_then(|code| u8::try_from(code).ok()).unwrap_or(0)),
            }
        }
    }
}

/// What an element's value needs: an element of an impossible width is passed over.
fn step(element: &Element) -> Step {
    let target = Target::of(element.enterprise, element.id);
    let fits = match target {
        Target::Number(_) => matches!(element.width, 1..=8),
        Target::V4(_) => element.width == 4,
        Target::V6(_) => element.width == 16,
        Target::Skip | Target::Sample | Target::Tail(_) => true,
    };
    Step { target: if fits { target } else { Target::Skip }, width: element.width }
}

#[inline]
fn keep<T: Default + PartialEq>(slot: Option<&mut T>, value: Option<T>) {
    if let (Some(slot), Some(value)) = (slot, value)
        && *slot == T::default()
    {
        *slot = value;
    }
}

const fn bit(slot: Number) -> u64 {
    1 << slot as u64
}

/// An unsigned number of up to eight bytes (RFC 7011, section 6.2); `None` if there are none or more.
#[inline]
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    match bytes {
        [] => None,
        [byte] => Some(u64::from(*byte)),
        [a, b] => Some(u64::from(u16::from_be_bytes([*a, *b]))),
        [a, b, c, d] => Some(u64::from(u32::from_be_bytes([*a, *b, *c, *d]))),
        bytes if bytes.len() <= 8 => Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))),
        _ => None,
    }
}

fn seconds(milliseconds: u64) -> u32 {
    u32::try_from(milliseconds / 1000).unwrap_or(u32::MAX)
}

/// A string with its length in front; a string of fixed length ends at its padding.
fn put_text(text: &[u8], scratch: &mut Vec<u8>) {
    let padding = text.iter().rev().take_while(|byte| **byte == 0).count();
    let text = text.get(..text.len() - padding).unwrap_or_default();
    match u8::try_from(text.len()) {
        Ok(length) if length < 255 => scratch.push(length),
        _ => {
            scratch.push(255);
            // No value is longer than its message.
            scratch.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
        }
    }
    scratch.extend_from_slice(text);
}
