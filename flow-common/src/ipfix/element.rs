//! Elements of other senders' templates that say something about a flow, by number, and what they say. Those of our own
//! records are in `record`; elements that are in neither are skipped.

use crate::record::{ANTREA, Family, IANA, REVERSE, Tail};

/// Declares the number-valued elements: a slot each, and the enterprises and ids that fill it.
macro_rules! numbers {
    ($( $(#[doc = $doc:literal])+ $slot:ident = $($enterprise:ident / $id:literal)|+; )+) => {
        /// What a number in a foreign record says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Number { $( $(#[doc = $doc])+ $slot, )+ }

        const NUMBERS: &[(Number, &[(u32, u16)])] = &[$( (Number::$slot, &[$(($enterprise, $id)),+]), )+];

        impl Number {
            pub(super) const COUNT: usize = NUMBERS.len();
        }
    };
}

numbers! {
    /// First packet, seconds.
    StartSeconds = IANA / 150;
    /// Last packet, seconds.
    EndSeconds = IANA / 151;
    /// First packet, milliseconds.
    StartMilliseconds = IANA / 152;
    /// Last packet, milliseconds.
    EndMilliseconds = IANA / 153;
    /// First packet, as NTP writes times.
    StartNtp = IANA / 154 | IANA / 156;
    /// Last packet, as NTP writes times.
    EndNtp = IANA / 155 | IANA / 157;
    /// First packet, microseconds before the message's export time.
    StartDelta = IANA / 158;
    /// Last packet, microseconds before the message's export time.
    EndDelta = IANA / 159;
    /// First packet, milliseconds since the sender began.
    StartUptime = IANA / 22;
    /// Last packet, milliseconds since the sender began.
    EndUptime = IANA / 21;
    /// When the sender began, milliseconds.
    SystemInit = IANA / 160;
    /// Milliseconds between first and last packet.
    DurationMilliseconds = IANA / 161;
    /// Microseconds between first and last packet.
    DurationMicroseconds = IANA / 162;
    /// When the sender saw it, seconds.
    ObservedSeconds = IANA / 322;
    /// When the sender saw it, milliseconds.
    ObservedMilliseconds = IANA / 323;
    /// When the sender saw it, as NTP writes times.
    ObservedNtp = IANA / 324 | IANA / 325;
    /// Why it was sent.
    EndReason = IANA / 136;
    /// The originator's port.
    SrcPort = IANA / 7 | IANA / 180 | IANA / 182;
    /// The responder's port.
    DstPort = IANA / 11 | IANA / 181 | IANA / 183;
    /// The protocol.
    Protocol = IANA / 4 | IANA / 193;
    /// ICMP type and code.
    IcmpTypeCode = IANA / 32 | IANA / 139;
    /// ICMP type alone.
    IcmpType = IANA / 176 | IANA / 178;
    /// ICMP code alone.
    IcmpCode = IANA / 177 | IANA / 179;
    /// Packets since the begin.
    PacketTotal = IANA / 86;
    /// Bytes since the begin.
    OctetTotal = IANA / 85;
    /// Packets since the last record.
    PacketDelta = IANA / 2;
    /// Bytes since the last record.
    OctetDelta = IANA / 1;
    /// Packets since the begin, counted elsewhere: behind the sender.
    OtherPacketTotal = IANA / 172;
    /// Bytes since the begin, counted elsewhere: behind the sender, on layer 2.
    OtherOctetTotal = IANA / 171 | IANA / 353;
    /// Packets since the last record, counted elsewhere: from the initiator, behind the sender, on layer 4.
    OtherPacketDelta = IANA / 298 | IANA / 24 | IANA / 402;
    /// Bytes since the last record, counted elsewhere: from the initiator, on layer 2, behind the sender, on layer 4.
    OtherOctetDelta = IANA / 231 | IANA / 352 | IANA / 23 | IANA / 401;
    /// The responder's packets since the begin.
    ReversePacketTotal = REVERSE / 86;
    /// The responder's bytes since the begin.
    ReverseOctetTotal = REVERSE / 85;
    /// The responder's packets since the last record.
    ReversePacketDelta = REVERSE / 2;
    /// The responder's bytes since the last record.
    ReverseOctetDelta = REVERSE / 1;
    /// The responder's packets since the begin, counted elsewhere.
    OtherReversePacketTotal = REVERSE / 172;
    /// The responder's bytes since the begin, counted elsewhere.
    OtherReverseOctetTotal = REVERSE / 171 | REVERSE / 353;
    /// The responder's packets since the last record, counted elsewhere.
    OtherReversePacketDelta = IANA / 299 | REVERSE / 24 | REVERSE / 402;
    /// The responder's bytes since the last record, counted elsewhere.
    OtherReverseOctetDelta = IANA / 232 | REVERSE / 352 | REVERSE / 23 | REVERSE / 401;
    /// Whether source and destination are initiator and responder.
    BiflowDirection = IANA / 239;
    /// The originator's TCP flags.
    TcpFlags = IANA / 6;
    /// The responder's TCP flags.
    ReverseTcpFlags = REVERSE / 6;
    /// The flow's number.
    FlowId = IANA / 148;
    /// Packets dropped.
    Dropped = IANA / 135;
    /// What became of its packets.
    ForwardingStatus = IANA / 89;
    /// The originator's port after translation.
    NatSrcPort = IANA / 227;
    /// The responder's port after translation.
    NatDstPort = IANA / 228;
}

/// What an address in a foreign record says. The same slot takes either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addr {
    /// Of the originator.
    Src,
    /// Of the responder.
    Dst,
    /// Of the originator after translation.
    NatSrc,
    /// Of the responder after translation.
    NatDst,
    /// Of the Service.
    Service,
}

impl Addr {
    pub(super) const COUNT: usize = 5;
}

/// Where the value of an element goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nowhere.
    Skip,
    /// To a number.
    Number(Number),
    /// To an IPv4 address.
    V4(Addr),
    /// To an IPv6 address.
    V6(Addr),
    /// To this field of the tail.
    Tail(usize),
    /// It is a piece of a sampled packet.
    Sample,
}

impl Target {
    /// What an element of a foreign template says.
    pub(super) fn of(enterprise: u32, id: u16) -> Target {
        match (enterprise, id) {
            (IANA, 8) => Target::V4(Addr::Src),
            (IANA, 12) => Target::V4(Addr::Dst),
            (IANA, 27) => Target::V6(Addr::Src),
            (IANA, 28) => Target::V6(Addr::Dst),
            (IANA, 225) => Target::V4(Addr::NatSrc),
            (IANA, 226) => Target::V4(Addr::NatDst),
            (IANA, 281) => Target::V6(Addr::NatSrc),
            (IANA, 282) => Target::V6(Addr::NatDst),
            (ANTREA, 106) => Target::V4(Addr::Service),
            (ANTREA, 107) => Target::V6(Addr::Service),
            (IANA, 313..=315) => Target::Sample,
            (ANTREA, id) => Tail::FIELDS
                .iter()
                .position(|row| row.enterprise == ANTREA && row.id(Family::V4) == id)
                .map_or(Target::Skip, Target::Tail),
            _ => NUMBERS
                .iter()
                .find(|(_, elements)| elements.contains(&(enterprise, id)))
                .map_or(Target::Skip, |(number, _)| Target::Number(*number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_has_one_meaning() {
        let mut seen = std::collections::HashSet::new();
        for (number, elements) in NUMBERS {
            for element in *elements {
                assert!(seen.insert(*element), "{element:?} twice");
                assert_eq!(Target::of(element.0, element.1), Target::Number(*number));
            }
        }
    }

    #[test]
    fn every_field_of_an_agents_record_is_known() {
        for family in Family::ALL {
            for field in crate::record::Layout::agent(family, true).fields() {
                assert_ne!(Target::of(field.enterprise, field.id(family)), Target::Skip, "{}", field.name(family));
            }
        }
        assert_eq!(Target::of(ANTREA, 151), Target::Skip);
        assert_eq!(Target::of(9, 8), Target::Skip);
    }
}
